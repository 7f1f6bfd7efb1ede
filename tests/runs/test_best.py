"""The best result of a run so far."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from resnext_jax.errors import CheckpointError
from resnext_jax.runs.best import Best, Measure, best_of, read_best, wanted_step, write_best

ERROR = Measure("top1_error", "top-1 error (%)", highest=False)


def record(step: int, error: float | None, weights: str = "raw") -> dict[str, Any]:
    return {"split": "test", "step": step, "top1_error": error, "weights": weights}


def best(step: int, error: Any, weights: str = "raw") -> Best:
    return Best(step, "top1_error", error, weights)


def test_is_the_first_of_the_lowest() -> None:
    records = [record(10, 5.0), record(20, 3.0), record(30, 3.0), record(40, 4.0)]
    assert best_of(records, ERROR) == best(20, 3.0)


def test_is_the_first_of_the_highest_where_more_is_better() -> None:
    records = [
        {"split": "test", "step": step, "AP": value, "weights": "raw"}
        for step, value in ((10, 0.2), (20, 0.3), (30, 0.3))
    ]
    found = best_of(records, Measure("AP", "AP", highest=True))
    assert found == Best(20, "AP", 0.3, "raw")


def test_training_is_not_looked_at() -> None:
    assert best_of([{"split": "train", "step": 5, "top1_error": 0.0}], ERROR) is None


def test_what_was_best_before_counts() -> None:
    before = best(5, 2.0, "ema")
    assert best_of([record(10, 3.0)], ERROR, before) == before
    assert best_of([record(10, 1.0, "ema")], ERROR, before) == best(10, 1.0, "ema")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_never_best(value: float | None) -> None:
    wrong = record(10, value)  # null in metrics.jsonl is None when a run resumes
    for measure in (ERROR, Measure("top1_error", "accuracy", highest=True)):
        assert best_of([wrong], measure) is None
        assert best_of([wrong, record(20, 3.0), wrong], measure) == best(20, 3.0)
        # Of a checkpoint of an earlier version.
        assert best_of([record(20, 3.0)], measure, best(10, value)) == best(20, 3.0)
    assert best_of([{"split": "test", "step": 5, "weights": "raw"}], ERROR) is None


def test_a_best_that_is_no_number_is_damage(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(
        '{"step": 1, "measure": "AP", "value": NaN, "weights": "raw"}'
    )
    with pytest.raises(CheckpointError, match="is damaged"):
        read_best(tmp_path)


def test_is_written_as_json(tmp_path: Path) -> None:
    write_best(best(20, 3.5), tmp_path)
    stored = json.loads((tmp_path / "best.json").read_text())
    assert stored == {"step": 20, "measure": "top1_error", "value": 3.5, "weights": "raw"}
    assert read_best(tmp_path) == best(20, 3.5)


def test_a_checkpoint_is_asked_for_by_name_or_step(tmp_path: Path) -> None:
    write_best(best(20, 3.5), tmp_path)
    asked = [wanted_step(name, tmp_path) for name in ("latest", "best", "7")]
    assert asked == [None, 20, 7]
    write_best(None, tmp_path)
    assert not (tmp_path / "best.json").exists()
    for name, message in (("best", "is missing"), ("-1", "must be latest, best or a step")):
        with pytest.raises(CheckpointError, match=message):
            wanted_step(name, tmp_path)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.json is missing"):
        read_best(tmp_path)
    for text in ("", "[1]", '{"step": 20}'):
        (tmp_path / "best.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
            read_best(tmp_path)
