"""What a run can do beside plain training, together in one short run, and fine-tuning from it."""

import json
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from resnext_jax.errors import CheckpointError, ConfigError, WorkdirError
from resnext_jax.evaluation.run import evaluate_workdir
from resnext_jax.runs.log import read_metrics
from resnext_jax.training import classification, loop
from resnext_jax.training.state import TrainState
from tests.training.runs import assert_same_state, short_run_config, without_timings


@pytest.fixture(scope="module")
def config(data_dir: Path) -> ConfigDict:
    """Everything of the modern recipe, in micro-batches, with a trace."""
    config = short_run_config(data_dir)
    config.num_epochs = 2.0
    config.accumulate_steps = 2
    config.bn_group_size = 16
    config.schedule.warmup_epochs = 0.5
    config.optimizer.label_smoothing = 0.1
    config.optimizer.decay_norm = config.optimizer.decay_bias = False
    config.optimizer.clip_norm = 5.0
    config.ema.decay = 0.8
    config.guard.spike_factor = 10.0
    config.data.trivial_augment = True
    config.data.random_erase = 0.1
    config.data.mixup = 0.2
    config.data.cutmix = 1.0
    config.profile_steps = (3, 4)
    config.checkpoint_every_steps = 7
    config.keep_checkpoints = 1
    config.keep_every_epochs = 1.0
    return config


@pytest.fixture(scope="module")
def run(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    workdir = tmp_path_factory.mktemp("run")
    return workdir, classification.train(config, workdir)


def test_the_average_is_tested_beside_the_weights(
    config: ConfigDict, run: tuple[Path, TrainState]
) -> None:
    tests = [record for record in read_metrics(run[0]) if record["split"] == "test"]
    steps = [(record["step"], record["weights"]) for record in tests]
    assert steps == [(12, "raw"), (12, "ema"), (22, "raw"), (22, "ema")]
    raw, ema = tests[-2:]
    assert raw["loss"] != ema["loss"]
    best = json.loads((run[0] / "best.json").read_text())
    assert best["weights"] == "ema"
    assert best["value"] == min(r["top1_error"] for r in tests if r["weights"] == "ema")
    # eval.py scores both.
    step, results = evaluate_workdir(config, run[0])
    assert step == 22
    assert {name: result.loss for name, result in results.items()} == {
        "raw": raw["loss"],
        "ema": ema["loss"],
    }


@pytest.mark.slow  # test_loop has a test cut short, of one set of weights
def test_a_test_cut_short_is_made_again_as_a_whole(
    config: ConfigDict,
    run: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped when the weights are tested, and their average is not."""
    tested = classification.Evaluation.run
    times = 0

    def stopping(self: Any, *args: Any) -> Any:
        nonlocal times
        times += 1
        if times == 2:
            signal.raise_signal(signal.SIGTERM)
        return tested(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(classification.Evaluation, "run", stopping)
        with pytest.raises(loop.InterruptedRunError, match="SIGTERM after step 12"):
            classification.train(config, tmp_path)
    # Saved by the clock as well, which changes nothing.
    monkeypatch.setattr(loop.SaveClock, "due", property(lambda clock: True))
    changed = config.copy_and_resolve_references()
    changed.checkpoint_every_minutes = 0.01
    assert_same_state(classification.train(changed, tmp_path), run[1])
    assert without_timings(read_metrics(tmp_path)) == without_timings(read_metrics(run[0]))


def test_checkpoints_are_kept_as_told(run: tuple[Path, TrainState]) -> None:
    """The last, the best, and one an epoch; those of steps 7, 14 and 21 are gone."""
    kept = {int(path.name) for path in (run[0] / "checkpoints").iterdir()}
    assert kept == {12, 22}


def test_steps_can_be_profiled(run: tuple[Path, TrainState]) -> None:
    (trace,) = run[0].glob("profile/plugins/profile/*/*.xplane.pb")
    # By its bytes: reading it with jax.profiler.ProfileData has crashed the process.
    assert b"step_num" in trace.read_bytes()


def finetuning(config: ConfigDict, workdir: Path) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.init_from = str(workdir)
    config.finetune.frozen_stages = 2
    config.finetune.backbone_rate = 0.1
    config.seed = 1  # another classifier to start from
    config.num_epochs = 0.2
    config.schedule.warmup_epochs = 0.0
    config.profile_steps = ()
    return config


def test_fine_tuning_starts_from_the_average_with_a_new_classifier(
    config: ConfigDict, run: tuple[Path, TrainState], tmp_path: Path
) -> None:
    average = jax.device_get(run[1].ema)
    assert average is not None
    state = jax.device_get(classification.train(finetuning(config, run[0]), tmp_path))
    assert int(state.step) == 2
    for stored, trained in (
        (average["params"], state.params),
        (average["batch_stats"], state.batch_stats),
    ):
        for name, before in stored.items():
            frozen = name.startswith(("stem.", "stages.conv2."))
            assert np.array_equal(before, trained[name]) == frozen, name
    # The classifier is new, not a little further trained.
    change = np.abs(state.params["fc.kernel"] - average["params"]["fc.kernel"]).mean()
    assert change > 0.5 * np.abs(average["params"]["fc.kernel"]).mean()
    moved = np.abs(state.params["stages.conv4.0.conv1.kernel"]).max()
    assert moved > 0


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"init_from": "/nowhere"}, WorkdirError, "/nowhere does not exist"),
        ({"model.name": "resnext11_4x4d"}, ConfigError, "config.init_from cannot be"),
    ],
)
def test_what_cannot_be_started_from(
    changes: dict[str, str],
    error: type[Exception],
    text: str,
    config: ConfigDict,
    run: tuple[Path, TrainState],
    tmp_path: Path,
) -> None:
    changed = finetuning(config, run[0])
    changed.update_from_flattened_dict(changes)
    with pytest.raises(error, match=text):
        classification.train(changed, tmp_path)


def test_an_empty_folder_cannot_be_started_from(config: ConfigDict, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((WorkdirError, CheckpointError), match=r"does not list the classes"):
        classification.train(finetuning(config, tmp_path / "empty"), tmp_path / "run")


def test_images_are_mixed_in_pairs(config: ConfigDict, tmp_path: Path) -> None:
    changed = config.copy_and_resolve_references()
    changed.batch_size = 16
    changed.bn_group_size = 8
    with pytest.raises(ConfigError, match=r"each of 8 devices holds 1 of a micro-batch"):
        classification.train(changed, tmp_path)
