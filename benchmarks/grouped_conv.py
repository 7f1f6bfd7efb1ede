"""Time the 3x3 convolutions of ResNeXts in every lowering of `grouped_conv`.

    python benchmarks/grouped_conv.py --network resnext29_8x64d --batch 8
    python benchmarks/grouped_conv.py --network resnext50_32x4d resnext101_64x4d --batch 64 \
        --dtype bfloat16 --implementations native packed grouped_packs --pack-channels 64 128

Each is timed forward and for both gradients, beside a dense convolution (one
group, fewer channels) of the same map size and exactly as many multiply-adds:
what the layer would cost if grouping cost nothing. Where PyTorch is installed
and computes on the same device, its grouped convolution (channels last) is
timed in turn with ours.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure, torch_device
from benchmarks.conv_layers import Layer, layers_of, lowered_by, network_name
from resnext_jax.ops import cpu
from resnext_jax.ops.grouped_conv import Implementation, grouped_conv

_PASSES = ("forward", "input grad", "kernel grad")

# The lowerings that have packs.
_PACKED = ("packed", "grouped_packs")

# Names of columns.
_DENSE = "dense"
_TORCH = "torch"


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


Operands = tuple[jax.Array, jax.Array, jax.Array]
Run = Callable[[], Any]
Key = tuple[str, str]  # pass and variant


@dataclasses.dataclass(frozen=True)
class Result:
    """The time of one pass through one layer, by variant.

    Attributes:
      network: of the layer.
      layer: what was computed.
      direction: which pass.
      timings: of the variants that worked.
      failures: why the others did not.
    """

    network: str
    layer: Layer
    direction: str
    timings: dict[str, measure.Timing]
    failures: dict[str, str]

    def cell(self, name: str) -> str:
        """Return a variant's cell of the table."""
        return self.timings[name].cell() if name in self.timings else "failed"


def variants_of(
    implementations: Sequence[Implementation], pack_channels: Sequence[int]
) -> list[Variant]:
    """List what to compare, the dense convolution first."""
    return [
        Variant(_DENSE, "native", dense=True),
        *(Variant(name, name) for name in implementations),
        *(
            Variant(f"{name}@{width}", name, pack_channels=width)
            for name in implementations
            if name in _PACKED
            for width in pack_channels
        ),
    ]


def trace_pass(
    layer: Layer, variant: Variant, direction: str, operands: Operands
) -> jax.stages.Lowered:
    """Trace one pass through a layer, ready to be compiled."""
    groups = 1 if variant.dense else layer.groups

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

    with lowered_by(pack_channels=variant.pack_channels):
        return jax.jit(run).lower(*operands)


def draw_operands(layer: Layer, dense: bool, batch: int, dtype: str) -> Operands:
    """Draw input, kernel and the output's gradient."""
    inputs, outputs = layer.dense_widths if dense else (layer.channels, layer.channels)
    out_size = layer.size // layer.strides
    return (
        _random((batch, layer.size, layer.size, inputs), dtype),
        _random((3, 3, inputs // (1 if dense else layer.groups), outputs), dtype),
        _random((batch, out_size, out_size, outputs), dtype),
    )


def _random(shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def compile_layer(
    layer: Layer, variants: Sequence[Variant], batch: int, dtype: str
) -> tuple[dict[Key, Run], dict[Key, str]]:
    """Compile all passes of a layer in all variants, several at once.

    Returns:
      By pass and variant: what can be run, and why the others cannot. Any
      exception counts, because the other columns are worth having.
    """
    runs: dict[Key, Run] = {}
    failures: dict[Key, str] = {}
    operands = {dense: draw_operands(layer, dense, batch, dtype) for dense in (True, False)}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiling = {}
        for direction in _PASSES:
            for variant in variants:
                inputs = operands[variant.dense]
                key = direction, variant.name
                try:
                    # Tracing stays in this thread: `lowered_by` changes a global table.
                    lowered = trace_pass(layer, variant, direction, inputs)
                except Exception as error:
                    failures[key] = measure.shortened(error)
                else:
                    compiling[key] = pool.submit(lowered.compile), inputs
        for key, (future, inputs) in compiling.items():
            try:
                runs[key] = functools.partial(future.result(), *inputs)
            except Exception as error:
                failures[key] = measure.shortened(error)
    return runs, failures


def torch_layer(layer: Layer, batch: int, dtype: str) -> tuple[dict[Key, Run], dict[Key, str]]:
    """Return PyTorch's passes through a layer, as `compile_layer` does ours."""
    torch_conv = importlib.import_module("benchmarks.torch_conv")
    try:
        passes = torch_conv.TorchConv(
            batch=batch,
            size=layer.size,
            channels=layer.channels,
            groups=layer.groups,
            stride=layer.strides,
            dtype=dtype,
        ).passes()
    except Exception as error:
        return {}, {(direction, _TORCH): measure.shortened(error) for direction in _PASSES}
    return {(name, _TORCH): run for name, run in zip(_PASSES, passes, strict=True)}, {}


def measure_layer(
    network: str,
    layer: Layer,
    variants: Sequence[Variant],
    args: argparse.Namespace,
    *,
    torch: bool,
) -> Iterator[Result]:
    """Time every pass through a layer."""
    measure.progress(f"{network} {layer.label}")
    runs, failures = compile_layer(layer, variants, args.batch, args.dtype)
    if torch:
        their_runs, their_failures = torch_layer(layer, args.batch, args.dtype)
        runs.update(their_runs)
        failures.update(their_failures)
    for direction in _PASSES:
        reasons = {name: why for (chosen, name), why in failures.items() if chosen == direction}
        timings = measure.interleave(
            {name: run for (chosen, name), run in runs.items() if chosen == direction},
            rounds=args.rounds,
            limit=args.limit,
            waits={_TORCH: torch_device.wait},
            failures=reasons,
        )
        yield Result(network, layer, direction, timings, reasons)


def print_layers(results: Sequence[Result], names: Sequence[str], limit: float) -> None:
    """Print the time of each layer."""
    rows = [
        [
            result.layer.label,
            result.direction,
            str(result.layer.uses),
            "{}->{}".format(*result.layer.dense_widths),
            *(result.cell(name) for name in names),
        ]
        for result in results
    ]
    measure.print_table(["layer", "pass", "uses", "dense is", *names], rows, left=2)
    for result in results:
        for name, reason in result.failures.items():
            print(f"{result.layer.label}, {result.direction}, {name}: failed: {reason}")
    print(f"Milliseconds a call: median (min-max); {measure.cut_note(limit)}\n")


def print_network(network: str, results: Sequence[Result], names: Sequence[str]) -> None:
    """Print what the convolutions of the whole network take together."""
    rows = []
    for direction in (*_PASSES, "all three"):
        chosen = [r for r in results if direction in (r.direction, "all three")]
        totals = {name: _total(chosen, name) for name in names}
        rows.append([direction, *(_share(totals[name], totals[_DENSE]) for name in names)])
    print(f"All 3x3 convolutions of {network}: milliseconds (times dense), sums of medians.")
    measure.print_table(["pass", *names], rows, left=1)
    print(flush=True)


def _total(results: Sequence[Result], name: str) -> float | None:
    """Add up a variant's medians; None where one is missing."""
    if any(name not in result.timings for result in results):
        return None
    return sum(result.layer.uses * result.timings[name].median for result in results)


def _share(total: float | None, dense: float | None) -> str:
    if total is None or dense is None:
        return "-"
    return f"{measure.milliseconds(total)} ({total / dense:.2f}x)"


def records(results: Sequence[Result]) -> list[dict[str, object]]:
    """Return what the JSON file says, a record for each layer, pass and variant."""
    found: list[dict[str, object]] = []
    for result in results:
        common = {
            "network": result.network,
            **dataclasses.asdict(result.layer),
            "dense_widths": result.layer.dense_widths,
            "macs_per_image": result.layer.macs,
            "pass": result.direction,
        }
        for name, timing in result.timings.items():
            found.append(common | {"variant": name, **timing.as_record()})
        for name, reason in result.failures.items():
            found.append(common | {"variant": name, "failed": reason})
    return found


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = measure.make_parser(__doc__)
    parser.add_argument(
        "--network",
        nargs="+",
        type=network_name,
        default=["resnext50_32x4d"],
        metavar="NAME",
        help="models whose convolutions to time (default: resnext50_32x4d)",
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
    measure.add_implementations_option(
        parser,
        default=["native", "packed", "auto"],
        purpose="lowerings to compare with the dense convolution",
    )
    parser.add_argument(
        "--pack-channels",
        nargs="+",
        type=measure.positive_int,
        default=[],
        metavar="WIDTH",
        help="also time packed and grouped_packs, of those chosen, with packs this wide at least",
    )
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    measure.add_image_size_option(parser)
    measure.add_common_options(parser, rounds=10, limit=2.0)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    cpu.keep_memory()  # as train.py does
    if args.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if not args.no_torch:
        torch_device.share_gpu()
    surroundings = measure.environment()
    measure.print_heading(f"3x3 convolutions, batch {args.batch}, {args.dtype}", surroundings)
    surroundings["torch"] = torch_device.set_up(wanted=not args.no_torch)
    with_torch = surroundings["torch"]["used"]
    variants = variants_of(args.implementations, args.pack_channels)
    names = [variant.name for variant in variants] + [_TORCH] * with_torch
    results: list[Result] = []
    for network in args.network:
        for layer in layers_of(network, args.image_size):
            results += measure_layer(network, layer, variants, args, torch=with_torch)
            if args.json:  # after every layer, so that a run cut short leaves what it had
                measure.write_json(args.json, "grouped_conv", args, surroundings, records(results))
        of_network = [result for result in results if result.network == network]
        print_layers(of_network, names, args.limit)
        print_network(network, of_network, names)


if __name__ == "__main__":
    main()
