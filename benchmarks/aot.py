"""Compile the step that `train.py` would run on TPUs or GPUs, on a machine that has neither.

    python benchmarks/aot.py --platform tpu --topology v5e:2x2 --per-chip 32 \
        --config configs/imagenet.py:resnext50_32x4d --set model.dtype=bfloat16
    python benchmarks/aot.py --platform cuda --topology 1x1x4 --per-chip 32 \
        --config configs/imagenet.py:resnext50_32x4d --set model.dtype=bfloat16

Prints the step's collectives with the bytes of their results, the memory that it is planned to
need on each chip, its floating-point operations, how long compiling took and, by part of the step,
on TPUs XLA's estimate of its cycles, on GPUs its kernels and the bytes that they read and write.
Nothing is run.
docs/performance.md says how to install the compilers. A ResNeXt-50 takes minutes and 4 GB.

Exit status 1: there is a collective other than an all-reduce.
"""

import argparse
import dataclasses
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

if __name__ == "__main__":
    # Read when JAX is imported: errors alone, of which that there is no GPU is none.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

# Run as a file, Python looks for modules beside it and not in the repository.
_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from benchmarks import hlo, measure, plain_flax
from benchmarks.conv_layers import lowered_by
from benchmarks.run_steps import eval_step, network_flops, train_step
from resnext_jax.config import build, cli
from resnext_jax.config.checks import validate
from resnext_jax.errors import UserError, one_line, reports_user_errors

# For libtpu, which would look for a TPU, and refuse a second process that compiles.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any, or it warns
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# Memory of a device as Google Cloud's documentation has it, in bytes, by JAX's name.
_TPU_MEMORY = {
    "TPU v4": 32 * 10**9,
    "TPU v5 lite": 16 * 10**9,
    "TPU v5": 95 * 10**9,
    "TPU v6 lite": 32 * 10**9,
}


T = TypeVar("T")

# Dense bfloat16 operations a second, by NVIDIA's data sheets and the name in `--target`.
_GPU_PEAK = {"NVIDIA H100 80GB HBM3": 989.4e12}

# What starting a kernel takes where the one before is short: an assumption.
_KERNEL_SECONDS = 3e-6


@dataclasses.dataclass(frozen=True)
class Chips:
    """What to compile for.

    Attributes:
      devices: of a topology; they can compile and not run.
      memory: bytes on each, None where unknown.
      bandwidth: of a GPU's memory, bytes a second; None where unknown.
    """

    devices: Sequence[jax.Device]
    memory: int | None
    bandwidth: int | None = None


def find_chips(platform: str, topology: str, target: Path) -> Chips:
    """Describe chips that need not exist.

    Args:
      platform: "tpu" or "cuda".
      topology: as `v5e:2x2`; of GPUs `1x2x4`, partitions, hosts in each and GPUs in each.
      target: of GPUs, the file that describes one.

    Raises:
      UserError: no compiler is installed, there is no such topology, or the file is unusable.
    """
    name, options, memory, bandwidth = topology, {}, None, None
    if platform == "cuda":
        try:
            text = target.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--target={target} cannot be read: {one_line(error)}.") from error
        memory, bandwidth = (
            int(found[1]) if (found := re.search(rf"{field}: *(\d+)", text)) else None
            for field in ("device_memory_size", "memory_bandwidth")
        )
        name, options = target.stem, {"target_config": text, "topology": topology}
    elif topology.startswith("v4:"):
        options = {"chip_config_name": "megacore"}  # as v4 runs: a device for each chip
    os.environ.update(_NO_TPU | os.environ)
    try:
        description = topologies.get_topology_desc(platform=platform, topology_name=name, **options)
    except RuntimeError as error:  # NotImplementedError too
        raise UserError(
            f"--platform={platform} --topology={topology} cannot be compiled for: "
            f"{one_line(error)} (docs/performance.md says what to install)."
        ) from error
    devices: list[jax.Device] = list(description.devices)
    return Chips(devices, memory or _TPU_MEMORY.get(devices[0].device_kind), bandwidth)


def read_config(path: str, changes: Sequence[str], images: int) -> ConfigDict:
    """Read a recipe, with changes as on `train.py`'s command line and a batch of `images`.

    Raises:
      UserError: it is not one of a classifier, or cannot be run.
    """
    arguments = [sys.argv[0], f"--config={path}", *(f"--config.{change}" for change in changes)]
    holder = config_flags.DEFINE_config_file("config", sys_argv=arguments)
    cli.parse_flags(arguments)
    config: ConfigDict = holder.value
    if config.get("task") != "classification":
        raise UserError(f"--config={path} trains a detector; only classifiers are compiled here.")
    config.batch_size = images
    validate(config)
    return config


def lowering(text: str) -> tuple[str, int | None]:
    """Read `auto`, `native`, or `packed@128` with the channels of a pack, from the command line."""
    match = re.fullmatch(r"(auto|native)|(packed|grouped_packs)@([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one of auto, native, packed@CHANNELS, grouped_packs@CHANNELS"
        )
    return (match[1], None) if match[1] else (match[2], int(match[3]))


def compile_step(args: argparse.Namespace, config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Compile, and read what there is to know of the program.

    Raises:
      UserError: the compiler refuses, as where the step needs more memory than a chip has.
    """
    start = time.perf_counter()
    with lowered_by(*args.lowering):
        step, *arguments = _build(args, config, mesh)
        lowered = step.lower(*arguments)
    flops = network_flops(config, arguments[-1], training=args.what != "eval")
    traced = time.perf_counter()
    measure.progress(f"traced in {traced - start:.0f} s, compiling")
    try:
        compiled = lowered.compile()
    except RuntimeError as error:
        raise UserError(f"the compiler refuses this step: {one_line(error, 600)}") from error
    seconds = time.perf_counter() - traced
    text = compiled.as_text() or ""
    memory = compiled.memory_analysis()
    in_place = memory.alias_size_in_bytes
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - in_place,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    return {
        "mesh": dict(mesh.shape),
        "collectives": hlo.collectives(text),
        "memory_bytes": parts,
        "flops": (compiled.cost_analysis() or {}).get("flops"),
        "network_flops": flops // mesh.size,
        "trace_seconds": traced - start,
        "compile_seconds": seconds,
        "estimated_cycles": _nested(hlo.estimated_cycles(text)),
        "kernels": _nested(hlo.kernels(text)) if args.platform == "cuda" else {},
    }


def _build(args: argparse.Namespace, config: ConfigDict, mesh: Mesh) -> tuple[Any, ...]:
    """Return what to compile, and the shapes of its arguments, of which the batch is the last."""
    if args.what == "eval":
        return eval_step(config, mesh)
    if args.what == "train":
        return train_step(config, mesh)
    try:
        return plain_flax.train_step(
            config.model.name,
            config.model.dtype,
            mesh,
            config.batch_size,
            image_size=config.data.image_size,
        )
    except ValueError as error:
        raise UserError(f"--what=plain-flax: {error}") from error


def _nested(found: Mapping[tuple[str, str], T]) -> dict[str, dict[str, T]]:
    nested: dict[str, dict[str, T]] = {}
    for (source, kind), value in found.items():
        nested.setdefault(source, {})[kind] = value
    return nested


def faults_of(record: Mapping[str, Any]) -> list[str]:
    """Name the collectives that data-parallel training should not need."""
    return [
        f"{count} {kind} of {size:,} bytes"
        for kind, (count, size) in record["collectives"].items()
        if kind != "all-reduce"
    ]


def print_record(record: Mapping[str, Any]) -> None:
    """Print what was found."""
    print(f"mesh: {' x '.join(f'{size} {name}(s)' for name, size in record['mesh'].items())}")
    reduced = [
        f"{count} {kind} of {size:,} bytes"
        for kind, (count, size) in sorted(record["collectives"].items())
    ]
    print(f"collectives: {', '.join(reduced) or 'none'} (the bytes of their results)")
    parts = record["memory_bytes"]
    sizes = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    has = record["chip_memory_bytes"]
    print(
        f"planned memory on each chip: {sum(parts.values()) / 1e9:.2f} GB ({sizes}) "
        f"of {f'{has / 1e9:.0f} GB' if has else 'an unknown size'}"
    )
    counted = f", {record['flops'] / 1e9:,.1f} G as XLA counts" if record["flops"] else ""
    print(
        "floating-point operations on each chip: "
        f"{record['network_flops'] / 1e9:,.1f} G of the network's multiply-adds{counted}"
    )
    print(
        f"time: traced in {record['trace_seconds']:.0f} s, "
        f"compiled in {record['compile_seconds']:.0f} s"
    )
    if record["estimated_cycles"]:
        _print_cycles(record["estimated_cycles"])
    if record["kernels"]:
        _print_kernels(record)


def _print_cycles(cycles: Mapping[str, Mapping[str, int]]) -> None:
    total = sum(sum(kinds.values()) for kinds in cycles.values())
    sums = {kind: sum(kinds.get(kind, 0) for kinds in cycles.values()) for kind in hlo.KINDS}
    rows = []
    for source, kinds in [*sorted(cycles.items(), key=_place_in_step), ("all", sums)]:
        each = [kinds.get(kind, 0) for kind in hlo.KINDS]
        numbers = [f"{number / 1e6:.2f}" for number in [*each, sum(each)]]
        rows.append([source, *numbers, f"{100 * sum(each) / total:.1f} %"])
    print("\nestimated cycles on each chip, millions")
    measure.print_table(["", *hlo.KINDS, "all", "share"], rows, left=1)
    print(
        "An estimate is what XLA's cost model expects of an operation when it chooses how to\n"
        "compile it, summed over the program, loops as often as they run. It is no measurement:\n"
        "collectives and XLA's own gradient of max-pool have none, nothing overlaps, and loops\n"
        "bound by memory are estimated too high. It is good for comparing two programs."
    )


def _print_kernels(record: Mapping[str, Any]) -> None:
    kernels: dict[str, dict[str, tuple[int, int]]] = record["kernels"]
    sources = {
        name: [kinds.get(kind, (0, 0)) for kind in hlo.KERNELS] for name, kinds in kernels.items()
    }
    rows = sorted(sources.items(), key=_place_in_step)
    rows.append(("all", [_sum(column) for column in zip(*sources.values(), strict=True)]))
    cells = [
        [name, *(f"{count} / {size / 1e6:,.0f}" for count, size in [*each, _sum(each)])]
        for name, each in rows
    ]
    print("\nkernels on each chip / MB that they read and write")
    measure.print_table(["", *hlo.KERNELS, "all"], cells, left=1)
    count, size = _sum(rows[-1][1])
    limits = [f"{1e3 * _KERNEL_SECONDS * count:.1f} ms to start {count:,} kernels at 3 us"]
    if record["memory_bandwidth"]:
        rate = record["memory_bandwidth"]
        limits.append(
            f"{1e3 * size / rate:.1f} ms for {size / 1e9:.2f} GB at {rate / 1e12:.2f} TB/s"
        )
    if record["peak_flops"]:
        flops, rate = record["network_flops"], record["peak_flops"]
        limits.append(
            f"{1e3 * flops / rate:.1f} ms for {flops / 1e9:,.0f} G multiply-adds' operations at "
            f"{rate / 1e12:,.0f} TFLOP/s"
        )
    print(f"limits of a step: {'; '.join(limits)}")
    print(
        "No time is measured or estimated by XLA here. Bytes are counted as if no cache kept\n"
        "anything, 3 us are an assumption, the rates are the data sheet's, collectives are left\n"
        "out. The workspace of cuDNN and cuBLAS comes on top of the planned memory."
    )


def _sum(kernels: Iterable[tuple[int, int]]) -> tuple[int, int]:
    counts, sizes = zip(*kernels, strict=True)
    return sum(counts), sum(sizes)


def _place_in_step(item: tuple[str, Any]) -> tuple[int, str]:
    """Sort sources as a step runs; stages, which are of any number, are where conv is."""
    order = ("input", "stem", "max_pool", "conv", "batch_norm", "classifier", "optimizer", "other")
    source = item[0]
    return order.index(source.rstrip("0123456789")), source


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = measure.make_parser(__doc__)
    parser.add_argument("--platform", choices=("tpu", "cuda"), required=True)
    parser.add_argument(
        "--topology",
        required=True,
        help="as v5e:2x2; with cuda partitions x hosts x GPUs, as 1x1x4",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="recipe, as for train.py; but not its batch size",
    )
    parser.add_argument(
        "--per-chip", type=measure.positive_int, required=True, metavar="N", help="images of a step"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of the config to change",
    )
    parser.add_argument(
        "--what",
        choices=("train", "eval", "plain-flax"),
        default="train",
        help="(default: %(default)s) plain-flax: benchmarks/plain_flax.py's training step of the "
        "same network in place of ours",
    )
    parser.add_argument(
        "--lowering",
        type=lowering,
        default=("auto", None),
        metavar="NAME",
        help="of grouped convolutions: auto (the default), native, packed@CHANNELS, "
        "grouped_packs@CHANNELS",
    )
    parser.add_argument(
        "--target",
        type=Path,
        default=_ROOT / "benchmarks/targets/h100.txtpb",
        metavar="FILE",
        help="with cuda: XLA's description of the GPU (default: an H100's)",
    )
    parser.add_argument("--json", type=measure.output_file, metavar="FILE", help="also write JSON")
    return parser


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Compile, print, and leave with 1 where a collective should not be there."""
    args = make_parser().parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    chips = find_chips(args.platform, args.topology, args.target)
    config = read_config(args.config, args.set, args.per_chip * len(chips.devices))
    mesh = build.training_mesh(config, chips.devices)
    surroundings = measure.environment()
    name, width = args.lowering
    measure.print_heading(
        f"{args.what} step of {config.model.name}, {config.model.dtype}, {args.per_chip} images on "
        f"each of {len(chips.devices)} x {chips.devices[0].device_kind} ({args.topology}), "
        f"grouped convolutions {name}{f'@{width}' if width else ''}; compiled by",
        surroundings,
    )
    record = {
        "device_kind": chips.devices[0].device_kind,
        "chip_memory_bytes": chips.memory,
        "memory_bandwidth": chips.bandwidth,
        "peak_flops": _GPU_PEAK.get(chips.devices[0].device_kind),
        **compile_step(args, config, mesh),
    }
    print_record(record)
    faults = faults_of(record)
    if args.json:
        options = argparse.Namespace(**vars(args) | {"target": str(args.target)})
        measure.write_json(args.json, "aot", options, surroundings, [record | {"faults": faults}])
    for fault in faults:
        print(f"fault: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
