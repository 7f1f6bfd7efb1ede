"""Conversion between the block forms of the same function (paper Sec. 3.3, Figures 3 and 4).

Branch i of forms a and b is group i of form c. Arrays with an axis of the C * d bottleneck channels
are split into C parts, or concatenated from them; all others (such as those of
squeeze-and-excitation) are the same in all forms. No arithmetic is involved, so a conversion and
its inverse restore every bit. Parameters, batch-norm statistics and optimiser buffers have the same
names and are split in the same way.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from resnext_jax.models.blocks import (
    BOTTLENECK,
    FORMS,
    SE_BOTTLENECK,
    BlockForms,
    BlockSpec,
    Form,
    TwoLayerA,
    TwoLayerDense,
)
from resnext_jax.models.layers import Conv
from resnext_jax.models.preact import PreActResNeXt
from resnext_jax.models.resnext import ResNeXt
from resnext_jax.models.variables import Arrays, merge, skeleton, split
from resnext_jax.ops.batch_norm import BatchNorm

Tree = TypeVar("Tree")

# Layers that a form has once per branch, as regular expressions, and the prefix of their names:
# "conv1.kernel" of form c is "aggregation.branches.0.conv1.kernel" and so on in form a.
_BRANCHED = {
    "a": r"conv1|norm1|conv2|norm2|conv3",
    "b": r"conv1|norm1|conv2|norm2",
    "c": r"(?!)",  # none
}
_PREFIX = {"a": "aggregation.branches", "b": "branches"}

# Prefix of the names of a block's own layers; empty for a single block. A block may contain other
# modules, whose layers may have the same names.
_BLOCK = r"(|stages\.\w+\.\d+\.)"

# The axis of the bottleneck channels. A grouped kernel [3, 3, d, C * d] is split along its output
# axis only: its input axis is that of a single group.
_AXIS = {"conv1.kernel": 3, "conv2.kernel": 3, "conv3.kernel": 2}


def convert_form(model: Any, to: Form) -> Any:
    """Convert a block or a whole network to another form: the same function and statistics.

    Args:
      model: a `ResNeXt`, or a bottleneck block of `models.blocks`.
      to: "a", "b" or "c".

    Returns:
      A new module that computes what `model` computes, each batch norm in the
      same mode (training or evaluation).

    Raises:
      ValueError: the form is unknown, or the network's blocks do not exist in it.
      TypeError: `model` exists in one form only, such as a block with different branches, or a
        pre-activation network.
    """
    if to not in FORMS:
        raise ValueError(f"unknown block form {to!r}; choose one of {', '.join(FORMS)}.")
    source, cardinality, build = _form_and_builder(model)
    _check_uniform(model, build, source)
    _, params, batch_stats = split(model)
    converted = (convert_arrays(tree, cardinality, source, to) for tree in (params, batch_stats))
    graphdef, *_ = split(skeleton(lambda rngs: build(to, rngs)))
    return _with_modes_of(model, merge(graphdef, *converted))


Build = Callable[[Form, nnx.Rngs], nnx.Module]


def _form_and_builder(model: Any) -> tuple[Form, int, Build]:
    """Return a model's form, its cardinality, and a function that builds it in another form."""
    spec: Any = getattr(model, "spec", None)
    if isinstance(model, PreActResNeXt):
        raise TypeError("pre-activation networks exist in form c only; there is none to convert.")
    if isinstance(model, ResNeXt):
        return (
            spec.form,
            spec.architecture.cardinality,
            lambda form, rngs: ResNeXt(dataclasses.replace(spec, form=form), rngs=rngs),
        )
    for form, block in itertools.product(FORMS, (BOTTLENECK, SE_BOTTLENECK)):
        if type(model) is block.of(form):
            return form, spec.cardinality, functools.partial(_build_block, block, spec)
    raise _no_other_form(model)


def _build_block(block: BlockForms, spec: BlockSpec, form: Form, rngs: nnx.Rngs) -> nnx.Module:
    return block.of(form)(spec, rngs=rngs)


def _check_uniform(model: Any, build: Build, source: Form) -> None:
    """Raise TypeError unless every branch is as the model's spec describes it.

    An aggregation may contain any modules; only branches of the same topology can be converted.
    """
    expected = skeleton(lambda rngs: build(source, rngs))
    shapes = [
        {name: array.shape for name, array in split(module)[1].items()}
        for module in (model, expected)
    ]
    layers = [
        {path: _description(module) for path, module in nnx.iter_modules(whole)}
        for whole in (model, expected)
    ]
    if shapes[0] != shapes[1] or layers[0] != layers[1]:
        raise _no_other_form(model)


def _description(module: nnx.Module) -> tuple[Any, ...]:
    strides = (module.strides, module.groups) if isinstance(module, Conv) else ()
    return type(module), *strides


def _no_other_form(model: Any) -> TypeError:
    return TypeError(
        f"this {type(model).__name__} has no form other than its own: only a sum over branches of "
        "one topology, as BottleneckA, B and C are built with, can be concatenated or grouped "
        "(paper Sec. 3.3, Discussion)."
    )


def convert_arrays(
    arrays: Mapping[str, jax.Array], cardinality: int, source: Form, to: Form
) -> Arrays:
    """Rename and split or concatenate a model's arrays (parameters, statistics or momentum).

    Args:
      arrays: arrays of a model or block in form `source`, by dotted name.
      cardinality: C.
      source: the form to convert from.
      to: the form to convert to.

    Returns:
      The arrays in form `to`, by its names.
    """
    if source == to:
        return dict(arrays)
    return _cut(_joined(arrays, cardinality, source), cardinality, to)


def convert_state(tree: Tree, cardinality: int, source: Form, to: Form) -> Tree:
    """Convert every dictionary of named arrays inside a pytree, such as an optax state.

    With it a run can change form half-way: parameters, statistics and momentum are converted, and
    training continues.
    """

    def is_arrays(node: Any) -> bool:
        return isinstance(node, dict)

    return jax.tree.map(
        lambda node: convert_arrays(node, cardinality, source, to) if is_arrays(node) else node,
        tree,
        is_leaf=is_arrays,
    )


def _joined(arrays: Mapping[str, jax.Array], cardinality: int, source: Form) -> Arrays:
    """Form `source` to form c."""
    if source == "c":
        return dict(arrays)
    return _join_branches(arrays, cardinality, _PREFIX[source], _AXIS, into="")


def _join_branches(
    arrays: Mapping[str, jax.Array],
    cardinality: int,
    prefix: str,
    axes: Mapping[str, int],
    *,
    into: str,
) -> Arrays:
    """Concatenate the arrays of `prefix.0`, `prefix.1`, ... under the name `into`."""
    of_branch = re.compile(rf"{_BLOCK}{re.escape(prefix)}\.(\d+)\.(.+)")
    joined: Arrays = {}
    for name, array in arrays.items():
        match = of_branch.fullmatch(name)
        if match is None:
            joined[name] = array
        elif match[2] == "0":
            block, _, leaf = match.groups()
            parts = [arrays[f"{block}{prefix}.{branch}.{leaf}"] for branch in range(cardinality)]
            joined[f"{block}{into}{leaf}"] = jnp.concatenate(parts, axis=axes.get(leaf, 0))
    return joined


def _cut(arrays: Mapping[str, jax.Array], cardinality: int, to: Form) -> Arrays:
    """Form c to form `to`."""
    pattern = re.compile(rf"{_BLOCK}({_BRANCHED[to]})\.(\w+)")
    cut: Arrays = {}
    for name, array in arrays.items():
        match = pattern.fullmatch(name)
        if not match:
            cut[name] = array
            continue
        block, layer, what = match.groups()
        leaf = f"{layer}.{what}"
        parts = jnp.split(array, cardinality, axis=_AXIS.get(leaf, 0))
        for branch, part in enumerate(parts):
            cut[f"{block}{_PREFIX[to]}.{branch}.{leaf}"] = part
    return cut


def widen_two_layers(block: TwoLayerA) -> TwoLayerDense:
    """Convert Figure 4's aggregation of depth 2 to the equivalent dense block."""
    axes = {"conv1.kernel": 3, "conv2.kernel": 2}
    converted = (
        _join_branches(tree, block.spec.cardinality, _PREFIX["a"], axes, into="wide.")
        for tree in split(block)[1:]
    )
    graphdef, *_ = split(skeleton(lambda rngs: TwoLayerDense(block.spec, rngs=rngs)))
    return _with_modes_of(block, merge(graphdef, *converted))


def _with_modes_of(model: Any, result: Any) -> Any:
    """Copy the training or evaluation mode of each batch norm from `model` to `result`."""
    modes = {_common_name(path): norm.use_running_average for path, norm in _norms(model)}
    for path, norm in _norms(result):
        norm.use_running_average = modes[_common_name(path)]
    return result


def _norms(model: nnx.Module) -> Iterator[tuple[tuple[Any, ...], BatchNorm]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            yield path, module


def _common_name(path: tuple[Any, ...]) -> str:
    """Return the name of a layer without the parts that differ between branches and forms."""
    name = ".".join(map(str, path))
    return re.sub(r"(aggregation\.)?branches\.\d+\.|wide\.", "", name)
