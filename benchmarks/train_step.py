"""Time whole training and inference steps of named models, PyTorch's beside them if wished.

    python benchmarks/train_step.py --models resnext50_32x4d --implementations auto native \
        --batches 2 --rounds 2
    python benchmarks/train_step.py --models resnet101 resnext101_32x4d --dtypes bfloat16 \
        --batches 64 256 --torch eager compile

A training step is what `train.py` runs: normalising uint8 images, forward, loss,
backward and the SGD update, on all devices. An inference step takes the same
images to logits. The rows of one table are timed in turn.

FLOP/s are analytic: two for each multiply-add of the network's convolutions and
classifier, in training three times as many (forward and two gradients). "of
peak" is their share of what a big square product in the same dtype reached in
the same run. "peak MiB" is the most memory in use during a step, where the
platform says so; "temp MiB" is what the compiler planned for intermediate
results. PyTorch's "compile s" is the time of its first step.
"""

import argparse
import functools
import gc
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure, torch_device
from benchmarks.jax_step import BLOCKS, JaxVariant
from benchmarks.matrix_peak import matrix_peak
from benchmarks.program import MODES, Mode, Network, Program, Setting, Variant
from benchmarks.step_rows import StepRow, label, print_comparisons, print_rows, records
from resnext_jax.errors import ConfigError
from resnext_jax.models.blocks import FORMS
from resnext_jax.ops import cpu
from resnext_jax.parallel.mesh import make_mesh

_Made = TypeVar("_Made")

# Python's time between steps does not depend on the images; small ones are soon made.
_SMALL_IMAGE = 8


def variants_of(args: argparse.Namespace, with_torch: bool) -> list[Variant]:
    """List the rows of every table, ours first."""
    variants: list[Variant] = [
        JaxVariant(*choice)
        for choice in itertools.product(args.models, args.forms, args.implementations, args.blocks)
    ]
    if with_torch:
        torch_step = importlib.import_module("benchmarks.torch_step")
        variants += [
            torch_step.TorchVariant(*choice)
            for choice in itertools.product(args.models, args.torch)
        ]
    return variants


def measure_tables(
    variants: Sequence[Variant], dtype: str, batch: int, args: argparse.Namespace
) -> Iterator[list[StepRow]]:
    """Yield the rows of each mode, for one dtype and batch.

    What fails, for want of memory or of a compiler, becomes a row that says so.
    """
    settings = {v: Setting(v.model, dtype, batch, args.image_size) for v in variants}
    networks: dict[Variant, Network] = {}
    failures: dict[Variant, str] = {}
    for variant, setting in settings.items():
        measure.progress(f"building {label(variant)}")
        _attempt(variant, functools.partial(variant.build, setting), networks, failures)
    for mode in args.modes:
        yield measure_mode(mode, settings, networks, dict(failures), args)


def measure_mode(
    mode: Mode,
    settings: Mapping[Variant, Setting],
    networks: Mapping[Variant, Network],
    failures: dict[Variant, str],
    args: argparse.Namespace,
) -> list[StepRow]:
    """Compile one mode of all networks and time them in turn."""
    programs: dict[Variant, Program] = {}
    for variant, network in networks.items():
        measure.progress(f"compiling {mode} of {label(variant)}")
        build = network.training if mode == "training" else network.inference
        _attempt(variant, build, programs, failures)
    # From the smallest to the largest, because JAX only reports the highest peak so far.
    peaks: dict[Variant, int | None] = {}
    for variant, program in sorted(
        programs.items(), key=lambda item: item[1].plan.planned_bytes or 0
    ):
        _attempt(variant, program.peak_of_a_step, peaks, failures)
    working = {variant: programs[variant] for variant in programs if variant in peaks}
    measure.progress(f"timing {mode}")
    reasons: dict[str, str] = {}
    timings = measure.interleave(
        {label(variant): program.run for variant, program in working.items()},
        rounds=args.rounds,
        limit=args.limit,
        waits={label(variant): program.wait for variant, program in working.items()},
        failures=reasons,
    )
    return [
        StepRow(
            variant,
            setting,
            mode,
            working[variant].plan if variant in working else None,
            peaks.get(variant),
            timings.get(label(variant)),
            failures.get(variant) or reasons.get(label(variant), ""),
        )
        for variant, setting in settings.items()
    ]


def _attempt(
    variant: Variant,
    make: Callable[[], _Made],
    made: dict[Variant, _Made],
    failures: dict[Variant, str],
) -> None:
    """Keep what is made, or why it could not be.

    Any exception counts: JAX, PyTorch and their compilers each raise their own
    kinds, and the other rows are worth having.
    """
    try:
        made[variant] = make()
    except Exception as error:
        failures[variant] = measure.shortened(error)
        measure.progress(f"failed: {label(variant)}: {failures[variant]}")


def measure_python(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return how long Python takes between two of our steps (`dispatch_times`)."""
    measured: dict[Variant, tuple[measure.Timing, int]] = {}
    failures: dict[Variant, str] = {}
    for model, form in itertools.product(args.models, args.forms):
        variant = JaxVariant(model, form, "auto")
        setting = Setting(model, "float32", jax.device_count(), _SMALL_IMAGE)
        measure.progress(f"calling {label(variant)}")
        _attempt(variant, functools.partial(_dispatch_times, variant, setting), measured, failures)
    rows, found = [], []
    for called, (timing, arrays) in measured.items():
        rows.append([label(called), str(arrays), timing.cell()])
        record = {"model": called.model, **called.describe(), "arrays": arrays}
        found.append(record | timing.as_record())
    print("Python and dispatch between two training steps: until the call of a step returns that")
    print("takes and gives back the whole training state, and computes next to nothing")
    measure.print_table(["model", "arrays", "ms"], rows, left=1)
    print(flush=True)
    return found


def _dispatch_times(variant: JaxVariant, setting: Setting) -> tuple[measure.Timing, int]:
    return variant.build(setting).dispatch_times()


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = measure.make_parser(__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        type=measure.model_name,
        default=["resnet50", "resnext50_32x4d"],
        metavar="NAME",
        help="models to compare (default: resnet50 resnext50_32x4d)",
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=FORMS,
        default=["c"],
        help="block forms of Figure 3, each with every model (default: c)",
    )
    measure.add_implementations_option(
        parser, default=["auto"], purpose="lowerings of all convolutions, each with every form"
    )
    parser.add_argument(
        "--blocks",
        nargs="+",
        choices=BLOCKS,
        default=["plain"],
        help="how blocks run: one by one, equal ones as a loop, or computed again for the "
        "gradient (default: plain)",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16"),
        default=["float32"],
        help="compute dtypes, a table each; parameters are float32 (default: float32)",
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        type=measure.positive_int,
        default=[8],
        metavar="IMAGES",
        help="images a step, on all devices together, a table each (default: 8)",
    )
    measure.add_image_size_option(parser)
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=list(MODES),
        help="steps to time; an earlier mode's peak memory can hide a later one's (default: both)",
    )
    parser.add_argument(
        "--torch",
        nargs="+",
        choices=("eager", "compile"),
        default=[],
        help="also time PyTorch, as it is or by torch.compile, where it uses the same device",
    )
    parser.add_argument(
        "--usual-memory",
        action="store_true",
        help="on CPUs, let the C library give memory back, as in a PyTorch program as it is; "
        "otherwise both we and PyTorch keep it, as train.py does",
    )
    parser.add_argument(
        "--python-overhead",
        action="store_true",
        help="also measure Python's time between two of our training steps",
    )
    measure.add_common_options(parser, rounds=5, limit=60.0)
    return parser


def main() -> None:
    """Run the benchmark."""
    parser = make_parser()
    args = parser.parse_args()
    if not args.usual_memory:
        cpu.keep_memory()  # as train.py does; PyTorch, in the same process, has it too
    if args.torch:
        torch_device.share_gpu()
    try:
        for batch in args.batches:
            make_mesh(batch, None)
    except ConfigError as error:
        parser.error(f"--batches: {error}")
    surroundings = measure.environment()
    measure.print_heading("Training and inference steps", surroundings)
    surroundings["torch"] = torch_device.set_up(wanted=bool(args.torch))
    with_torch = surroundings["torch"]["used"]
    peaks = {
        dtype: matrix_peak(dtype, rounds=args.rounds, limit=args.limit) for dtype in args.dtypes
    }
    for dtype, peak in peaks.items():
        print(f"Matrix peak, {dtype}: {peak / 1e12:.3g} TFLOP/s")
    print()
    surroundings["matrix_peak_flops_per_second"] = peaks

    def write(**more: Any) -> None:
        # After every table, so that a run cut short leaves what it had.
        if args.json:
            found = [record for rows in tables for record in records(rows, peaks)]
            measure.write_json(args.json, "train_step", args, surroundings | more, found)

    variants = variants_of(args, with_torch)
    tables: list[list[StepRow]] = []
    for dtype, batch in itertools.product(args.dtypes, args.batches):
        for rows in measure_tables(variants, dtype, batch, args):
            print_rows(rows, peaks)
            tables.append(rows)
            write()
        gc.collect()
        if with_torch:
            torch_device.forget()
    if args.python_overhead:
        write(python_overhead=measure_python(args))
    for rows in tables:
        print_comparisons(rows)
    print(f"\nMilliseconds: median (min-max); {measure.cut_note(args.limit)}")


if __name__ == "__main__":
    main()
