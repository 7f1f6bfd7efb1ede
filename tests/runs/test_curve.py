"""The picture of a run."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from resnext_jax.errors import WorkdirError
from resnext_jax.runs.best import Measure
from resnext_jax.runs.curve import draw_training_curve
from resnext_jax.runs.log import METRICS_FILE

ERROR = Measure("top1_error", "top-1 error (%)", highest=False)


def record(split: str, epoch: float, **changes: Any) -> dict[str, Any]:
    values = {"loss": 2.0 / epoch, "top1_error": 80.0 / epoch, "top5_error": 30.0 / epoch}
    return {"step": int(epoch * 10), "epoch": epoch, "split": split} | values | changes


def write(workdir: Path, records: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (workdir / METRICS_FILE).write_text(lines)


def draw(workdir: Path, records: list[dict[str, Any]]) -> np.ndarray:
    """Return the pixels of the picture."""
    write(workdir, records)
    path = draw_training_curve(workdir, "resnet50 on digits", ERROR)
    assert path == workdir / "plots" / "training_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return pixels


TRAIN = [record("train", epoch) for epoch in (0.5, 1.0, 1.5, 2.0)]
TEST = [record("test", epoch, weights="raw") for epoch in (1.0, 2.0)]


def test_draws_a_png(tmp_path: Path) -> None:
    height, width, _ = draw(tmp_path, TRAIN + TEST).shape
    assert width > 2 * height > 400


def test_draws_both_splits(tmp_path: Path) -> None:
    both, train, test = (draw(tmp_path, records) for records in (TRAIN + TEST, TRAIN, TEST))
    for one, other in ((both, train), (both, test), (train, test)):
        assert (one != other).any()


def test_averaged_weights_have_a_line_of_their_own(tmp_path: Path) -> None:
    """And not a zigzag between both."""
    ema = [one | {"weights": "ema", "loss": 0.5} for one in TEST]
    both = [*TRAIN, TEST[0], ema[0], TEST[1], ema[1]]
    sorted_by_weights = [*TRAIN, *TEST, *ema]
    picture = draw(tmp_path, both)
    assert (picture == draw(tmp_path, sorted_by_weights)).all()
    assert (picture != draw(tmp_path, TRAIN + TEST)).any()


def test_draws_error_left_and_loss_right(tmp_path: Path) -> None:
    """A change of one of the two changes its half of the picture alone."""
    before = draw(tmp_path, TRAIN)
    middle = before.shape[1] // 2
    worse = draw(tmp_path, [*TRAIN[:1], record("train", 1.0, top1_error=70.0), *TRAIN[2:]])
    assert (before[:, :middle] != worse[:, :middle]).any()
    assert (before[:, middle:] == worse[:, middle:]).all()
    lossy = draw(tmp_path, [*TRAIN[:1], record("train", 1.0, loss=3.5), *TRAIN[2:]])
    assert (before[:, :middle] == lossy[:, :middle]).all()
    assert (before[:, middle:] != lossy[:, middle:]).any()


def test_a_loss_that_was_not_a_number_is_left_out(tmp_path: Path) -> None:
    """The curve goes on from its neighbours, as if the record had not been."""
    first, second, *others = TRAIN
    without = draw(tmp_path, [first, *others])
    with_gap = draw(tmp_path, [first, second | {"loss": None}, *others])
    middle = without.shape[1] // 2
    assert (with_gap[:, middle:] == without[:, middle:]).all()
    assert (with_gap[:, :middle] != without[:, :middle]).any()


def test_drawing_again_replaces_the_picture(tmp_path: Path) -> None:
    first = draw(tmp_path, TRAIN)
    assert (draw(tmp_path, TRAIN + TEST) != first).any()
    assert (draw(tmp_path, TRAIN) == first).all()
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["training_curve.png"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert draw_training_curve(tmp_path, "nothing", ERROR) is None
    write(tmp_path, [])
    assert draw_training_curve(tmp_path, "nothing", ERROR) is None
    assert not (tmp_path / "plots").exists()


def test_a_run_without_a_single_number_is_drawn_empty(tmp_path: Path) -> None:
    record = '{"step": 1, "epoch": 0.1, "split": "train", "loss": null, "top1_error": null}\n'
    (tmp_path / "metrics.jsonl").write_text(record)
    assert draw_training_curve(tmp_path, "nothing", ERROR) is not None


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, TRAIN)
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(WorkdirError, match=r"training_curve\.png cannot be written"):
        draw_training_curve(tmp_path, "nothing", ERROR)
