"""The best result of a run so far."""

import json
from pathlib import Path
from typing import Any

import pytest

from resnext_jax.errors import CheckpointError
from resnext_jax.training.best import Best, best_of, read_best, wanted_step, write_best


def record(step: int, error: float, weights: str = "raw") -> dict[str, Any]:
    return {"split": "test", "step": step, "top1_error": error, "weights": weights}


def test_is_the_first_of_the_lowest() -> None:
    records = [record(10, 5.0), record(20, 3.0), record(30, 3.0), record(40, 4.0)]
    assert best_of(records) == Best(20, 3.0, "raw")


def test_training_is_not_looked_at() -> None:
    assert best_of([{"split": "train", "step": 5, "top1_error": 0.0}]) is None


def test_what_was_best_before_counts() -> None:
    before = Best(5, 2.0, "ema")
    assert best_of([record(10, 3.0)], before) == before
    assert best_of([record(10, 1.0, "ema")], before) == Best(10, 1.0, "ema")


def test_is_written_as_json(tmp_path: Path) -> None:
    write_best(Best(20, 3.5, "raw"), tmp_path)
    stored = json.loads((tmp_path / "best.json").read_text())
    assert stored == {"step": 20, "top1_error": 3.5, "weights": "raw"}
    assert read_best(tmp_path) == Best(20, 3.5, "raw")


def test_a_checkpoint_is_asked_for_by_name_or_step(tmp_path: Path) -> None:
    write_best(Best(20, 3.5, "raw"), tmp_path)
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
