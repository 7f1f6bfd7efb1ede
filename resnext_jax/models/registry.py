"""Model names, and the networks behind them."""

import dataclasses
import difflib
import re
from typing import Any, TypedDict, Unpack

import jax
from flax import nnx

from resnext_jax.models.blocks import FORMS, Form
from resnext_jax.models.equivalence import convert_form
from resnext_jax.models.execution import Execution
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.preact import PreActResNeXt
from resnext_jax.models.resnext import Architecture, NetworkSpec, ResNeXt
from resnext_jax.ops.grouped_conv import Implementation

# Blocks a stage; depth counts the stem, three layers a block and the classifier.
_RESNET_200 = (3, 24, 36, 3)
# Those of 14 and 26 layers are not the paper's: small ones, for small data.
_IMAGENET_BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

# The networks of the paper's tables (Tables 3, 4, 5 and 7), and two that others
# released. Any other cardinality and width works too.
_LISTED = (
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet101_1x100d",
    "resnext50_2x40d",
    "resnext50_4x24d",
    "resnext50_8x14d",
    "resnext50_32x4d",
    "resnext101_2x40d",
    "resnext101_4x24d",
    "resnext101_8x14d",
    "resnext101_32x4d",
    "resnext101_2x64d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext152_32x4d",
    "resnet200",
    "resnet29",
    "resnext29_32x4d",
    "resnext29_8x64d",
    "resnext29_16x64d",
    "wide_resnet28_10",
)

_NAME = re.compile(r"(resnet|resnext)(\d+)(?:_(\d+)x(\d+)d)?")


def list_models() -> list[str]:
    """Names of the paper's networks and their best-known relatives.

    The grammar is wider than the list: `resnext{depth}_{C}x{d}d` takes any
    cardinality C and width d, and `resnet{depth}_1x{d}d` any width, for depths
    14, 26, 50, 101 and 152 (ImageNet) and 9n + 2 (CIFAR: 20, 29, 38, ...).
    """
    return list(_LISTED)


def parse_name(name: str) -> Architecture:
    """Turn a model name into its architecture, at the paper's widths.

    Raises:
      ValueError: no such model; the message names the nearest valid ones, or
        says which part of the name is impossible.
    """
    if name == "resnet200":
        return Architecture("imagenet", _RESNET_200, 1, 64, preactivation=True)
    if name == "wide_resnet28_10":
        # 28 layers: the stem, three stages of four blocks of two, the projections' three.
        return Architecture(
            "cifar",
            (4, 4, 4),
            1,
            160,
            preactivation=True,
            basic=True,
            stem_width=16,
            template_width=160,
        )
    match = _NAME.fullmatch(name)
    if match is None:
        near = difflib.get_close_matches(name, _LISTED, n=3, cutoff=0.3)
        hint = f"nearest: {', '.join(near)}" if near else "see resnext_jax.models.list_models()"
        raise ValueError(f"unknown model {name!r}; {hint}.")
    if match[1] == "resnext" and match[3] is None:
        raise ValueError(
            f"incomplete model name {name!r}: a ResNeXt needs its cardinality and width, "
            f"as in '{name}_32x4d'."
        )
    depth = int(match[2])
    cardinality, width = (int(match[3]), int(match[4])) if match[3] else (1, 64)
    if cardinality < 1 or width < 1:
        raise ValueError(
            f"impossible model {name!r}: cardinality C={cardinality} and width d={width} "
            "must both be at least 1."
        )
    if match[1] == "resnet" and cardinality != 1:
        raise ValueError(
            f"impossible model {name!r}: a ResNet has cardinality 1; with C={cardinality} "
            f"it is 'resnext{depth}_{cardinality}x{width}d'."
        )
    if depth in _IMAGENET_BLOCKS:
        return Architecture("imagenet", _IMAGENET_BLOCKS[depth], cardinality, width)
    if depth > 2 and (depth - 2) % 9 == 0:
        return Architecture("cifar", ((depth - 2) // 9,) * 3, cardinality, width)
    raise ValueError(
        f"impossible model {name!r}: depth {depth} is neither 14, 26, 50, 101 or 152 "
        "(ImageNet) nor 9n + 2 (CIFAR: 20, 29, 38, ...)."
    )


class NetworkOptions(TypedDict, total=False):
    """What a network can be given beside its name; `create_model` explains each."""

    num_classes: int
    form: Form
    dtype: jax.typing.DTypeLike
    param_dtype: jax.typing.DTypeLike
    residual: bool
    preactivation: bool | None
    bn_group_size: int | None
    bn_axis_name: str | None
    stem_width: int | None
    template_width: int | None
    conv_implementation: Implementation
    scan_blocks: bool
    remat: bool


def network_spec(name: str, **options: Unpack[NetworkOptions]) -> NetworkSpec:
    """Describe the network that `create_model` builds from these arguments, and build nothing.

    Raises:
      ValueError: as `create_model` does.
      TypeError: there is no such option.
    """
    given: dict[str, Any] = dict(options)
    unknown = given.keys() - NetworkOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"a network has no option {min(unknown)!r}.")
    for what in ("num_classes", "stem_width", "template_width"):
        if given.get(what) is not None and given[what] < 1:
            raise ValueError(f"{what} must be at least 1, got {given[what]}.")

    def those_of(part: type) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(part)}
        return {what: value for what, value in given.items() if what in names}

    named = parse_name(name)
    changes = {what: value for what, value in those_of(Architecture).items() if value is not None}
    architecture = dataclasses.replace(named, **changes)
    layers, execution = LayerOptions(**those_of(LayerOptions)), Execution(**those_of(Execution))
    spec = NetworkSpec(architecture, options=layers, execution=execution, **those_of(NetworkSpec))
    if spec.form not in FORMS:
        raise ValueError(f"unknown block form {spec.form!r}; choose one of {', '.join(FORMS)}.")
    if named.preactivation and not architecture.preactivation:
        raise ValueError(f"{name!r} is a pre-activation network; it has no other kind.")
    if architecture.preactivation and spec.form != "c":
        raise ValueError(
            f"form {spec.form!r} does not exist for the pre-activation network {name!r}: "
            "use form 'c'."
        )
    return spec


def create_model(
    name: str, *, rngs: nnx.Rngs, **options: Unpack[NetworkOptions]
) -> ResNeXt | PreActResNeXt:
    """Build a network by name, initialised as the authors did.

    `model.train()` and `model.eval()` switch batch normalisation; a new model
    is in training mode. `model(images)` maps `[N, H, W, 3]` normalised images to
    `[N, num_classes]` logits.

    Args:
      name: see `list_models`.
      rngs: `nnx.Rngs`, whose `params` stream draws the weights.
      **options: any of those below.

    Options:
      num_classes: width of the classifier, 1000 by default.
      form: block form of Figure 3, "c" by default. Forms a and b are the conversion
        of form c with the same `rngs`: the same function from the start.
      dtype: compute dtype of convolutions and activations; float32 by default.
      param_dtype: dtype of the stored parameters; float32 by default.
      residual: False leaves the shortcuts out (ablation, Sec. 5.1).
      preactivation: batch norm and ReLU before each convolution, as an older
        preprint had it on CIFAR; None means as the name says (only `resnet200`
        and `wide_resnet28_10` are pre-activation networks by name).
      bn_group_size: images that share batch-norm statistics, None for all
        (see `ops.BatchNorm`).
      bn_axis_name: mesh axis of the devices that share one batch-norm group;
        only valid inside `shard_map`.
      stem_width: channels of the first convolution; None means the paper's 64
        (16 in Wide ResNet).
      template_width: output channels of the first stage's blocks; None means
        the paper's 256 (160 in Wide ResNet). The bottleneck widths,
        C * d * 2**stage, do not depend on it.
      conv_implementation: lowering of every convolution, see `ops.grouped_conv`.
      scan_blocks: compile a stage's equal blocks once, as a loop: the same
        function and the same stored names. The deepest networks compile in
        less time, ResNeXt-152 in two thirds of it.
      remat: keep only each block's input for the gradient and compute the
        block again: less memory for a third more work.

    Raises:
      ValueError: unknown name or form, or an impossible size.
    """
    spec = network_spec(name, **options)
    if spec.architecture.preactivation:
        return PreActResNeXt(spec, rngs=rngs)
    if spec.form == "c":
        return ResNeXt(spec, rngs=rngs)
    return convert_form(ResNeXt(dataclasses.replace(spec, form="c"), rngs=rngs), spec.form)
