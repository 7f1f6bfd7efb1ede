"""Parameters and multiply-adds of a network, by layer and by stage.

A multiply-add counts as one operation, like the paper's "FLOPs". Convolutions (including padding)
and the classifier are counted, batch norm and ReLU are not. The count is analytic, from the shapes
of the traced network: a lowering's additional multiplications (packing's zeros) are not included.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from resnext_jax.models.registry import create_model, parse_name
from resnext_jax.models.variables import merge, skeleton, split


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Cost of one convolution, batch normalisation or classifier.

    Attributes:
      name: dotted path of the layer in the network.
      params: number of parameters.
      macs: multiply-adds per image; 0 for batch normalisation.
      output_shape: `(H, W, C)`, or `(K,)` for the classifier; () for batch norm.
    """

    name: str
    params: int
    macs: int
    output_shape: tuple[int, ...] = ()

    @property
    def stage(self) -> str:
        """The paper's name of the part: "conv1" (the stem), "conv2", ..., or "fc".

        The last batch norm of pre-activation networks counts as part of "fc".
        """
        parts = self.name.split(".")
        if parts[0] == "stages":
            return parts[1]
        return "conv1" if parts[0] == "stem" else "fc"


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Cost of a network.

    Attributes:
      name: name of the model.
      image_size: side of the square image that multiply-adds are counted for.
      by_layer: the layers, in the order of stages and blocks, and by name inside a block.
    """

    name: str
    image_size: int
    by_layer: tuple[LayerCost, ...]

    @property
    def params(self) -> int:
        """Total number of parameters."""
        return sum(layer.params for layer in self.by_layer)

    @property
    def macs(self) -> int:
        """Total multiply-adds per image."""
        return sum(layer.macs for layer in self.by_layer)

    @property
    def by_stage(self) -> dict[str, tuple[int, int]]:
        """Parameters and multiply-adds of each stage."""
        stages: dict[str, tuple[int, int]] = {}
        for layer in self.by_layer:
            params, macs = stages.get(layer.stage, (0, 0))
            stages[layer.stage] = params + layer.params, macs + layer.macs
        return dict(sorted(stages.items()))


def complexity(
    name: str, *, image_size: int | None = None, num_classes: int | None = None, **options: Any
) -> Complexity:
    """Count parameters and multiply-adds of a model (paper Tables 1, 3, 4 and 7).

    Args:
      name: see `list_models`.
      image_size: side of the square image; None means 224 for ImageNet
        networks and 32 for CIFAR ones.
      num_classes: None means 1000 for ImageNet networks and 10 for CIFAR ones.
      **options: options of `create_model`, such as `residual=False`.

    Raises:
      ValueError: unknown or impossible model, or image_size below 1.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}.")
    architecture = parse_name(name)
    image_size = architecture.usual_image_size if image_size is None else image_size
    num_classes = architecture.usual_classes if num_classes is None else num_classes
    # With the native lowering, every layer is one operation of the traced network.
    model = skeleton(
        lambda rngs: create_model(
            name, num_classes=num_classes, rngs=rngs, conv_implementation="native", **options
        )
    )
    model.eval()
    graphdef, params, batch_stats = split(model)
    channels = model.spec.architecture.in_channels
    images = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)

    def apply(params: Any, batch_stats: Any, images: Any) -> Any:
        return merge(graphdef, params, batch_stats)(images)

    traced = jax.make_jaxpr(apply)(params, batch_stats, images)
    operations = _kernel_operations(traced, list(params))
    layers: dict[str, LayerCost] = {}
    for array_name, array in params.items():
        layer = array_name.rpartition(".")[0]
        cost = layers.get(layer, LayerCost(layer, 0, 0))
        macs, shape = operations.get(array_name, (0, ()))
        layers[layer] = LayerCost(
            layer, cost.params + array.size, cost.macs + macs, cost.output_shape or shape
        )
    in_order = sorted(layers.values(), key=_position)
    return Complexity(name, image_size, tuple(in_order))


def _position(layer: LayerCost) -> tuple[Any, ...]:
    """Return the sort key of a layer: stage, block, name."""
    parts = layer.name.split(".")
    block = int(parts[2]) if parts[0] == "stages" else 0
    return layer.stage, block, layer.name == "fc", layer.name


def _kernel_operations(traced: Any, names: list[str]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Find the convolution or matrix product that uses each kernel.

    Returns:
      Multiply-adds and output shape (without the batch axis), keyed by the kernel's name.
    """
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    # Dictionaries are flattened by sorted key; the parameters come first.
    kernels = dict(zip(traced.jaxpr.invars, sorted(names), strict=False))
    for equation, origin in _equations(traced.jaxpr, kernels):
        kernel = origin.get(equation.invars[1])
        if kernel is None:
            raise ValueError(f"{equation.primitive} without a kernel that is a parameter.")
        shape = equation.outvars[0].aval.shape
        # All axes of the kernel but the last, its outputs, are summed over.
        summed = math.prod(equation.invars[1].aval.shape[:-1])
        found[kernel] = math.prod(shape) * summed, tuple(shape[1:])
    return found


def _equations(jaxpr: Any, origin: dict[Any, str]) -> Iterator[tuple[Any, dict[Any, str]]]:
    """Yield each convolution and matrix product, with a map from variables to kernel names."""
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        if inner is not None:
            closed = getattr(inner, "jaxpr", inner)
            pairs = zip(closed.invars, equation.invars, strict=True)
            inherited = {
                variable: origin[outer]
                for variable, outer in pairs
                if isinstance(outer, core.Var) and outer in origin
            }
            yield from _equations(closed, inherited)
        elif equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation, origin
        elif equation.primitive.name == "convert_element_type" and equation.invars[0] in origin:
            origin = origin | {equation.outvars[0]: origin[equation.invars[0]]}


def width_for_cardinality(cardinality: int) -> int:
    """Solve Eqn. 4 for the bottleneck width d at cardinality C (paper Table 2).

    The result is the integer d for which C * (256 d + 9 d^2 + 256 d) is closest to the 69,632
    parameters of ResNet's block (C = 1, d = 64).

    Raises:
      ValueError: C is less than 1, or so large that even d = 1 is off by more
        than a quarter.
    """
    if cardinality < 1:
        raise ValueError(f"cardinality must be at least 1, got {cardinality}.")
    target = _block_parameters(1, 64)
    width = min(range(1, 65), key=lambda width: abs(_block_parameters(cardinality, width) - target))
    if abs(_block_parameters(cardinality, width) - target) > target / 4:
        raise ValueError(
            f"no bottleneck width keeps a block of cardinality {cardinality} near "
            f"{target:,} parameters: d = 1 has {_block_parameters(cardinality, 1):,} already."
        )
    return width


def _block_parameters(cardinality: int, width: int) -> int:
    """Eqn. 4: convolution weights of a bottleneck block between 256 channels."""
    return cardinality * (256 * width + 9 * width**2 + width * 256)
