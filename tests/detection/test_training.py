"""Training of both stages: what it changes, what it leaves, and that nothing else matters."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from resnext_jax.detection import training
from resnext_jax.detection.testing import RESULTS_FILE, SCORES_FILE, evaluate_detector
from resnext_jax.errors import ConfigError, DataError, UserError, WorkdirError
from resnext_jax.optim.freezing import Freezing
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from resnext_jax.runs.log import read_metrics
from resnext_jax.training.loop import InterruptedRunError
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import make_step
from resnext_jax.training.warm_start import warm_start
from tests.detection.small import STEPS, small_config, small_proposals, small_scenes
from tests.training.runs import assert_same_state, without_timings

TASKS = ("rpn", "fast_rcnn")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_scenes(tmp_path_factory.mktemp("scenes") / "small")
    small_proposals(folder)
    return folder


@pytest.fixture(scope="module", params=TASKS)
def config(request: pytest.FixtureRequest, scenes: Path) -> ConfigDict:
    return small_config(request.param, scenes)


@pytest.fixture(scope="module")
def whole(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    """A run that nobody stopped."""
    workdir = tmp_path_factory.mktemp(config.task)
    return workdir, jax.device_get(training.train(config, workdir))


def test_a_run_logs_scores_and_writes_its_data(
    config: ConfigDict, whole: tuple[Path, TrainState]
) -> None:
    records = read_metrics(whole[0])
    trained = [record for record in records if record["split"] == "train"]
    assert [record["step"] for record in trained] == [*range(1, STEPS + 1)]
    for record in trained:
        assert record["loss"] == pytest.approx(record["class_loss"] + record["box_loss"], rel=1e-5)
        assert record["foreground"] > 0
    measure = {"rpn": "recall100"}.get(config.task, "AP")
    assert 0 <= records[-1][measure] <= 100
    best = json.loads((whole[0] / "best.json").read_text())
    assert (best["step"], best["measure"]) == (STEPS, measure)
    stored = json.loads((whole[0] / "data_set.json").read_text())
    assert stored["classes"] == [str(digit) for digit in range(10)]
    assert (whole[0] / "plots" / "training_curve.png").exists()


def test_frozen_arrays_stay_bit_for_bit_and_all_others_move(
    config: ConfigDict, whole: tuple[Path, TrainState]
) -> None:
    """Weight decay alone would move what has no gradient."""
    mesh = training.training_mesh(config)
    _, random = training.prepare(config, mesh)
    fresh = warm_start(config, random, mesh)
    frozen = Freezing(stages=2, norms=True)
    assert config.optimizer.weight_decay > 0
    for name, before in jax.device_get(fresh.params).items():
        assert np.array_equal(before, whole[1].params[name]) == frozen(name), name
    for name, before in jax.device_get(fresh.batch_stats).items():
        assert frozen(name)
        assert np.array_equal(before, whole[1].batch_stats[name]), name


def test_stopped_and_resumed_it_is_the_same_run(
    config: ConfigDict,
    whole: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopping(*args: Any) -> Callable[[TrainState, Any], Any]:
        step = make_step(*args)

        def stop_at_3(state: TrainState, batch: Any) -> Any:
            if int(state.step) == 2:
                signal.raise_signal(signal.SIGTERM)
            return step(state, batch)

        return stop_at_3

    with monkeypatch.context() as patch:
        patch.setattr(training, "make_step", stopping)
        with pytest.raises(InterruptedRunError, match="SIGTERM after step 3"):
            training.train(config, tmp_path)
    assert_same_state(jax.device_get(training.train(config, tmp_path)), whole[1])
    assert without_timings(read_metrics(tmp_path)) == without_timings(read_metrics(whole[0]))


def test_other_data_does_not_resume(
    config: ConfigDict, whole: tuple[Path, TrainState], tmp_path: Path
) -> None:
    scenes = small_scenes(tmp_path / "scenes")
    small_proposals(scenes)
    path = scenes / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    path.write_text(json.dumps(content))
    changed = small_config(config.task, scenes)
    changed.data.proposals = config.data.get("proposals")
    if config.task == "rpn":
        del changed.data.proposals
    with pytest.raises(
        DataError, match="images were added, removed or renamed, or have other labels"
    ):
        training.train(changed, whole[0])


def test_an_epoch_may_be_all_images(config: ConfigDict) -> None:
    """Also where the average of the weights has to know how long that is."""
    changed = config.copy_and_resolve_references()
    changed.images_per_epoch = None
    changed.ema.decay = 0.9
    task, _ = training.prepare(changed, training.training_mesh(changed))
    assert task.num_images == 12  # not mirrored
    assert task.batch_note.endswith(", places for 4 objects an image")
    assert callable(task.train_step)


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_not_learned_from_is_counted_at_the_start(
    keep: bool, config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is kept is background, with losses that are numbers."""
    scenes = small_scenes(tmp_path / "scenes")
    path = scenes / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != first]
    # An image that is too thin for any anchor.
    content["images"].append({"id": 99, "file_name": "thin.png", "height": 2, "width": 60})
    thin = content["annotations"][0] | {"id": 9999, "image_id": 99, "bbox": [1, 0, 50, 2]}
    content["annotations"].append(thin)
    path.write_text(json.dumps(content))
    Image.new("RGB", (60, 2)).save(scenes / "train" / "thin.png")
    small_proposals(scenes)
    changed = small_config(config.task, scenes)
    changed.data.keep_empty = keep
    changed.batch_size = changed.optimizer.base_batch_size = 16
    mesh = training.training_mesh(changed)
    task, state = training.prepare(changed, mesh)
    notes = capsys.readouterr().err
    what = "trained on as background" if keep else "left out of training"
    assert (
        "note: instances_train.json: images without an object (crowds aside), "
        f"{what} (config.data.keep_empty={keep}): 1 (image id {first})\n"
    ) in notes
    unreached = (
        "note: instances_train.json: objects that no anchor inside their image overlaps, which the "
        "RPN does not learn: 1 ([1.0, 0.0, 51.0, 2.0] of image id 99)\n"
    )
    assert (unreached in notes) == (config.task == "rpn")
    assert task.num_images == 12 + keep
    if keep:
        _, metrics = task.train_step(state, next(task.batches(0, 1)))
        assert np.isfinite(metrics["loss"])


def test_too_few_places_for_objects_are_refused_at_the_start(config: ConfigDict) -> None:
    changed = config.copy_and_resolve_references()
    changed.data.max_boxes = 1
    with pytest.raises(ConfigError, match=r"max_boxes=1 is too small: .* has 2; give at least 2"):
        training.prepare(changed, training.training_mesh(changed))


def test_other_categories_to_test_on_are_refused(config: ConfigDict, tmp_path: Path) -> None:
    """Not by eval.py either: a class is a place among the categories."""
    scenes = small_scenes(tmp_path / "scenes")
    small_proposals(scenes)
    path = scenes / "annotations" / "instances_test.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "zero"
    path.write_text(json.dumps(content))
    changed = small_config(config.task, scenes)
    with pytest.raises(DataError, match=r"other categories \(zero, 1, 2, 3, 4, \.\.\.\) than"):
        training.open_splits(changed)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_one_and_eight_devices_train_alike(config: ConfigDict) -> None:
    """20 steps in float64, in one batch and in micro-batches; and no step gathers arrays."""
    changed = config.copy_and_resolve_references()
    changed.model.dtype = changed.model.param_dtype = "float64"
    changed.optimizer.learning_rate = 0.001
    changed.num_epochs = 20.0
    losses: dict[int, list[float]] = {}
    for devices in (1, 8):
        mesh = make_mesh(changed.batch_size, 1, jax.devices()[:devices])
        task, state = training.prepare(changed, mesh)
        losses[devices] = []
        for batch in task.batches(0, 20):
            if not losses[devices] and devices == 8:
                compiled = str(task.train_step.lower(state, batch).compile().as_text())
                assert "all-reduce" in compiled
                assert "all-gather" not in compiled
            state, metrics = task.train_step(state, batch)
            losses[devices].append(float(metrics["loss"]))
    assert len(losses[8]) == 20
    assert losses[8] == pytest.approx(losses[1], rel=1e-9)
    assert batch_sharding(task.mesh).num_devices == 8


def test_a_run_is_scored_as_it_was_while_it_trained(
    config: ConfigDict, whole: tuple[Path, TrainState], capsys: pytest.CaptureFixture[str]
) -> None:
    """By eval.py's function: the same numbers, and detections that COCO's server takes."""
    evaluate_detector(config, [str(whole[0])], [])
    stored = json.loads((whole[0] / SCORES_FILE).read_text())
    assert (stored["step"], stored["weights"], stored["images"]) == (STEPS, "raw", 5)
    record = read_metrics(whole[0])[-1]
    told = capsys.readouterr().out
    if config.task == "rpn":
        assert stored["scores"]["recall100"] == record["recall100"]
        assert f"recall100 {record['recall100']:.2f} %" in told
        return
    assert 100 * stored["scores"]["AP50"] == pytest.approx(record["AP50"])
    rows = json.loads((whole[0] / RESULTS_FILE).read_text())
    assert rows
    for row in rows:
        assert set(row) == {"image_id", "category_id", "bbox", "score"}
    assert f"{len(rows)} detections" in told


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [
        ([["a", "b"], []], {}, "give one --workdir"),
        ([[], ["w.pth"]], {}, "--weights is for classifiers"),
        ([["a"], []], {"per_class": "a.csv"}, "--per_class is for classifiers"),
        ([["nowhere"], []], {}, "nowhere does not exist"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(
    arguments: list[list[str]], options: dict[str, str], part: str, config: ConfigDict
) -> None:
    with pytest.raises(UserError, match=part):
        evaluate_detector(config, *arguments, **options)  # type: ignore[arg-type]


def test_a_run_of_the_other_stage_is_refused(
    config: ConfigDict, whole: tuple[Path, TrainState], scenes: Path
) -> None:
    other = small_config("rpn" if config.task == "fast_rcnn" else "fast_rcnn", scenes)
    with pytest.raises(WorkdirError, match=f"holds a run of config.task='{config.task}'"):
        evaluate_detector(other, [str(whole[0])], [])
