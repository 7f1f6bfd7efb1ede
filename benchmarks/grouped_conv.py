"""Time the 3x3 convolutions of a ResNeXt in every lowering of `grouped_conv`.

    python benchmarks/grouped_conv.py --network resnext29_8x64d --batch 8

Each is timed forward and for both gradients, beside a dense convolution (one
group, fewer channels) of the same map size and exactly as many multiply-adds:
what the layer would cost if grouping cost nothing.
"""

import argparse
import contextlib
import dataclasses
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure
from resnext_jax.models.registry import parse_name
from resnext_jax.ops.grouped_conv import Implementation, grouped_conv

# By name, because the package's attribute of that name is the function.
_LOWERINGS = importlib.import_module("resnext_jax.ops.grouped_conv")

# Height and width of the maps in the first stage, for images of 224 and of 32 pixels.
_FIRST_MAP = {"imagenet": 56, "cifar": 32}

_PASSES = ("forward", "input grad", "kernel grad")


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


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to compute a layer.

    Attributes:
      name: heads its column.
      implementation: of `grouped_conv`.
      dense: whether it is the dense convolution of equal cost instead.
      pack_channels: narrowest pack to try instead of the module's own choice.
    """

    name: str
    implementation: Implementation
    dense: bool = False
    pack_channels: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """The time of one pass through one layer, by variant."""

    layer: Layer
    direction: str
    timings: dict[str, measure.Timing]


def layers_of(network: str) -> list[Layer]:
    """List the network's different 3x3 convolutions, without the stem, at its usual image size."""
    architecture = parse_name(network)
    size = _FIRST_MAP[architecture.stem]
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


def variants_of(
    implementations: Sequence[Implementation], pack_channels: Sequence[int]
) -> list[Variant]:
    """List what to compare, the dense convolution first."""
    return [
        Variant("dense", "native", dense=True),
        *(Variant(name, name) for name in implementations),
        *(Variant(f"packed@{width}", "packed", pack_channels=width) for width in pack_channels),
    ]


def compile_pass(
    layer: Layer, variant: Variant, direction: str, batch: int, dtype: str
) -> Callable[[], jax.Array]:
    """Compile one pass through a layer, on random inputs."""
    inputs, outputs = layer.dense_widths if variant.dense else (layer.channels, layer.channels)
    groups = 1 if variant.dense else layer.groups
    out_size = layer.size // layer.strides
    operands = (
        _random((batch, layer.size, layer.size, inputs), dtype),
        _random((3, 3, inputs // groups, outputs), dtype),
        _random((batch, out_size, out_size, outputs), dtype),
    )

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return grouped_conv(
            x,
            kernel,
            groups=groups,
            strides=(layer.strides, layer.strides),
            implementation=variant.implementation,
        )

    def run(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        if direction == "forward":
            return conv(x, kernel)
        # A convolution is linear in each argument: of the forward pass, and of
        # the gradient that is not returned, nothing is left once compiled.
        input_gradient, kernel_gradient = jax.vjp(conv, x, kernel)[1](cotangent)
        return input_gradient if direction == "input grad" else kernel_gradient

    with _narrowest_pack(variant.pack_channels, dtype):
        compiled = jax.jit(run).lower(*operands).compile()
    return lambda: compiled(*operands)


def _random(shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def _narrowest_pack(channels: int | None, dtype: str) -> contextlib.AbstractContextManager[object]:
    """While a computation is traced, pack at least so many channels; None changes nothing."""
    if channels is None:
        return contextlib.nullcontext()
    return mock.patch.dict(_LOWERINGS._CPU_PACK_CHANNELS, {dtype: channels})


def measure_layers(
    layers: Sequence[Layer], variants: Sequence[Variant], args: argparse.Namespace
) -> list[Result]:
    """Time every pass through every layer."""
    results = []
    for layer in layers:
        for direction in _PASSES:
            measure.progress(f"{layer.label}, {direction}")
            runs = {
                variant.name: compile_pass(layer, variant, direction, args.batch, args.dtype)
                for variant in variants
            }
            timings = measure.interleave(runs, rounds=args.rounds, limit=args.limit)
            results.append(Result(layer, direction, timings))
    return results


def print_layers(results: Sequence[Result], limit: float) -> None:
    """Print the time of each layer."""
    rows = [
        [
            result.layer.label,
            result.direction,
            str(result.layer.uses),
            "{}->{}".format(*result.layer.dense_widths),
            *(timing.cell() for timing in result.timings.values()),
        ]
        for result in results
    ]
    names = list(results[0].timings)
    measure.print_table(["layer", "pass", "uses", "dense is", *names], rows, left=2)
    print(f"Milliseconds a call: median (min-max); {measure.cut_note(limit)}\n")


def print_network(results: Sequence[Result]) -> None:
    """Print what the convolutions of the whole network take together."""
    names = list(results[0].timings)
    rows = []
    for direction in (*_PASSES, "all three"):
        chosen = [r for r in results if direction in (r.direction, "all three")]
        total = {name: sum(r.layer.uses * r.timings[name].median for r in chosen) for name in names}
        rows.append(
            [direction]
            + [
                f"{measure.milliseconds(total[name])} ({total[name] / total['dense']:.2f}x)"
                for name in names
            ]
        )
    print("All of the network's 3x3 convolutions: milliseconds (times dense), sums of medians.")
    measure.print_table(["pass", *names], rows, left=1)


def records(results: Sequence[Result]) -> list[dict[str, object]]:
    """Return what the JSON file says, a record for each layer, pass and variant."""
    return [
        {
            **dataclasses.asdict(result.layer),
            "dense_widths": result.layer.dense_widths,
            "macs_per_image": result.layer.macs,
            "pass": result.direction,
            "variant": name,
            **timing.as_record(),
        }
        for result in results
        for name, timing in result.timings.items()
    ]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Time the 3x3 convolutions of a ResNeXt in every lowering of grouped_conv."
    )
    parser.add_argument(
        "--network",
        type=measure.model_name,
        default="resnext50_32x4d",
        help="model whose convolutions to time, e.g. resnext29_8x64d (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=measure.positive_int, default=8, help="images (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "float64"),
        default="float32",
        help="of inputs and kernels (default: %(default)s)",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=("auto", "native", "packed"),
        default=["native", "packed", "auto"],
        help="lowerings to compare with the dense convolution (default: all)",
    )
    parser.add_argument(
        "--pack-channels",
        nargs="+",
        type=measure.positive_int,
        default=[],
        metavar="WIDTH",
        help="also time the packed lowering with packs of at least so many channels",
    )
    measure.add_common_options(parser, rounds=10, limit=2.0)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    if args.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    surroundings = measure.environment()
    measure.print_heading(
        f"3x3 convolutions of {args.network}, batch {args.batch}, {args.dtype}", surroundings
    )
    variants = variants_of(args.implementations, args.pack_channels)
    results = measure_layers(layers_of(args.network), variants, args)
    print_layers(results, args.limit)
    print_network(results)
    if args.json:
        measure.write_json(args.json, "grouped_conv", args, surroundings, records(results))


if __name__ == "__main__":
    main()
