"""What the benchmarks share: interleaved timing, tables, and where and when it was measured.

Variants are timed in turn, round after round, and not one after the other: a
machine that others use too is then slow for all of them alike.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from resnext_jax.models.registry import parse_name
from resnext_jax.ops.grouped_conv import LOWERINGS

# Lowerings that can compute every convolution of a network; "matmul" is for 1x1 alone.
IMPLEMENTATIONS_3X3 = ("auto", "portable", *(name for name in LOWERINGS if name != "matmul"))

# A sample much shorter than this shows the clock and Python more than the
# computation, so short calls are repeated until they fill it.
_SAMPLE_SECONDS = 0.02

# A first call above this is believed. Below it, touching fresh memory can be
# most of its time, and a second one costs nothing.
_TRUSTED_SECONDS = 1.0

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

# Named where they are installed: what the GPU runs with, and what is compared with.
_MORE_PACKAGES = (
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "torch",
    "timm",
    "torchvision",
)


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long a call takes.

    Attributes:
      seconds: a call's time in each round.
      planned: rounds asked for; a slow variant has fewer.
    """

    seconds: tuple[float, ...]
    planned: int

    @property
    def median(self) -> float:
        """Median over the rounds, in seconds."""
        return statistics.median(self.seconds)

    def cell(self) -> str:
        """Return `median (min-max)` in milliseconds, with `rN` where only N rounds were run."""
        spread = f"({milliseconds(min(self.seconds))}-{milliseconds(max(self.seconds))})"
        cut = f" r{len(self.seconds)}" if len(self.seconds) < self.planned else ""
        return f"{milliseconds(self.median)} {spread}{cut}"

    def as_record(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""
        return {
            "median_ms": 1e3 * self.median,
            "min_ms": 1e3 * min(self.seconds),
            "max_ms": 1e3 * max(self.seconds),
            "rounds": len(self.seconds),
        }


Wait = Callable[[Any], object]


def interleave(
    variants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    limit: float,
    waits: Mapping[str, Wait] | None = None,
    failures: dict[str, str] | None = None,
) -> dict[str, Timing]:
    """Time every variant in turn, `rounds` times over.

    Each is warmed up first. What its warm-up took says how many calls make one
    sample, and how many rounds fit into the limit. Where not even one fits, the
    warm-up is the measurement: it is so long that being first hardly matters.

    Args:
      variants: compiled computations by name; what they return is waited for.
      rounds: samples of each variant.
      limit: seconds that all rounds of one variant may take together.
      waits: by name, how to wait for what a variant returns where that is not
        JAX's. All variants are waited for equally often.
      failures: takes why a variant failed at its warm-up, by name; the variant
        is then left out. Without it, a failure is raised. Any exception counts:
        JAX, PyTorch and their compilers each raise their own kinds, and the
        other variants are worth having.

    Returns:
      What was measured, by name.
    """
    waiting = {name: (waits or {}).get(name, jax.block_until_ready) for name in variants}
    warm_ups: dict[str, float] = {}
    for name, run in variants.items():
        try:
            warm_ups[name] = _warm_up(run, waiting[name])
        except Exception as error:
            if failures is None:
                raise
            failures[name] = shortened(error)
    calls = {name: math.ceil(_SAMPLE_SECONDS / took) for name, took in warm_ups.items()}
    fitting = {name: int(limit / (calls[name] * took)) for name, took in warm_ups.items()}
    samples = {name: [] if fitting[name] else [took] for name, took in warm_ups.items()}
    for index in range(rounds):
        for name in warm_ups:
            if index < fitting[name]:
                samples[name].append(_seconds_a_call(variants[name], calls[name], waiting[name]))
    return {name: Timing(tuple(seconds), rounds) for name, seconds in samples.items()}


def _warm_up(run: Callable[[], Any], wait: Wait) -> float:
    first = _seconds_a_call(run, 1, wait)
    return first if first > _TRUSTED_SECONDS else _seconds_a_call(run, 1, wait)


def _seconds_a_call(run: Callable[[], Any], calls: int, wait: Wait) -> float:
    # Accelerators run calls in the order they are queued, so only the last is
    # waited for, and Python's share overlaps with the computation. The CPU may
    # run several calls at once.
    wait_each = jax.default_backend() == "cpu"
    start = time.perf_counter()
    result = None
    for _ in range(calls):
        result = run()
        if wait_each:
            wait(result)
    wait(result)
    return (time.perf_counter() - start) / calls


def cut_note(limit: float) -> str:
    """Explain `rN` in a `Timing.cell`, under a table."""
    return (
        f"rN: only N rounds, more would pass the limit of {limit:g} s a variant "
        "(r1 may be the warm-up)."
    )


def milliseconds(seconds: float) -> str:
    """Format a time in milliseconds."""
    return three_digits(1e3 * seconds)


def three_digits(value: float) -> str:
    """Format a positive number: two decimals at most, none from a hundred on."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> None:
    """Print a table in plain text.

    Args:
      header: names of the columns.
      rows: the cells.
      left: how many columns hold words, aligned left; the others hold numbers.
    """
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def environment() -> dict[str, Any]:
    """Say on what, with what and when this is measured."""
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "platform": jax.default_backend(),
            "device_kind": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        },
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES}
        | _installed(_MORE_PACKAGES),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def print_heading(title: str, surroundings: Mapping[str, Any]) -> None:
    """Print what is measured, and `environment()` in two lines."""
    hardware = surroundings["hardware"]
    versions = (f"{name} {number}" for name, number in surroundings["versions"].items())
    print(title)
    print(
        f"{hardware['cpu']}, {hardware['cores']} cores; "
        f"{hardware['devices']} x {hardware['platform']} ({hardware['device_kind']}); "
        f"{surroundings['date']}, commit {surroundings['commit']}"
    )
    print(f"{', '.join(versions)}\n", flush=True)


def write_json(
    path: Path,
    benchmark: str,
    arguments: argparse.Namespace,
    surroundings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Write a benchmark's rows, with the options and the surroundings they were measured in."""
    options = {name: value for name, value in vars(arguments).items() if name != "json"}
    record = {
        "benchmark": benchmark,
        "arguments": options,
        **surroundings,
        "rows": list(rows),
    }
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def progress(text: str) -> None:
    """Print progress on stderr; only the table goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a benchmark whose docstring is its description."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_image_size_option(parser: argparse.ArgumentParser) -> None:
    """Add `--image-size`; None is what `Architecture.usual_image_size` says."""
    parser.add_argument(
        "--image-size",
        type=positive_int,
        help="height and width of the images (default: 224, and 32 for CIFAR networks)",
    )


def add_implementations_option(
    parser: argparse.ArgumentParser, *, default: Sequence[str], purpose: str
) -> None:
    """Add `--implementations`, several of `IMPLEMENTATIONS_3X3`."""
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=IMPLEMENTATIONS_3X3,
        default=list(default),
        help=f"{purpose} (default: {' '.join(default)})",
    )


def add_common_options(parser: argparse.ArgumentParser, *, rounds: int, limit: float) -> None:
    """Add `--rounds`, `--limit` and `--json`, with the given defaults for the first two."""
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=rounds,
        help="samples of each variant, taken in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=positive_seconds,
        default=limit,
        metavar="SECONDS",
        help="for all rounds of one variant; slower ones get fewer rounds (default: %(default)s)",
    )
    parser.add_argument("--json", type=output_file, metavar="PATH", help="also write a JSON file")


def positive_int(text: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def positive_seconds(text: str) -> float:
    """Read a time above zero, and not infinite, from the command line."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return number


def model_name(text: str) -> str:
    """Read a model name from the command line."""
    try:
        parse_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def output_file(text: str) -> Path:
    """Read the path of a file to write, so that a mistake is reported before measuring."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def shortened(error: BaseException) -> str:
    """Return the first line of an error and its kind: enough to know why a row failed."""
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else ""
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def _installed(packages: Sequence[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str:
    """Git commit of this file's repository, `-dirty` where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
