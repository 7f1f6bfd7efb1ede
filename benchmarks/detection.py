"""Time what detection adds to a network, beside torchvision's operators and onnxruntime's.

    python benchmarks/detection.py
    python benchmarks/detection.py --rows nms-12000 pool-64-gradient --rounds 20
    python benchmarks/detection.py --dtype bfloat16 --channels 256

The libraries of one row work on the same numbers and are timed in turn, and what they compute is
compared with what JAX does. Suppression is of boxes half of which crowd around twenty objects.
torchvision keeps all survivors and is cut, the others stop when they have enough. The map is that
of a 600x1000 image at stride 16, the bins are 14x14. A row of a gradient is the forward pass and
the gradient of the map. "torch" is what can be written with PyTorch alone: a loop over survivors,
and adaptive pooling, a region at a time.

What cannot be loaded is "not measured", and the reason is printed under the table.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import detection_operators as operators
from benchmarks import measure, torch_device
from benchmarks.detection_operators import NotMeasured, Program

OURS = "jax"
LIBRARIES = (OURS, "onnxruntime", "torchvision", "torch")

Build = Callable[[argparse.Namespace], Program]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is timed, and by whom it can be computed.

    Attributes:
      name: on the command line.
      title: in the table.
      builds: what makes the program of a library; it may raise `NotMeasured`. Of a library that
        is not there nothing is said.
    """

    name: str
    title: str
    builds: Mapping[str, Build]


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of a row, by library.

    Attributes:
      row: what was timed.
      timings: of the libraries that worked.
      reasons: why the others were not measured.
      differences: from what JAX computed, the largest; where both worked.
    """

    row: Measurement
    timings: dict[str, measure.Timing]
    reasons: dict[str, str]
    differences: dict[str, float]

    def ratio(self, library: str) -> float | None:
        """Return how many times JAX's time a library takes, where both were measured."""
        if library not in self.timings or OURS not in self.timings:
            return None
        return self.timings[library].median / self.timings[OURS].median

    def cell(self, library: str) -> str:
        """Return a library's cell of the table."""
        if library in self.timings:
            ratio = self.ratio(library)
            times = "" if ratio is None or library == OURS else f" {ratio:.2f}x"
            return self.timings[library].cell() + times
        return "not measured" if library in self.reasons else "-"


def nms_row(count: int, most: int) -> Measurement:
    """Suppress among a number of boxes, and keep at most a number of them."""
    builds = {
        OURS: operators.jax_nms,
        "onnxruntime": operators.onnx_nms,
        "torchvision": operators.torchvision_nms,
        "torch": operators.torch_nms,
    }
    return Measurement(
        f"nms-{count}",
        f"NMS, {count} -> {most}",
        {name: functools.partial(build, count, most) for name, build in builds.items()},
    )


def region_row(kind: str, regions: int, *, gradient: bool) -> Measurement:
    """Pool a number of regions, by "pool" or "align"."""
    name = {"pool": "RoI pooling", "align": "RoIAlign"}[kind]
    builds: dict[str, Build] = {
        OURS: functools.partial(operators.jax_regions, kind, regions, gradient),
        "onnxruntime": functools.partial(operators.onnx_regions, kind, regions, gradient),
        "torchvision": functools.partial(
            operators.torch_regions, "torchvision", kind, regions, gradient
        ),
    }
    if kind == "pool":
        builds["torch"] = functools.partial(
            operators.torch_regions, "torch", kind, regions, gradient
        )
    return Measurement(
        f"{kind}-{regions}" + "-gradient" * gradient,
        f"{name}, {regions} regions, " + ("with gradient" if gradient else "forward"),
        builds,
    )


ROWS = (
    nms_row(12000, 2000),
    nms_row(6000, 300),
    *(
        region_row("pool", regions, gradient=gradient)
        for regions in (64, 300)
        for gradient in (False, True)
    ),
    *(region_row("align", 64, gradient=gradient) for gradient in (False, True)),
)


def measure_row(row: Measurement, args: argparse.Namespace) -> Result:
    """Make a row's programs, compare what they compute, and time them in turn."""
    measure.progress(row.title)
    programs: dict[str, Program] = {}
    reasons: dict[str, str] = {}
    differences: dict[str, float] = {}
    ours: np.ndarray | None = None
    for library, build in row.builds.items():
        try:
            programs[library] = build(args)
            value = programs[library].value(programs[library].run())
        except NotMeasured as error:
            reasons[library] = str(error)
        except Exception as error:
            # JAX, PyTorch and onnxruntime each raise their own kinds; the others are worth having.
            programs.pop(library, None)
            reasons[library] = f"failed: {measure.shortened(error)}"
        else:
            ours = value if library == OURS else ours
            if library != OURS and ours is not None:
                differences[library] = _difference(value, ours)
    timings = measure.interleave(
        {library: program.run for library, program in programs.items()},
        rounds=args.rounds,
        limit=args.limit,
        waits={library: program.wait for library, program in programs.items()},
    )
    return Result(row, timings, reasons, differences)


def _difference(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Return the largest difference; 1 where not even the shapes are equal."""
    if theirs.shape != ours.shape:
        return 1.0
    return float(np.abs(np.subtract(theirs, ours, dtype=np.float64)).max(initial=0.0))


def print_results(results: Sequence[Result], limit: float) -> None:
    """Print the table, and what is not in it and why."""
    rows = [[result.row.title, *map(result.cell, LIBRARIES)] for result in results]
    measure.print_table(["what", *LIBRARIES], rows, left=1)
    print("Milliseconds a call: median (min-max), and how many times the time of jax.")
    print(measure.cut_note(limit))
    grouped: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for library, reason in result.reasons.items():
            grouped.setdefault((library, reason), []).append(result.row.name)
    for (library, reason), names in grouped.items():
        print(f"{library} is not measured in {', '.join(names)}: {reason}.")
    for result in results:
        for library, difference in result.differences.items():
            if difference > 0:
                print(f"{result.row.name}: {library} differs from jax by up to {difference:.2g}.")


def records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return what the JSON file says, a record for each row and library."""
    found: list[dict[str, Any]] = []
    for result in results:
        common = {"row": result.row.name, "title": result.row.title}
        for library, timing in result.timings.items():
            compared = {
                "times_jax": result.ratio(library),
                "difference": result.differences.get(library),
            }
            found.append(common | {"library": library, **timing.as_record(), **compared})
        for library, reason in result.reasons.items():
            found.append(common | {"library": library, "not_measured": reason})
    return found


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    names = [row.name for row in ROWS]
    parser = measure.make_parser(__doc__)
    parser.add_argument(
        "--rows", nargs="+", choices=names, default=names, help="what to time (default: all)"
    )
    parser.add_argument(
        "--channels",
        type=measure.positive_int,
        default=1024,
        help="of the map (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the map (default: %(default)s)",
    )
    measure.add_common_options(parser, rounds=10, limit=10.0)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    torch_device.share_gpu()
    surroundings = measure.environment()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("onnxruntime")
        surroundings["versions"]["onnxruntime"] = version
    measure.print_heading(f"Detection, {args.channels} channels, {args.dtype}", surroundings)
    surroundings["torch"] = torch_device.set_up(wanted=True)
    results: list[Result] = []
    for row in ROWS:
        if row.name in args.rows:
            results.append(measure_row(row, args))
            if args.json:  # after every row, so that a run cut short leaves what it had
                measure.write_json(args.json, "detection", args, surroundings, records(results))
    print_results(results, args.limit)


if __name__ == "__main__":
    main()
