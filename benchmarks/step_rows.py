"""The rows of `train_step.py`: tables, comparisons and JSON records."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measure
from benchmarks.program import Mode, Plan, Setting, Variant

_HEADER = (
    "model",
    "what",
    "ms",
    "images/s",
    "x first",
    "TFLOP/s",
    "of peak",
    "compile s",
    "peak MiB",
    "temp MiB",
)


@dataclasses.dataclass(frozen=True)
class StepRow:
    """What was measured of one step.

    Attributes:
      variant: the model and what computes it.
      setting: what it worked on.
      mode: training or inference.
      plan: what compiling took; None where it failed.
      peak_bytes: most memory in use during a step, where known.
      timing: None where it failed.
      failure: why it failed; empty where it did not.
    """

    variant: Variant
    setting: Setting
    mode: Mode
    plan: Plan | None
    peak_bytes: int | None
    timing: measure.Timing | None
    failure: str

    @property
    def label(self) -> str:
        """Model and what computes it."""
        return label(self.variant)

    @property
    def group(self) -> str:
        """What the rows of one table have in common."""
        return f"{self.mode}, batch {self.setting.batch}, {self.setting.dtype}"

    @property
    def images_per_second(self) -> float | None:
        """At the median."""
        return self.setting.batch / self.timing.median if self.timing else None

    @property
    def flops_per_second(self) -> float | None:
        """At the median; what counts says `Setting.flops`."""
        return self.setting.flops(self.mode) / self.timing.median if self.timing else None

    def times_time_of(self, other: "StepRow | None") -> float | None:
        """Return how many times the other row's time this one takes, where both have one."""
        if self.timing is None or other is None or other.timing is None:
            return None
        return self.timing.median / other.timing.median


def label(variant: Variant) -> str:
    """Name a variant in messages."""
    return f"{variant.model} {variant.what}"


def print_rows(rows: Sequence[StepRow], peaks: Mapping[str, float]) -> None:
    """Print the table of one mode, batch and dtype."""
    print(rows[0].group)
    measure.print_table(_HEADER, [_cells(row, rows[0], peaks) for row in rows], left=2)
    for row in rows:
        if row.failure:
            print(f"{row.label}: failed: {row.failure}")
    print(flush=True)


def _cells(row: StepRow, first: StepRow, peaks: Mapping[str, float]) -> list[str]:
    cells = [row.variant.model, row.variant.what]
    if row.timing is None or row.plan is None:
        return [*cells, "failed", *["-"] * (len(_HEADER) - 3)]
    speed = row.flops_per_second or 0.0
    return [
        *cells,
        row.timing.cell(),
        _number(row.images_per_second),
        _number(row.times_time_of(first)),
        f"{speed / 1e12:.3g}",
        f"{100 * speed / peaks[row.setting.dtype]:.1f} %",
        f"{row.plan.compile_seconds:.1f}",
        _mebibytes(row.peak_bytes),
        _mebibytes(row.plan.temporary_bytes),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else measure.three_digits(value)


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def best_of_torch(row: StepRow, rows: Sequence[StepRow]) -> StepRow | None:
    """Return PyTorch's fastest row of the same model in the same table, if there is one."""
    theirs = [
        other
        for other in rows
        if other.timing is not None
        and other.variant.describe()["framework"] == "torch"
        and other.variant.model == row.variant.model
    ]
    return min(theirs, key=lambda other: other.timing.median if other.timing else 0, default=None)


def print_comparisons(rows: Sequence[StepRow]) -> None:
    """Compare our rows of one table with the first of it, and with PyTorch's best."""
    first = rows[0]
    ours = [row for row in rows if row.variant.describe()["framework"] == "jax"]
    for row in ours[1:]:
        ratio = row.times_time_of(first)
        if ratio is not None:
            print(f"{row.group}: {row.label} takes {ratio:.2f} times the time of {first.label}.")
    for row in ours:
        best = best_of_torch(row, rows)
        ratio = best.times_time_of(row) if best else None
        if best and ratio is not None:
            print(
                f"{row.group}: {row.label} has {ratio:.2f} times the images/s of "
                f"{best.variant.what}, PyTorch's best."
            )


def records(rows: Sequence[StepRow], peaks: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return what the JSON file says of one table."""
    return [_record(row, rows, peaks[row.setting.dtype]) for row in rows]


def _record(row: StepRow, rows: Sequence[StepRow], peak: float) -> dict[str, Any]:
    record = {
        "mode": row.mode,
        "model": row.variant.model,
        "what": row.variant.what,
        **row.variant.describe(),
        "dtype": row.setting.dtype,
        "batch": row.setting.batch,
        "image_size": row.setting.image_size,
    }
    if row.timing is None or row.plan is None:
        return record | {"failed": row.failure}
    best = best_of_torch(row, rows)
    return record | {
        **row.timing.as_record(),
        "images_per_second": row.images_per_second,
        "ratio_to_first": row.times_time_of(rows[0]),
        "images_per_second_to_best_of_torch": best.times_time_of(row) if best else None,
        "flops_per_second": row.flops_per_second,
        "fraction_of_matrix_peak": (row.flops_per_second or 0.0) / peak,
        "compile_seconds": row.plan.compile_seconds,
        "peak_bytes": row.peak_bytes,
        "planned_bytes": row.plan.planned_bytes,
        "temporary_bytes": row.plan.temporary_bytes,
    }
