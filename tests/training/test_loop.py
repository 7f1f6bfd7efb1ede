"""Whole runs: what they leave, and that stopping one changes nothing."""

import dataclasses
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from resnext_jax.configs import digits_resnext29
from resnext_jax.data.sources import Source, open_split
from resnext_jax.errors import (
    STOP_SIGNALS,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    WorkdirError,
)
from resnext_jax.evaluation.run import evaluate_workdir
from resnext_jax.runs.log import read_metrics
from resnext_jax.runs.workdir import locked
from resnext_jax.training import classification, loop
from resnext_jax.training.state import TrainState
from tests.training.runs import (
    acting_at,
    assert_same_state,
    short_run_config,
    stopping_at,
    stored_steps,
    without_timings,
)


@pytest.fixture(scope="module")
def config(data_dir: Path) -> ConfigDict:
    config = short_run_config(data_dir)
    config.num_epochs = 2.0
    return config


@pytest.fixture(scope="module")
def whole(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, classification.train(config, workdir)


def test_a_run_leaves_a_complete_workdir(
    config: ConfigDict, whole: tuple[Path, TrainState]
) -> None:
    workdir, state = whole
    assert int(state.step) == 22  # 2 epochs of 1,438 images in batches of 128: 22.5
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["model"]["name"] == "resnext11_2x4d"
    assert (workdir / "plots" / "training_curve.png").stat().st_size > 1000
    assert any((workdir / "tensorboard").iterdir())
    kept = {p.name for p in (workdir / "checkpoints").iterdir() if p.is_dir()}
    best = json.loads((workdir / "best.json").read_text())
    assert kept == {"12", "22", str(best["step"])}


def test_metrics_are_logged_as_documented(whole: tuple[Path, TrainState]) -> None:
    records = read_metrics(whole[0])
    train = [record for record in records if record["split"] == "train"]
    test = [record for record in records if record["split"] == "test"]
    assert [r["step"] for r in train] == [5, 10, 12, 15, 20, 22]
    assert [r["step"] for r in test] == [12, 22]
    common = {"step", "epoch", "split", "loss", "top1_error", "top5_error"}
    speed = {"learning_rate", "gradient_norm", "images_per_second", "data_wait_fraction"}
    assert all(set(record) == common | speed for record in train)
    assert all(set(record) == common | {"weights"} for record in test)
    assert all(record["weights"] == "raw" for record in test)
    assert test[-1]["epoch"] == pytest.approx(22 * 128 / 1438)
    assert train[-1]["loss"] < 0.95 * train[0]["loss"]
    assert test[-1]["top1_error"] < 70 < train[0]["top1_error"]
    cosine = math.cos(math.pi * 4 * 128 / 1438 / 2)  # of the fifth step, in two epochs
    assert train[0]["learning_rate"] == pytest.approx(0.05 * (1 + cosine) / 2, rel=1e-3)
    assert train[-1]["learning_rate"] < 1e-3


@pytest.mark.parametrize(
    ("step", "signal_numbers"),
    [
        pytest.param(12, (signal.SIGINT, signal.SIGINT, signal.SIGTERM), id="int"),
        pytest.param(17, (signal.SIGTERM,), id="term", marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_is_bit_for_bit_the_uninterrupted_run(
    config: ConfigDict,
    whole: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    signal_numbers: tuple[signal.Signals, ...],
) -> None:
    """Once after an epoch, once in the middle of one."""
    monkeypatch.setattr(classification, "make_train_step", stopping_at(step, *signal_numbers))
    with pytest.raises(
        loop.InterruptedRunError, match=f"{signal_numbers[0].name} after step {step}"
    ) as stop:
        classification.train(config, tmp_path)
    assert stop.value.exit_status == 128 + signal_numbers[0]
    monkeypatch.undo()
    state = classification.train(config, tmp_path)
    assert_same_state(state, whole[1])
    records, expected = read_metrics(tmp_path), read_metrics(whole[0])
    assert without_timings(records) == without_timings(expected)


@pytest.mark.slow  # steps with oneDNN are tested in test_step
@pytest.mark.usefixtures("onednn")
def test_with_onednn_too_it_is_the_uninterrupted_run(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other tests here keep compiled programs, and so do without it."""
    short = config.copy_and_resolve_references()
    short.num_epochs = 1.0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    state = classification.train(short, whole)
    monkeypatch.setattr(classification, "make_train_step", stopping_at(5, signal.SIGTERM))
    with pytest.raises(loop.InterruptedRunError):
        classification.train(short, parts)
    monkeypatch.undo()
    assert_same_state(classification.train(short, parts), state)
    assert without_timings(read_metrics(parts)) == without_timings(read_metrics(whole))
    last = read_metrics(whole)[-1]
    assert evaluate_workdir(short, parts)[1]["raw"].loss == last["loss"]


def test_a_finished_run_is_left_as_it_is(
    config: ConfigDict, whole: tuple[Path, TrainState], capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, state = whole
    before = [(workdir / name).read_text() for name in ("metrics.jsonl", "config.json")]
    changed = config.copy_and_resolve_references()
    changed.data.eval_antialias = True  # a field that may change, and with which nothing is tested
    assert_same_state(classification.train(changed, workdir), state)
    after = [(workdir / name).read_text() for name in ("metrics.jsonl", "config.json")]
    assert after == before
    assert "already finished at step 22" in capsys.readouterr().out


def test_eval_repeats_the_last_evaluation(
    config: ConfigDict, whole: tuple[Path, TrainState]
) -> None:
    step, results = evaluate_workdir(config, whole[0])
    result = results["raw"]
    last = read_metrics(whole[0])[-1]
    assert (step, result.images) == (22, 359)
    assert result.as_record() == {name: last[name] for name in result.as_record()}


def test_another_config_is_refused(config: ConfigDict, whole: tuple[Path, TrainState]) -> None:
    changed = config.copy_and_resolve_references()
    changed.optimizer.learning_rate = 0.01
    with pytest.raises(ConfigError, match=r"learning_rate is 0\.01, was 0\.05"):
        classification.train(changed, whole[0])


def test_a_checkpoint_of_another_model_is_refused(
    config: ConfigDict, whole: tuple[Path, TrainState], tmp_path: Path
) -> None:
    changed = config.copy_and_resolve_references()
    changed.model.name = "resnext11_4x4d"
    with pytest.raises(ConfigError, match=r"model\.name is 'resnext11_4x4d', was"):
        evaluate_workdir(changed, whole[0])
    # Also where only the checkpoint is left to tell.
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="is of another model"):
        evaluate_workdir(changed, tmp_path)


def test_evaluation_does_not_mind_another_schedule(
    config: ConfigDict, whole: tuple[Path, TrainState]
) -> None:
    changed = config.copy_and_resolve_references()
    changed.num_epochs = 1.0
    changed.batch_size = 7  # fits no mesh, and is not trained with
    assert evaluate_workdir(changed, whole[0]) == evaluate_workdir(config, whole[0])


def test_less_than_a_step_is_refused(config: ConfigDict, tmp_path: Path) -> None:
    changed = config.copy_and_resolve_references()
    changed.num_epochs = 0.001
    with pytest.raises(ConfigError, match="is less than one step"):
        classification.train(changed, tmp_path)


def with_bad_images(config: ConfigDict, split: str) -> Source:
    source = open_split(config, split)
    examples = [dict(source.examples[index]) for index in range(len(source))]
    for index in (7, 400) if split == "train" else (7,):
        examples[index]["image"] = b"no image"
    return dataclasses.replace(source, examples=examples)


def all_with_bad_images(config: ConfigDict) -> tuple[Source, Source]:
    return with_bad_images(config, "train"), with_bad_images(config, "test")


def only_bad_test_images(config: ConfigDict) -> tuple[Source, Source]:
    return open_split(config, "train"), with_bad_images(config, "test")


def test_a_bad_image_stops_the_run_and_nothing_is_lost(
    config: ConfigDict,
    whole: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(classification, "open_splits", all_with_bad_images)
    monkeypatch.setattr("resnext_jax.evaluation.run.open_split", with_bad_images)
    with pytest.raises(DataError, match=r"image \d+ of 'digits', split 'train', cannot be dec"):
        classification.train(config, tmp_path)
    # Steps before the batch with the bad image are saved.
    before = read_metrics(tmp_path)
    (saved,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert 0 < saved < 12
    assert all(record["step"] <= saved for record in before)

    # Going on without such images is allowed, and counted.
    skipping = config.copy_and_resolve_references()
    skipping.data.on_error = "skip"
    classification.train(skipping, tmp_path)
    records = read_metrics(tmp_path)
    assert records[: len(before)] == before
    assert records[-1]["step"] == 22
    train = [r for r in records if r["split"] == "train"]
    test = [r for r in records if r["split"] == "test"]
    # Two bad images, in each of two epochs; 22 batches are a little less than that.
    total = sum(record.get("skipped_images", 0) for record in train)
    assert 3 <= total <= 4
    assert [record["skipped_images"] for record in test] == [1, 1]
    told = f"left out: {total} in training, 1 in the last test"
    assert told in capsys.readouterr().out
    result = evaluate_workdir(skipping, tmp_path)[1]["raw"]
    assert (result.images, result.skipped) == (358, 1)


@pytest.mark.parametrize(
    ("eval_every_epochs", "stop"), [pytest.param(1.0, 12, marks=pytest.mark.slow), (2.0, 22)]
)
def test_a_bad_test_image_loses_nothing(
    eval_every_epochs: float,
    stop: int,
    config: ConfigDict,
    whole: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither what was trained nor, once the image is mended, a score: the last one neither."""
    changed = config.copy_and_resolve_references()
    changed.eval_every_epochs = eval_every_epochs
    with monkeypatch.context() as patch:
        patch.setattr(classification, "open_splits", only_bad_test_images)
        with pytest.raises(DataError, match=r"image 7 of 'digits', split 'test', cannot be"):
            classification.train(changed, tmp_path)
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == stop
    assert_same_state(classification.train(changed, tmp_path), whole[1])
    tests = [record for record in read_metrics(tmp_path) if record["split"] == "test"]
    assert tests == [
        record
        for record in read_metrics(whole[0])
        if record["split"] == "test" and record["step"] >= stop
    ]


def test_other_data_in_the_same_workdir_is_refused(
    config: ConfigDict, whole: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(config: ConfigDict, **changes: Any) -> tuple[Source, Source]:
        splits = (open_split(config, "train"), open_split(config, "test"))
        train, test = (dataclasses.replace(source, **changes) for source in splits)
        return train, test

    monkeypatch.setattr(
        classification, "open_splits", lambda config: changed(config, version="2.0.0")
    )
    with pytest.raises(DataError, match=r"trained on '1\.0\.0' of data set 'digits', now it is '2"):
        classification.train(config, whole[0])
    names = tuple("abcdefghij")
    monkeypatch.setattr(
        classification, "open_splits", lambda config: changed(config, class_names=names)
    )
    with pytest.raises(DataError, match="was trained on other classes"):
        classification.train(config, whole[0])
    monkeypatch.setattr(
        "resnext_jax.evaluation.run.open_split",
        lambda config, split: changed(config, class_names=names)[1],
    )
    with pytest.raises(DataError, match="was trained on other classes"):
        evaluate_workdir(config, whole[0])


def test_a_signal_during_a_test_leaves_at_once_and_loses_nothing(
    config: ConfigDict,
    whole: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def between(self: Any, *args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return run(self, *args)

    run = classification.Evaluation.run
    with monkeypatch.context() as patch:
        patch.setattr(classification.Evaluation, "run", between)
        with pytest.raises(loop.InterruptedRunError, match="SIGTERM after step 12"):
            classification.train(config, tmp_path)
    assert [r for r in read_metrics(tmp_path) if r["split"] == "test"] == []
    assert_same_state(classification.train(config, tmp_path), whole[1])
    assert without_timings(read_metrics(tmp_path)) == without_timings(read_metrics(whole[0]))


def test_signals_while_the_last_checkpoint_is_written_change_nothing(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in a run that was stopped, nor in one that is done; another host got the first."""
    acted: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: acted.append(number))
        for number in STOP_SIGNALS
    }
    close = loop.Checkpoints.close

    def close_under_fire(checkpoints: loop.Checkpoints) -> None:
        for number in STOP_SIGNALS:
            signal.raise_signal(number)
        close(checkpoints)

    monkeypatch.setattr(loop.Checkpoints, "close", close_under_fire)
    monkeypatch.setattr(loop, "gather", lambda number: [0, signal.SIGUSR2, number])
    short = config.copy_and_resolve_references()
    short.num_epochs = 0.5
    try:
        with monkeypatch.context() as patch:
            patch.setattr(classification, "make_train_step", stopping_at(2, signal.SIGUSR1))
            with pytest.raises(loop.InterruptedRunError, match="SIGUSR2 after step 2"):
                classification.train(short, tmp_path)
        assert stored_steps(tmp_path) == {2}
        assert int(classification.train(short, tmp_path).step) == max(stored_steps(tmp_path)) == 6
        assert acted == []
        signal.raise_signal(signal.SIGHUP)
        assert acted == [signal.SIGHUP]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_loss_that_is_not_finite_stops_and_the_run_goes_on_when_told_to(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in the random numbers of one image, which are data like the pixels."""
    config = config.copy_and_resolve_references()
    config.data.lighting = 0.1
    config.num_epochs = 1.0

    def spoil(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return batch | {"random": batch["random"].at[5, 7].set(jnp.nan)}

    monkeypatch.setattr(classification, "make_train_step", acting_at(8, spoil))
    with pytest.raises(DivergedError) as error:
        classification.train(config, tmp_path)
    message = str(error.value)
    # The loss need not be NaN: XLA's CPU code rectifies NaN to 0. The gradient tells.
    assert re.search(r"step 8 has loss \S+ and gradient norm nan, which is not finite", message)
    assert "the state after step 7 is saved" in message
    assert "--config.guard.on_nonfinite=skip" in message
    records = read_metrics(tmp_path)
    assert all(record["loss"] is not None for record in records)
    assert records[-1]["step"] == 5

    # The same command meets the same images, and stops again with nothing lost.
    with pytest.raises(DivergedError, match="step 8 has loss"):
        classification.train(config, tmp_path)
    config.guard.on_nonfinite = "skip"
    state = classification.train(config, tmp_path)
    assert int(state.step) == 11
    records = read_metrics(tmp_path)
    skipped = {r["step"]: r["skipped_steps"] for r in records if "skipped_steps" in r}
    assert skipped == {10: 1}
    (record,) = (record for record in records if "skipped_steps" in record)
    assert len(record["skipped_losses"]) == 1
    assert record["skipped_gradient_norms"] == [None]
    assert all(record["loss"] is not None for record in records)
    assert all(bool(jnp.isfinite(array).all()) for array in state.params.values())


def test_a_second_run_in_the_same_workdir_is_refused(config: ConfigDict, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(WorkdirError, match="is being written to by another run"):
        classification.train(config, tmp_path)


@pytest.mark.slow
def test_the_demo_reaches_two_per_cent(data_dir: Path, tmp_path: Path) -> None:
    config = digits_resnext29.get_config()
    config.data.data_dir = str(data_dir)
    classification.train(config, tmp_path)
    assert read_metrics(tmp_path)[-1]["top1_error"] <= 2.0
