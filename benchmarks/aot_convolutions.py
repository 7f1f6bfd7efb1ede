"""Estimate a network's grouped convolutions on TPUs that are not there, in every lowering.

    python benchmarks/aot_convolutions.py --topology v5e:2x2 --network resnext50_32x4d \
        --per-chip 32 128 --dtype bfloat16 --lowering native packed@128 grouped_packs@128

Each 3x3 convolution is compiled between two 1x1 convolutions of as many channels and ReLUs, as it
is part of a block, so that XLA may choose how the maps between them lie; forward and with all
gradients. The figures are XLA's estimates for the whole program, in millions of cycles: nothing is
run (`aot.py` explains what an estimate is). They are where the rows for TPUs of
`resnext_jax/ops/lowerings.json` come from. Compiling takes seconds a cell.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Read when JAX is imported: errors alone, of which that there is no TPU is none.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import aot, hlo, measure
from benchmarks.conv_layers import Layer, layers_of, lowered_by, network_name
from resnext_jax.errors import reports_user_errors
from resnext_jax.ops.grouped_conv import grouped_conv
from resnext_jax.ops.target import compiling_for

Lowering = tuple[str, int | None]


def compile_layer(
    layer: Layer, lowering: Lowering, images: int, dtype: str, device: jax.Device
) -> int:
    """Return the estimated cycles of a layer between its neighbours."""
    no_padding = ((0, 0), (0, 0))

    def network(x: jax.Array, kernels: Sequence[jax.Array]) -> jax.Array:
        before, grouped, after = kernels
        x = jax.nn.relu(grouped_conv(x, before, groups=1, padding=no_padding))
        strides = (layer.strides, layer.strides)
        x = jax.nn.relu(grouped_conv(x, grouped, groups=layer.groups, strides=strides))
        return grouped_conv(x, after, groups=1, padding=no_padding)

    def step(x: jax.Array, kernels: Sequence[jax.Array], dy: jax.Array) -> Any:
        with compiling_for("tpu"), lowered_by(*lowering):
            y, pull = jax.vjp(network, x, kernels)
            return y, pull(dy)

    # A mesh of one, because a device of a topology cannot be a computation's default.
    sharding = NamedSharding(Mesh(np.array([device]), ("chip",)), PartitionSpec())

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    channels, out = layer.channels, layer.size // layer.strides
    pointwise = array(1, 1, channels, channels)
    kernels = pointwise, array(3, 3, channels // layer.groups, channels), pointwise
    arguments = (
        array(images, layer.size, layer.size, channels),
        kernels,
        array(images, out, out, channels),
    )
    text = jax.jit(step).lower(*arguments).compile().as_text() or ""
    return sum(hlo.estimated_cycles(text).values())


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = measure.make_parser(__doc__)
    parser.add_argument("--topology", default="v5e:2x2", help="(default: %(default)s)")
    parser.add_argument(
        "--network",
        nargs="+",
        type=network_name,
        default=["resnext50_32x4d"],
        help="as create_model has them (default: resnext50_32x4d)",
    )
    parser.add_argument(
        "--strides",
        nargs="+",
        type=int,
        choices=(1, 2),
        default=[1, 2],
        help="of the layers to compile (default: both)",
    )
    parser.add_argument(
        "--per-chip",
        nargs="+",
        type=measure.positive_int,
        default=[32],
        metavar="N",
        help="images (default: 32)",
    )
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], help="(default: bfloat16)")
    parser.add_argument(
        "--lowering",
        nargs="+",
        type=aot.lowering,
        default=[("native", None), ("grouped_packs", 128)],
        metavar="NAME",
        help="native, packed@CHANNELS, grouped_packs@CHANNELS",
    )
    parser.add_argument("--json", type=measure.output_file, metavar="FILE", help="also write JSON")
    return parser


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Compile all, and print a table for each number of images and dtype."""
    args = make_parser().parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    # Of no use for TPUs, whose topology needs no description of a chip.
    device = aot.find_chips("tpu", args.topology, Path()).devices[0]
    surroundings = measure.environment()
    names = [f"{name}@{width}" if width else name for name, width in args.lowering]
    measure.print_heading(
        f"3x3 convolutions between 1x1, forward and gradients, {device.device_kind} "
        f"({args.topology}), estimated cycles in millions; compiled by",
        surroundings,
    )
    # Networks of one width have the same convolutions, whatever their depth.
    layers = {
        f"{layer.label} g{layer.groups}": layer
        for network in args.network
        for layer in layers_of(network)
        if layer.strides in args.strides
    }
    rows = []
    for dtype in args.dtype:
        for images in args.per_chip:
            table = []
            for label, layer in layers.items():
                cycles = [
                    compile_layer(layer, lowering, images, dtype, device)
                    for lowering in args.lowering
                ]
                measure.progress(f"{dtype}, {images} images: {label}")
                table.append([label, *(f"{each / 1e6:.2f}" for each in cycles)])
                rows.append(
                    {
                        "layer": dataclasses.asdict(layer),
                        "dtype": dtype,
                        "images": images,
                        "cycles": dict(zip(names, cycles, strict=True)),
                    }
                )
            print(f"\n{dtype}, {images} images a chip")
            measure.print_table(["layer", *names], table, left=1)
            if args.json:
                measure.write_json(args.json, "aot_convolutions", args, surroundings, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
