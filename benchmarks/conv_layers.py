"""The 3x3 convolutions of a network, for benchmarks, and another choice of their lowering."""

import argparse
import contextlib
import dataclasses
import importlib
import math
from typing import Any
from unittest import mock

from resnext_jax.models.registry import parse_name

# By name, because the package's attribute of that name is the function.
_LOWERINGS = importlib.import_module("resnext_jax.ops.grouped_conv")

# How many times smaller than the image the maps of the first stage are.
_STEM_STRIDE = {"imagenet": 4, "cifar": 1}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A 3x3 convolution of a network.

    Attributes:
      stage: "conv2", "conv3", ...
      size: height and width of its input.
      channels: of input and output.
      groups: the cardinality.
      strides: 1 or 2, both ways.
      uses: how many such convolutions the network has.
    """

    stage: str
    size: int
    channels: int
    groups: int
    strides: int
    uses: int

    @property
    def label(self) -> str:
        """Stage, input shape and stride."""
        stride = f" /{self.strides}" if self.strides > 1 else ""
        return f"{self.stage} {self.size}x{self.size}x{self.channels}{stride}"

    @property
    def dense_widths(self) -> tuple[int, int]:
        """Input and output channels of the dense convolution with as many multiply-adds.

        The two factors nearest to each other: equal widths would seldom be whole.
        """
        product = self.channels * self.channels // self.groups
        width = next(w for w in range(math.isqrt(product), 0, -1) if product % w == 0)
        return width, product // width

    @property
    def macs(self) -> int:
        """Multiply-adds an image, of any of the three passes."""
        return (self.size // self.strides) ** 2 * 9 * self.channels**2 // self.groups


def layers_of(network: str, image_size: int | None = None) -> list[Layer]:
    """List the network's different 3x3 convolutions, without the stem; None is its usual size.

    Raises:
      ValueError: no such model, or one of basic blocks.
    """
    architecture = parse_name(network)
    if architecture.basic:
        raise ValueError(f"{network!r} has basic blocks; name a network of bottleneck blocks.")
    size = max(1, (image_size or architecture.usual_image_size) // _STEM_STRIDE[architecture.stem])
    layers = []
    for stage, blocks in enumerate(architecture.blocks):
        channels = architecture.cardinality * architecture.group_width * 2**stage
        shape = (channels, architecture.cardinality)
        name = f"conv{stage + 2}"
        if stage > 0:
            layers.append(Layer(name, size, *shape, strides=2, uses=1))
            size //= 2
        same_size = blocks - 1 if stage > 0 else blocks
        if same_size:
            layers.append(Layer(name, size, *shape, strides=1, uses=same_size))
    return layers


def network_name(text: str) -> str:
    """Read the name of a network for `layers_of` from the command line."""
    try:
        layers_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def lowered_by(
    name: str = "auto", pack_channels: int | None = None
) -> contextlib.AbstractContextManager[object]:
    """While a computation is traced, have `auto` lower grouped convolutions in another way.

    Args:
      name: of the lowering; "auto" is the table's own.
      pack_channels: of its packs, at least; None is the table's own. With neither nothing changes.
    """
    if name == "auto" and pack_channels is None:
        return contextlib.nullcontext()
    usual = _LOWERINGS.measured_lowering

    def chosen(dtype: Any, *, portable: bool = False) -> Any:
        row = usual(dtype, portable=portable)
        return dataclasses.replace(
            row,
            grouped=row.grouped if name == "auto" else name,
            pack_channels=pack_channels or row.pack_channels,
            one_pack_channels=0,
        )

    return mock.patch.object(_LOWERINGS, "measured_lowering", chosen)
