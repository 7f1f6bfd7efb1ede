"""Reading runs, and putting seeds together."""

import json
import math
from pathlib import Path

import pytest

from resnext_jax.errors import UserError, WorkdirError
from resnext_jax.reports.errors import ReportError
from resnext_jax.reports.runs import Score, find_workdirs, group_runs, labels, read_run
from resnext_jax.runs.workdir import CONFIG_FILE, DATA_SET_FILE
from tests.reports.workdirs import digits, of_a_test, of_training, write_records, write_run


def test_a_run_is_its_config_and_its_last_test(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", digits(seed=3), 7.5))
    assert (run.seed, run.classes, run.data_version) == (3, 10, "1.0.0")
    assert (run.architecture.cardinality, run.architecture.group_width) == (1, 4)
    assert run.architecture.template_width == 64
    assert run.last_test["raw"]["top1_error"] == 7.5
    assert run.finished


def test_a_run_from_before_a_field_has_its_default(tmp_path: Path) -> None:
    workdir = write_run(tmp_path / "run", digits())
    path = tmp_path / "run" / CONFIG_FILE
    stored = json.loads(path.read_text())
    del stored["ema"], stored["data"]["mixup"]
    path.write_text(json.dumps(stored))
    run = read_run(workdir)
    assert run.config.ema.decay is None
    assert run.config.data.mixup == 0.0


@pytest.mark.parametrize("epochs", [None, 11.0, 6.0])
def test_finished_is_tested_at_the_last_step(tmp_path: Path, epochs: float | None) -> None:
    assert read_run(write_run(tmp_path / "run", digits(), epochs=epochs)).finished == (not epochs)


def test_not_finished_without_a_test_of_the_averaged_weights(tmp_path: Path) -> None:
    config = digits(**{"ema.decay": 0.9})
    assert not read_run(write_run(tmp_path / "raw", config)).finished
    assert read_run(write_run(tmp_path / "both", config, ema=19.0)).finished


def test_not_finished_where_training_went_on(tmp_path: Path) -> None:
    """Killed in the last test: the last record is of training, the last test an earlier one."""
    workdir = tmp_path / "run"
    write_run(workdir, digits())
    write_records(workdir, [of_a_test(6, 30.0), of_training(12, 10.0)])
    assert not read_run(str(workdir)).finished


def test_epochs_that_are_no_whole_number_of_steps(tmp_path: Path) -> None:
    """1,438 digits in batches of 32: 12 epochs are 539.25 steps."""
    workdir = tmp_path / "run"
    write_run(workdir, digits())
    for step, finished in ((539, True), (538, False)):
        last = of_a_test(1, 20.0) | {"step": step, "epoch": step / (1438 / 32)}
        write_records(workdir, [last])
        assert read_run(str(workdir)).finished == finished


def test_half_a_step_is_rounded_as_in_training(tmp_path: Path) -> None:
    """An epoch of 35.5 steps, 7 of which are 248.5: training takes 248."""
    workdir = tmp_path / "run"
    write_run(workdir, digits(num_epochs=7.0))
    write_records(workdir, [of_a_test(1, 20.0) | {"step": 248, "epoch": 248 / 35.5}])
    assert round(7 * 35.5) == 248
    assert read_run(str(workdir)).finished


def test_a_run_without_a_test_is_no_error(tmp_path: Path) -> None:
    workdir = write_run(tmp_path / "run", digits())
    (tmp_path / "run" / "metrics.jsonl").unlink()
    run = read_run(workdir)
    assert run.last_test == {}
    assert not run.finished


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (CONFIG_FILE, None, r"has no config\.json"),
        (CONFIG_FILE, "{", r"config\.json is damaged"),
        (CONFIG_FILE, "[1]", r"config\.json is damaged \(not a JSON object\)"),
        (CONFIG_FILE, '{"model": 3}', r"config\.json is damaged"),
        (CONFIG_FILE, '{"num_epochs": "many"}', r"config\.json is damaged"),
        (CONFIG_FILE, '{"model": {"name": "vgg"}}', r"config\.json is damaged \(unknown model"),
        (DATA_SET_FILE, None, r"has no data_set\.json"),
        (DATA_SET_FILE, '{"classes": []}', r"data_set\.json has no list of classes"),
        ("metrics.jsonl", "nonsense\n", r"metrics\.jsonl is damaged"),
        ("eval.json", "{}", r"eval\.json is no file of evaluations, or damaged"),
        (
            "metrics.jsonl",
            '{"step": 7, "epoch": 1, "split": "test", "weights": "raw"}\n',
            r"metrics\.jsonl is damaged \(a test at step 7",
        ),
    ],
)
def test_a_damaged_workdir_is_one_sentence(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    workdir = write_run(tmp_path / "run", digits())
    path = tmp_path / "run" / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(workdir)


def test_a_missing_workdir_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorkdirError, match="does not exist"):
        read_run(str(tmp_path / "nowhere"))


def test_patterns_stand_for_the_folders_of_runs(tmp_path: Path) -> None:
    for name in ("a/16x4d", "a/8x4d", "b/8x4d"):
        write_run(tmp_path / name, digits())
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "a" / "list.txt").write_text("")
    said: list[str] = []
    pattern, repeated = f"{tmp_path}/a/*", f"{tmp_path}/b/../a/8x4d/"
    found = find_workdirs([pattern, repeated, f"{tmp_path}/b/8x4d"], said.append)
    assert found == [f"{tmp_path}/{name}" for name in ("a/8x4d", "a/16x4d", "b/8x4d")]
    assert said == [f"ignored, because they have no config.json: {tmp_path}/a/notes"]
    assert len(find_workdirs([f"{tmp_path}/**"])) == 3
    with pytest.raises(ReportError, match="matches no workdir"):
        find_workdirs([f"{tmp_path}/c/*"])


def test_seeds_are_put_together(tmp_path: Path) -> None:
    """By all of the config but the seed, and what changes no result."""
    workdirs = [
        write_run(tmp_path / "2", digits(seed=2, log_every_steps=7), 3.0),
        write_run(tmp_path / "0", digits(seed=0), 1.0),
        write_run(tmp_path / "other", digits(seed=1, batch_size=64), 9.0),
        write_run(tmp_path / "1", digits(seed=1, **{"data.num_workers": 2}), 2.0),
    ]
    group, other = group_runs(map(read_run, workdirs))
    assert [run.seed for run in group.runs] == [0, 1, 2]
    assert group.score("top1_error", "raw") == Score(2.0, 1.0, 3)
    assert other.score("top1_error", "raw") == Score(9.0, None, 1)
    assert not group.others


def test_runs_on_other_images_are_not_put_together(tmp_path: Path) -> None:
    workdirs = [write_run(tmp_path / str(seed), digits(seed=seed)) for seed in range(2)]
    path = tmp_path / "1" / DATA_SET_FILE
    path.write_text(path.read_text().replace("1.0.0", "1.0.1"))
    assert len(group_runs(map(read_run, workdirs))) == 2


def test_unfinished_and_repeated_runs_do_not_count(tmp_path: Path) -> None:
    workdirs = [
        write_run(tmp_path / "first", digits(), 1.0),
        write_run(tmp_path / "again", digits(), 2.0),
        write_run(tmp_path / "begun", digits(seed=1), 30.0, epochs=6),
    ]
    (group,) = group_runs(map(read_run, workdirs))
    assert group.score("top1_error", "raw") == Score(1.0, None, 1)
    assert {run.workdir: why for run, why in group.others} == {
        workdirs[1]: f"the same run as {workdirs[0]}, by config and seed",
        workdirs[2]: "unfinished: 6 of 12 epochs, last test: top-1 error 30.00 % (raw) at epoch 6",
    }


def test_scores_by_hand(tmp_path: Path) -> None:
    errors = (1.0, 2.0, 4.0, 5.0)  # mean 3, squares of the differences 4, 1, 1, 4
    workdirs = [
        write_run(tmp_path / str(seed), digits(seed=seed), error)
        for seed, error in enumerate(errors)
    ]
    (group,) = group_runs(map(read_run, workdirs))
    score = group.score("top1_error", "raw")
    assert score is not None
    assert score.mean == 3.0
    assert score.deviation == pytest.approx(math.sqrt(10 / 3))
    assert score.standard_error == pytest.approx(math.sqrt(10 / 3) / 2)
    assert str(score) == "3.00 ± 1.83"
    assert str(Score(3.0, None, 1)) == "3.00"
    assert group.score("top1_error", "ema") is None
    assert group.score("top1_error_1000way", "raw") is None


def test_labels_tell_what_differs(tmp_path: Path) -> None:
    configs = [
        digits("resnext29_2x4d"),
        digits("resnext29_2x4d", batch_size=64),
        digits("resnext29_4x4d", num_epochs=3.0),
    ]
    workdirs = [write_run(tmp_path / str(i), config) for i, config in enumerate(configs)]
    groups = group_runs(map(read_run, workdirs))
    both = ["resnext29_2x4d, batch_size=32", "resnext29_2x4d, batch_size=64"]
    assert labels(groups) == [*both, "resnext29_4x4d"]
    cifar = digits("resnext29_4x4d", **{"data.name": "cifar10"})
    groups += group_runs([read_run(write_run(tmp_path / "cifar", cifar))])
    assert labels(groups[2:]) == ["resnext29_4x4d on digits", "resnext29_4x4d on cifar10"]
