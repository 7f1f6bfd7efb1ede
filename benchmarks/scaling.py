"""What data parallelism adds to a training step: its collectives, read from the compiled program.

    python benchmarks/scaling.py --model resnext50_32x4d --images-per-device 2

Compiles the training step, and does not run it, for 1, 2, 4 and 8 virtual CPU
devices with as many images a device. Of each it reports the collectives by
kind, with the bytes of their results on a device, beside those that must be
there: an all-reduce of every gradient, of the running statistics and of three
metrics, 4 bytes each. Batch-norm groups are what one device holds, as in the
paper. The arithmetic of a device must not depend on their number, and its
memory for intermediate results should hardly.

Exit status 1: another collective, other bytes, or other arithmetic was found.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

# Run as a file, Python looks for modules beside it and not in the repository.
_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from benchmarks import hlo, measure
from benchmarks.jax_step import OPTIMIZER, JaxVariant, abstract_model, place, training_step
from benchmarks.program import Setting
from resnext_jax.parallel.mesh import batch_sharding, make_mesh, replicated_sharding
from resnext_jax.training.state import TrainState

# Loss and two error rates.
_METRICS = 3

# Share by which the floating-point operations of a device may differ from those
# on one device: the average over devices is a few operations a parameter, which
# with two small images a device is 2.5 %. A device that computed what another
# does would have twice as many.
_TOLERANCE = 0.05


def expected_bytes(params: Mapping[str, Any], batch_stats: Mapping[str, Any]) -> tuple[int, int]:
    """Return what one step must reduce at least and at most, in bytes.

    At most every gradient, running statistic and metric. But where a projection
    is added to a block's output, both ends' batch norms have the same gradient
    of the bias, and a compiler that sees it reduces one of the two.
    """
    arrays = [*params.values(), *batch_stats.values()]
    most = sum(math.prod(array.shape) for array in arrays) + _METRICS
    twins = sum(
        math.prod(array.shape)
        for name, array in params.items()
        if ".shortcut" in name and name.endswith(".bias")
    )
    return 4 * (most - twins), 4 * most


def compile_step(args: argparse.Namespace, devices: int) -> dict[str, Any]:
    """Compile the training step for a number of devices, and read its cost from the program."""
    setting = Setting(args.model, args.dtype, devices * args.images_per_device, args.image_size)
    mesh = make_mesh(setting.batch, args.images_per_device, jax.devices()[:devices])
    variant = JaxVariant(args.model, "c", args.implementation)
    graphdef, params, batch_stats = abstract_model(variant, setting)
    state = jax.eval_shape(lambda: TrainState.create(params, batch_stats, OPTIMIZER))
    image_shape = (setting.batch, setting.image_size, setting.image_size, 3)
    batch = {
        "image": jax.ShapeDtypeStruct(image_shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct((setting.batch,), jnp.int32),
    }
    arguments = (
        place(state, replicated_sharding(mesh)),
        place(batch, batch_sharding(mesh)),
    )
    compiled = training_step(graphdef, mesh).lower(*arguments).compile()
    costs = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "devices": devices,
        "collectives": hlo.collectives(compiled.as_text() or ""),
        "expected_bytes": expected_bytes(params, batch_stats),
        "flops": costs.get("flops"),
        "temporary_bytes": None if memory is None else int(memory.temp_size_in_bytes),
    }


def compile_elsewhere(arguments: Sequence[str], devices: int) -> dict[str, Any]:
    """Compile in a process of its own: XLA reads the number of devices once.

    Raises:
      RuntimeError: the process failed; its errors were shown.
    """
    measure.progress(f"compiling for {devices} device(s)")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    surroundings = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(
        [*command, "--worker", str(devices)],
        env=surroundings,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"compiling for {devices} device(s) failed.")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def faults_of(record: Mapping[str, Any], alone: Mapping[str, Any]) -> list[str]:
    """Say what should not be so."""
    faults = []
    for kind, (count, size) in record["collectives"].items():
        if kind != "all-reduce":
            faults.append(f"{count} {kind} of {size:,} bytes")
    _, reduced = record["collectives"].get("all-reduce", (0, 0))
    least, most = record["expected_bytes"]
    # Alone, a device has nothing to reduce; XLA may leave the instruction all the same.
    if not least <= reduced <= most and (reduced or record["devices"] > 1):
        faults.append(f"all-reduce of {reduced:,} bytes instead of {least:,} to {most:,}")
    ratio = _ratio(record, alone, "flops")
    if ratio is not None and abs(ratio - 1) > _TOLERANCE:
        faults.append(f"{ratio:.3f} times the floating-point operations of one device")
    return [f"{record['devices']} device(s): {fault}" for fault in faults]


def _ratio(record: Mapping[str, Any], alone: Mapping[str, Any], what: str) -> float | None:
    if record[what] is None or not alone[what]:
        return None
    return float(record[what]) / float(alone[what])


def print_records(found: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each number of devices; the first is what others are compared with."""
    kinds = ["all-reduce"]
    kinds += sorted({kind for record in found for kind in record["collectives"]} - set(kinds))
    rows = []
    for record in found:
        cells = [str(record["devices"])]
        for kind in kinds:
            count, size = record["collectives"].get(kind, (0, 0))
            cells.append(f"{count} ({size / 1e6:.3f} MB)")
        least, most = record["expected_bytes"]
        cells.append(f"{least / 1e6:.3f}-{most / 1e6:.3f} MB")
        for what, unit in (("flops", 1e9), ("temporary_bytes", 2**20)):
            ratio = _ratio(record, found[0], what)
            value = "-" if record[what] is None else measure.three_digits(record[what] / unit)
            cells += [value, "-" if ratio is None else f"{ratio:.3f}"]
        rows.append(cells)
    header = ["devices", *kinds, "expected", "GFLOP a device", "x first", "temp MiB", "x first"]
    measure.print_table(header, rows, left=0)
    print("Collectives: how many, and the bytes of their results on a device. Expected: gradients,")
    print("running statistics and metrics; the least, if equal gradients are reduced once.")


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = measure.make_parser(__doc__)
    parser.add_argument(
        "--model",
        type=measure.model_name,
        default="resnext50_32x4d",
        help="network to train (default: %(default)s)",
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        type=measure.positive_int,
        default=[1, 2, 4, 8],
        metavar="COUNT",
        help="numbers of virtual devices, the first to compare with (default: 1 2 4 8)",
    )
    parser.add_argument(
        "--images-per-device",
        type=measure.positive_int,
        default=2,
        metavar="IMAGES",
        help="also the batch-norm group (default: %(default)s)",
    )
    measure.add_image_size_option(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="compute dtype (default: %(default)s)",
    )
    parser.add_argument(
        "--implementation",
        choices=measure.IMPLEMENTATIONS_3X3,
        default="portable",
        help="lowering of all convolutions (default: %(default)s, of XLA's own operations; XLA "
        "does not count what a library called by 'auto' or 'onednn' does)",
    )
    parser.add_argument("--json", type=measure.output_file, metavar="PATH", help="also write JSON")
    parser.add_argument("--worker", type=measure.positive_int, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run the benchmark, or compile for one number of devices and print its record."""
    args = make_parser().parse_args()
    if args.worker:
        print(json.dumps(compile_step(args, args.worker)))
        return
    jax.config.update("jax_platforms", "cpu")
    surroundings = measure.environment()
    measure.print_heading(
        f"Training step of {args.model} on virtual devices, {args.images_per_device} images each",
        surroundings,
    )
    found = [compile_elsewhere(sys.argv[1:], devices) for devices in args.devices]
    print_records(found)
    rows = [record | {"faults": faults_of(record, found[0])} for record in found]
    if args.json:
        measure.write_json(args.json, "scaling", args, surroundings, rows)
    faults = [fault for row in rows for fault in row["faults"]]
    for fault in faults:
        print(f"fault: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
