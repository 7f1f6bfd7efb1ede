"""The best result of a run so far."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resnext_jax.errors import CheckpointError
from resnext_jax.files import strict_json
from resnext_jax.runs.workdir import write_atomically

BEST_FILE = "best.json"


@dataclasses.dataclass(frozen=True)
class Measure:
    """The metric of the test records that selects the best checkpoint.

    Attributes:
      name: of the number.
      label: for plots.
      highest: whether more is better.
    """

    name: str
    label: str
    highest: bool


@dataclasses.dataclass(frozen=True)
class Best:
    """The best test, the first of equals.

    Attributes:
      step: of the checkpoint.
      measure: what it is best in, such as top1_error.
      value: of that.
      weights: "raw" or "ema".
    """

    step: int
    measure: str
    value: float
    weights: str

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary for a JSON file."""
        return dataclasses.asdict(self)


def best_of(
    records: Iterable[dict[str, Any]], measure: Measure, before: Best | None = None
) -> Best | None:
    """Find the best of some test records (lines of `metrics.jsonl`) and what was best before.

    A measure that is missing, null or not finite is never best, nor was it before.
    """
    tests = [
        Best(record["step"], measure.name, record[measure.name], record["weights"])
        for record in records
        if record["split"] == "test" and _is_finite(record.get(measure.name))
    ]
    found = [before] if before and _is_finite(before.value) else []
    sign = -1 if measure.highest else 1
    return min(found + tests, key=lambda best: (sign * best.value, best.step), default=None)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def write_best(best: Best | None, workdir: Path) -> None:
    """Write `best.json`; remove it where nothing has been tested."""
    if best is None:
        (workdir / BEST_FILE).unlink(missing_ok=True)
        return
    write_atomically(workdir / BEST_FILE, strict_json(best.as_json()) + "\n")


def read_best(workdir: Path) -> Best:
    """Read `best.json`.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    path = workdir / BEST_FILE
    try:
        best = Best(**json.loads(path.read_text()))
        if not _is_finite(best.value):
            raise ValueError(f"{best.measure} is {best.value}")
        return best
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: no checkpoint has been tested yet.") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); name a step instead of the best checkpoint."
        ) from error


def wanted_step(checkpoint: str, workdir: Path) -> int | None:
    """Return the step of the checkpoint asked for, None for the latest.

    Args:
      checkpoint: "latest", "best", or a step.
      workdir: of the run.

    Raises:
      CheckpointError: it is another word, or there is no best checkpoint.
    """
    if checkpoint == "latest":
        return None
    if checkpoint == "best":
        return read_best(workdir).step
    if re.fullmatch(r"[0-9]+", checkpoint):
        return int(checkpoint)
    raise CheckpointError(f"checkpoint {checkpoint!r} must be latest, best or a step.")
