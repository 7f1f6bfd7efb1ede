"""PyTorch's names for a network's arrays, found by walking the architecture.

Two schemes are known. torchvision's (`conv1.weight`, `layer1.0.downsample.0.weight`,
`fc.weight`) is also timm's. The other one (`features.4.0.0.0.0.0.weight`,
`last_linear.weight`) is that of the weights that the authors released for Torch7, as
pretrained-models.pytorch (Cadene) converted them: its numbers are places in Torch7's nested
containers.

Architecture and names together give a table of rows: our name, theirs, and our shape, which
implies the layout. PyTorch has convolutions as OIHW where ours are HWIO (grouped ones as well:
I counts the inputs of one group in both), and classifiers as `[out, in]` where ours are
`[in, out]`.
"""

import dataclasses
from collections.abc import Container, Iterator, Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np

from resnext_jax.interop.errors import Shape, WeightsError
from resnext_jax.models.blocks import (
    BASIC,
    BOTTLENECK,
    SE_BASIC,
    SE_BOTTLENECK,
    BlockSpec,
    squeezed,
)
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.resnext import Architecture, NetworkSpec

Collection = Literal["params", "batch_stats"]

# PyTorch counts the batches that a batch norm has seen, here nothing does.
COUNTER = "num_batches_tracked"

# Axes of PyTorch's array, in the order in which ours has them, by the number of axes.
_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}

# What PyTorch calls the arrays of a batch norm.
_NORM: Mapping[str, tuple[Collection, str]] = {
    "scale": ("params", "weight"),
    "bias": ("params", "bias"),
    "mean": ("batch_stats", "running_mean"),
    "var": ("batch_stats", "running_var"),
}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A way to name layers.

    Attributes:
      name: of the scheme.
      stem: the first convolution and its batch norm.
      first_stage: number of the first stage.
      block: what the names of a block's layers begin with, a format of `stage` and `block`; blocks
        are counted from 0.
      layers: the layers of a block, by our name (form c); others have one name in both.
      classifier: the last layer.
    """

    name: str
    stem: tuple[str, str]
    first_stage: int
    block: str
    layers: Mapping[str, str]
    classifier: str

    def layer(self, stage: int, block: int, layer: str) -> str:
        """Name a layer of a block; stages are counted from 0."""
        prefix = self.block.format(stage=self.first_stage + stage, block=block)
        return prefix + self.layers.get(layer, layer)


TORCHVISION = Scheme(
    name="torchvision",
    stem=("conv1", "bn1"),
    first_stage=1,
    block="layer{stage}.{block}.",
    layers={
        "conv1": "conv1",
        "norm1": "bn1",
        "conv2": "conv2",
        "norm2": "bn2",
        "conv3": "conv3",
        "norm3": "bn3",
        "shortcut.conv": "downsample.0",
        "shortcut.norm": "downsample.1",
    },
    classifier="fc",
)

# Of ResNet-D, as timm names it: the stem is a list that counts ReLUs too, and the shortcut's first
# layer is the pooling.
TORCHVISION_D = dataclasses.replace(
    TORCHVISION,
    stem=("conv1.6", "bn1"),
    layers={**TORCHVISION.layers, "shortcut.conv": "downsample.1", "shortcut.norm": "downsample.2"},
)

TORCH7 = Scheme(
    name="Torch7",
    stem=("features.0", "features.1"),
    # Numbers 0 to 3 are convolution, batch norm, ReLU and max-pool.
    first_stage=4,
    # The first thing in a block is the pair of residual function and shortcut.
    block="features.{stage}.{block}.0.",
    layers={
        "conv1": "0.0.0",
        "norm1": "0.0.1",
        "conv2": "0.0.3",
        "norm2": "0.0.4",
        "conv3": "0.1",
        "norm3": "0.2",
        "shortcut.conv": "1.0",
        "shortcut.norm": "1.1",
    },
    classifier="last_linear",
)


@dataclasses.dataclass(frozen=True)
class ArrayRow:
    """One array.

    Attributes:
      ours: its dotted name in form c, see `models.variables`.
      theirs: its name in PyTorch.
      shape: in our layout, form c.
      collection: which of our two dictionaries it is in.
      pointwise: whether it is a matrix in ours and a 1x1 convolution's kernel in PyTorch.
    """

    ours: str
    theirs: str
    shape: Shape
    collection: Collection = "params"
    pointwise: bool = False

    @property
    def torch_shape(self) -> Shape:
        """Its shape in PyTorch."""
        axes = _AXES[len(self.shape)]
        shape = tuple(self.shape[axes.index(axis)] for axis in range(len(axes)))
        return (*shape, 1, 1) if self.pointwise else shape

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Bring PyTorch's array into our layout; a view."""
        array = array.reshape(array.shape[: len(self.shape)])
        return array.transpose(_AXES[array.ndim])

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Bring our array into PyTorch's layout; a contiguous copy."""
        array = array.transpose(np.argsort(_AXES[array.ndim]))
        return np.array(array.reshape(self.torch_shape), order="C")


def scheme_of(names: Container[str]) -> Scheme:
    """Return the naming scheme of a state dict."""
    return TORCH7 if f"{TORCH7.stem[0]}.weight" in names else TORCHVISION


def table(spec: NetworkSpec, scheme: Scheme = TORCHVISION) -> list[ArrayRow]:
    """List the arrays of a network, in the order of a torchvision state dict.

    Args:
      spec: of a `ResNeXt`, in any form; the rows are of form c.
      scheme: Torch7's is only that of ImageNet networks with bottleneck blocks.

    Raises:
      WeightsError: a pre-activation network, or blocks of another kind than `models.blocks` has.
    """
    if spec.architecture.preactivation:
        raise WeightsError(
            "pre-activation networks have no usual names in PyTorch (torchvision has no such "
            "network, and timm's resnetv2 have another stem): use a workdir or a checkpoint."
        )
    if spec.architecture.block not in (BOTTLENECK, BASIC, SE_BOTTLENECK, SE_BASIC):
        raise WeightsError(
            f"{spec.architecture.block.c.__name__} blocks have no usual names in PyTorch: use a "
            "workdir or a checkpoint."
        )
    return list(_rows(spec, TORCHVISION_D if spec.architecture.deep else scheme))


def _rows(spec: NetworkSpec, scheme: Scheme) -> Iterator[ArrayRow]:
    architecture = spec.architecture
    for layer, (theirs, shape) in _stem(architecture, scheme).items():
        yield from _layer(f"stem.{layer}", theirs, shape)
    features = architecture.stem_width
    stages = architecture.block_specs(LayerOptions(), residual=spec.residual)
    for stage, (name, blocks) in enumerate(stages.items()):
        for index, block in enumerate(blocks):
            for layer, shape in _layers(architecture, block).items():
                names = f"stages.{name}.{index}.{layer}", scheme.layer(stage, index, layer)
                yield from _layer(*names, shape)
            features = block.out_features
    yield ArrayRow("fc.kernel", f"{scheme.classifier}.weight", (features, spec.num_classes))
    yield ArrayRow("fc.bias", f"{scheme.classifier}.bias", (spec.num_classes,))


def _stem(architecture: Architecture, scheme: Scheme) -> dict[str, tuple[str, Shape]]:
    """Return PyTorch's name and the shape of each layer of the stem, see `_layers`."""
    size = 7 if architecture.stem == "imagenet" and not architecture.deep else 3
    inputs, width = architecture.in_channels, architecture.stem_width
    layers: dict[str, tuple[str, Shape]] = {}
    if architecture.deep:
        half = width // 2
        layers = {
            "first.conv": ("conv1.0", (3, 3, inputs, half)),
            "first.norm": ("conv1.1", (half,)),
            "second.conv": ("conv1.3", (3, 3, half, half)),
            "second.norm": ("conv1.4", (half,)),
        }
        inputs = half
    return layers | {
        "conv": (scheme.stem[0], (size, size, inputs, width)),
        "norm": (scheme.stem[1], (width,)),
    }


def _layers(architecture: Architecture, block: BlockSpec) -> dict[str, Shape]:
    """Return the shape of each layer of a block.

    That of a convolution's or a linear layer's kernel, or `(features,)` of a batch norm.
    """
    inner, outer = block.width, block.out_features
    layers: dict[str, Shape] = {
        "conv1": (1, 1, block.in_features, inner),
        "norm1": (inner,),
        "conv2": (3, 3, block.group_width, inner),
        "norm2": (inner,),
        "conv3": (1, 1, inner, outer),
        "norm3": (outer,),
    }
    if architecture.basic:
        layers = {
            "conv1": (3, 3, block.in_features, outer),
            "norm1": (outer,),
            "conv2": (3, 3, outer, outer),
            "norm2": (outer,),
        }
    if architecture.block in (SE_BOTTLENECK, SE_BASIC):
        narrow = squeezed(outer)
        layers |= {"se.fc1": (outer, narrow), "se.fc2": (narrow, outer)}
    if block.projects:
        layers |= {"shortcut.conv": (1, 1, block.in_features, outer), "shortcut.norm": (outer,)}
    return layers


def _layer(ours: str, theirs: str, shape: Shape) -> Iterator[ArrayRow]:
    if len(shape) == 1:
        for name, (collection, torch_name) in _NORM.items():
            yield ArrayRow(f"{ours}.{name}", f"{theirs}.{torch_name}", shape, collection)
        return
    yield ArrayRow(f"{ours}.kernel", f"{theirs}.weight", shape, pointwise=len(shape) == 2)
    if len(shape) == 2:
        yield ArrayRow(f"{ours}.bias", f"{theirs}.bias", shape[1:])


def counters(rows: list[ArrayRow]) -> set[str]:
    """Name the counters of batches that PyTorch has beside the running statistics."""
    return {
        f"{row.theirs.removesuffix('running_mean')}{COUNTER}"
        for row in rows
        if row.theirs.endswith("running_mean")
    }


def dtypes(spec: NetworkSpec) -> dict[Collection, np.dtype]:
    """Return the dtypes that the network keeps its arrays in."""
    param_dtype = jnp.dtype(spec.options.param_dtype)
    return {"params": param_dtype, "batch_stats": jnp.promote_types(jnp.float32, param_dtype)}
