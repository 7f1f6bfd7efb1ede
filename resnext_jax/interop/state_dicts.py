"""PyTorch state dicts to our arrays and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resnext_jax.interop.errors import Shape, WeightsError, listed
from resnext_jax.interop.files import unwrap
from resnext_jax.interop.names import (
    ArrayRow,
    Collection,
    Scheme,
    counters,
    dtypes,
    scheme_of,
    table,
)
from resnext_jax.models.equivalence import convert_arrays
from resnext_jax.models.preact import PreActResNeXt
from resnext_jax.models.registry import model_name
from resnext_jax.models.resnext import NetworkSpec, ResNeXt
from resnext_jax.models.variables import Arrays, merge, split

_CLASSIFIER = "fc."

# What `create_model` returns.
Network = ResNeXt | PreActResNeXt


def load_state_dict(
    model: Network, state_dict: Any, *, classifier: bool = True, ema: bool = False
) -> None:
    """Load PyTorch weights into a network, in place; its form, dtypes and modes stay.

    Args:
      model: of `create_model`, or its skeleton (`models.variables.skeleton`), which is filled.
      state_dict: tensors on the CPU, or anything else that NumPy can read, by PyTorch's name;
        wrapped or not (see `wrappers.unwrap`). Floating point of any kind, rounded to the model's.
      classifier: False leaves the model's classifier as it is, and does not look at theirs.
      ema: take the average that a wrapper has beside the weights.

    Raises:
      WeightsError: weights and model differ in names or shapes, or there is no reading them; the
        model is as it was.
    """
    load_arrays(model, unwrap(state_dict, ema=ema), classifier=classifier)


def load_arrays(
    model: Network,
    state_dict: Mapping[str, Any],
    *,
    classifier: bool,
    source: str = "the state dict",
) -> None:
    """As `load_state_dict`, of a state dict that is unwrapped; `source` is what errors call it."""
    spec = spec_of(model)
    graphdef, *old = split(model)
    new = weights_from_torch(state_dict, spec, classifier=classifier, source=source)
    if not classifier:
        head = {name: array for name, array in old[0].items() if name.startswith(_CLASSIFIER)}
        new = new[0] | head, new[1]
    for before, after in zip(old, new, strict=True):
        if _shapes(before) != _shapes(after):
            raise TypeError("the model is not the one that its spec describes.")
    placed = [
        {name: _placed_like(array, before[name]) for name, array in after.items()}
        for before, after in zip(old, new, strict=True)
    ]
    nnx.update(model, nnx.state(merge(graphdef, *placed), (nnx.Param, nnx.BatchStat)))


def to_state_dict(model: Network) -> dict[str, np.ndarray]:
    """Return a network's weights by torchvision's names, in its layouts and order.

    The counters of batches that PyTorch keeps (`num_batches_tracked`) are not there: nothing here
    counts them, and PyTorch's `load_state_dict`, strict as it is, does without.

    Returns:
      Arrays of the dtypes that the model has; of form c, whatever the model's form.

    Raises:
      WeightsError: a pre-activation network.
    """
    spec = spec_of(model)
    _, params, batch_stats = split(model)
    return weights_to_torch(params, batch_stats, spec)


def spec_of(model: Any) -> NetworkSpec:
    """Return what describes a network, `ResNeXt` or `PreActResNeXt`.

    Its classifier may have been replaced by another `nnx.Linear`, of other classes.

    Raises:
      TypeError: something else.
    """
    if not isinstance(model, Network):
        raise TypeError(f"weights are of a network of create_model, not a {type(model).__name__}.")
    if not isinstance(model.fc, nnx.Linear) or model.fc.bias is None:
        raise TypeError("the network's classifier (`fc`) is not an nnx.Linear with a bias.")
    return dataclasses.replace(model.spec, num_classes=model.fc.out_features)


def weights_from_torch(
    state_dict: Mapping[str, Any],
    spec: NetworkSpec,
    *,
    classifier: bool = True,
    source: str = "the state dict",
) -> tuple[Arrays, Arrays]:
    """Turn a state dict into a network's arrays; no network is built.

    Counters (`num_batches_tracked`) are passed over, everything else must be there and fit.

    Args:
      state_dict: arrays by PyTorch's name, unwrapped.
      spec: of the network, in any form.
      classifier: False leaves the classifier out.
      source: the weights' name in error messages.

    Returns:
      Parameters and running statistics by dotted name (see `models.variables.split`), in the
      dtypes and the form of `spec`.

    Raises:
      WeightsError: names or shapes differ; all that do are attributes of the error.
    """
    scheme = scheme_of(state_dict)
    rows = table(spec, scheme)
    wanted = [row for row in rows if classifier or not row.ours.startswith(_CLASSIFIER)]
    passed_over = counters(rows)
    if not classifier:
        passed_over |= {row.theirs for row in rows if row not in wanted}
    difference = compare(state_dict, wanted, passed_over)
    if any(difference):
        raise _misfit(difference, state_dict, spec, scheme, source)
    arrays: dict[Collection, Arrays] = {"params": {}, "batch_stats": {}}
    kept_in = dtypes(spec)
    for row in wanted:
        array = _as_floats(state_dict[row.theirs], row.theirs, source)
        ours = np.asarray(row.from_torch(array), kept_in[row.collection])
        # A copy: JAX on the CPU may share the memory of what it is given.
        arrays[row.collection][row.ours] = jnp.array(ours, copy=True)
    params, batch_stats = (
        convert_arrays(tree, spec.architecture.cardinality, "c", spec.form)
        for tree in arrays.values()
    )
    return params, batch_stats


def weights_to_torch(
    params: Arrays, batch_stats: Arrays, spec: NetworkSpec
) -> dict[str, np.ndarray]:
    """Turn a network's arrays into a state dict: the inverse of `weights_from_torch`.

    Raises:
      WeightsError: a pre-activation network.
      ValueError: they are not the arrays of such a network.
    """
    rows = table(spec)
    joined: Arrays = {}
    for tree in (params, batch_stats):
        joined |= convert_arrays(tree, spec.architecture.cardinality, spec.form, "c")
    if _shapes(joined) != {row.ours: row.shape for row in rows}:
        raise ValueError("these are not the arrays of the network that `spec` describes.")
    return {row.theirs: row.to_torch(np.asarray(joined[row.ours])) for row in rows}


class Difference(NamedTuple):
    """In what weights and network differ, by PyTorch's names; see `WeightsError`."""

    missing: list[str]
    unexpected: list[str]
    misshapen: dict[str, tuple[Shape, Shape]]

    def phrases(self, **options: int) -> list[str]:
        """List what differs, worded as `errors.listed` does with these options."""
        shapes = (f"{name} is {found}, not {own}" for name, (found, own) in self.misshapen.items())
        parts = (
            listed("name", "missing", self.missing, **options),
            listed("name", "unexpected", self.unexpected, **options),
            listed("array", "of another shape", shapes, **options),
        )
        return [part for part in parts if part]


def compare(
    state_dict: Mapping[str, Any], rows: list[ArrayRow], passed_over: set[str] | None = None
) -> Difference:
    """Compare a state dict with the rows of a network; `passed_over` are names not looked at."""
    wanted = {row.theirs: row.torch_shape for row in rows}
    unknown = [name for name in state_dict if name not in wanted | dict.fromkeys(passed_over or ())]
    found = {name: _shape(state_dict[name]) for name in wanted if name in state_dict}
    return Difference(
        missing=[name for name in wanted if name not in found],
        unexpected=unknown,
        misshapen={
            name: (shape, wanted[name]) for name, shape in found.items() if shape != wanted[name]
        },
    )


def kind_of_stranger(state_dict: Mapping[str, Any]) -> str | None:
    """Say what sort of network a state dict is of, if it is a known one that is not built here."""

    def width(name: str) -> int:
        return _shape(state_dict[name])[0] if name in state_dict else 0

    if "stages.0.blocks.0.conv1.weight" in state_dict:
        return "timm's resnetv2 blocks"
    if any(".se.conv" in name for name in state_dict):
        return "ECA attention in its blocks"
    if any(".se_module." in name for name in state_dict):
        return (
            "the names, stem and strides of the first SENets (timm's legacy_seresnet and senet154)"
        )
    if any(".conv1_1x1." in name for name in state_dict):
        return "the stages and stem of timm's ByobNet (such as resnet33ts and resnet50_clip)"
    if any(".conv2.conv." in name or ".conv2.attn." in name for name in state_dict):
        return "split attention (such as ResNeSt and SKNet)"
    if "maxpool.0.weight" in state_dict:
        return "ResNet-RS's stem, which convolves in place of max-pooling"
    if "conv1.6.weight" in state_dict and 2 * width("conv1.0.weight") != width("conv1.6.weight"):
        return "a stem whose convolutions widen one by one (timm's -T)"
    if "conv1.0.weight" in state_dict and "layer2.0.downsample.0.weight" in state_dict:
        return "a deep stem and plain shortcuts (timm's -C and -S, and senet154)"
    if "bn1.weight" in state_dict and "bn1.running_mean" not in state_dict:
        return "norms without running statistics (such as group norm)"
    return None


def _misfit(
    difference: Difference,
    state_dict: Mapping[str, Any],
    spec: NetworkSpec,
    scheme: Scheme,
    source: str,
) -> WeightsError:
    missing, unexpected, misshapen = difference
    name = model_name(spec.architecture) or "the network"
    reasons = difference.phrases()
    remedy = "python -m resnext_jax.interop.torch inspect FILE names the model that a file fits"
    kind = kind_of_stranger(state_dict)
    if kind is not None:
        reasons.insert(0, f"it is of a network with {kind}, which is not built here")
        remedy = "use weights of a network that list_models() names"
    classes = misshapen.get(f"{scheme.classifier}.bias", ((), ()))[0]
    if len(classes) == 1:
        reasons.insert(0, f"it is for {classes[0]} classes, the model has {spec.num_classes}")
        head = {f"{scheme.classifier}.weight", f"{scheme.classifier}.bias"}
        if not missing and not unexpected and misshapen.keys() <= head:
            remedy = (
                f"build the model with num_classes={classes[0]}, or load all but the classifier "
                "(classifier=False)"
            )
    return WeightsError(
        f"{source} does not fit {name}: {'; '.join(reasons)}; {remedy}.",
        missing=missing,
        unexpected=unexpected,
        misshapen=misshapen,
    )


def _shape(value: Any) -> Shape:
    # Reading the attribute does not copy a tensor from its device.
    return tuple(getattr(value, "shape", None) or np.shape(value))


def _shapes(arrays: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _as_floats(value: Any, name: str, source: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # what PyTorch's tensors raise
        raise WeightsError(
            f"{name} of {source} cannot be read by NumPy ({' '.join(str(error).split())}); give "
            "tensors as tensor.detach().cpu().float() makes them."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise WeightsError(
            f"{name} of {source} is of dtype {array.dtype}, where weights are floating point; "
            "quantised weights cannot be read."
        )
    return array


def _placed_like(array: jax.Array, old: Any) -> jax.Array:
    """Put an array where the old one was put on purpose; a skeleton's are nowhere."""
    return jax.device_put(array, old.sharding) if getattr(old, "committed", False) else array
