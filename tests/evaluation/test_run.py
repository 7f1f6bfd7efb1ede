"""Evaluation of workdirs and files, from their weights to the results."""

import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from resnext_jax.data.sources import open_split
from resnext_jax.errors import CheckpointError, ConfigError, DataError, UserError
from resnext_jax.evaluation.run import Evaluation, EvaluationReport, evaluate_all, evaluate_workdir
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import read_state_dict, write_state_dict
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs.weights import classifier_config, load_network
from resnext_jax.runs.workdir import CONFIG_FILE
from tests.evaluation.workdirs import CHANGES, digits_config, make_workdir, write_weights
from tests.programs import run


@pytest.fixture(scope="module")
def config(data_dir: Path) -> ConfigDict:
    config = digits_config(data_dir)
    open_split(config, "test")  # preparing would print its progress
    return config


@pytest.fixture(scope="module")
def workdirs(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs: one with an average and two checkpoints, one of a wider network in form b."""
    folder = tmp_path_factory.mktemp("runs")
    other = config.copy_and_resolve_references()
    other.model.name, other.model.form = "resnext11_4x4d", "b"
    first = make_workdir(folder / "first", config, ema=True, steps=(0, 7))
    return [first, make_workdir(folder / "other", other, seed=5)]


@pytest.fixture(scope="module")
def file(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the first run."""
    return write_weights(tmp_path_factory.mktemp("weights") / "a.safetensors", config)


@pytest.fixture(scope="module")
def report(config: ConfigDict, workdirs: list[Path], file: Path) -> EvaluationReport:
    """All of them at once."""
    return evaluate_all(config, workdirs, [file])


def test_eval_prints_a_table(config: ConfigDict, workdirs: list[Path]) -> None:
    fields = CHANGES | {"data.data_dir": config.data.data_dir, "data.eval_crops": "ten"}
    result = run(
        *("eval.py", "--config=configs/digits_resnext29.py", f"--workdir={workdirs[0]}"),
        *(f"--config.{name}={value}" for name, value in fields.items()),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    row = r" +ten 8 of 9 +359 +\d+\.\d+ +\d+\.\d+ % +\d+\.\d+ %\n"
    table = (
        r"digits 1\.0\.0, split test, 10 classes; bicubic\n"
        r"weights +test +images +loss +top-1 error +top-5 error\n"
        rf"step 7{row}step 7, averaged{row}written: {workdirs[0]}/eval\.json\n"
    )
    assert re.fullmatch(table, result.stdout), result.stdout


def test_each_weights_and_the_ensemble(
    report: EvaluationReport, workdirs: list[Path], file: Path
) -> None:
    rows = [
        [(member.origin, member.model, member.step, member.weights) for member in row.members]
        for row in report.rows
    ]
    first, average, other, of_file = (row[0] for row in rows[:4])
    assert first == (str(workdirs[0]), "resnext11_2x4d", 7, "raw")
    assert average == (str(workdirs[0]), "resnext11_2x4d", 7, "ema")
    assert other == (str(workdirs[1]), "resnext11_4x4d", 0, "raw")
    assert of_file == (str(file), "resnext11_2x4d", None, "raw")
    assert rows[4] == [average, other, of_file]
    losses = [row.result.loss for row in report.rows]
    assert losses[0] == losses[3]
    assert len(set(losses)) == 4
    assert all(row.result.images == 359 for row in report.rows)
    assert report.protocol.short_sides == (9,)


def test_a_workdir_alone_scores_as_among_others(
    config: ConfigDict, workdirs: list[Path], report: EvaluationReport
) -> None:
    step, results = evaluate_workdir(config, workdirs[0])
    assert step == 7
    assert results == {
        "raw": report.rows[0].result,
        "ema": report.rows[1].result,
    }


def test_a_file_alone_is_no_ensemble(
    config: ConfigDict, file: Path, report: EvaluationReport
) -> None:
    """Its network is its own, whatever the config's."""
    changed = config.copy_and_resolve_references()
    changed.model.name, changed.data.eval_centre = "resnet50", "torch7"
    (row,) = evaluate_all(changed, [], [file]).rows
    assert row.result == report.rows[0].result


def test_weights_from_elsewhere_see_torchvisions_centre(
    config: ConfigDict, workdirs: list[Path], report: EvaluationReport, file: Path, tmp_path: Path
) -> None:
    """What was exported from a run here, and whatever is scored beside a run, the paper's."""
    foreign = evaluate_all(config, [], [file])
    assert foreign.protocol.centre == "torchvision"
    assert foreign.protocol.resizing == "bicubic, torchvision's centre"
    assert foreign.rows[0].result != report.rows[3].result
    assert report.protocol.centre == "torch7"
    assert report.protocol.resizing == "bicubic"
    named = tmp_path / "named.safetensors"
    write_state_dict(read_state_dict(file), named, tuple("0123456789"))
    for files in ([named], [named, file]):
        ours = evaluate_all(config, [], files)
        assert ours.protocol.centre == "torch7"
        assert ours.rows[0].result == report.rows[3].result
    assert load_network(file=file).config.data.eval_centre == "torchvision"
    assert load_network(file=named).config.data.eval_centre is None


def test_weights_have_a_hash(report: EvaluationReport, config: ConfigDict, file: Path) -> None:
    """Of the arrays: whatever holds them, in whatever form."""
    hashes = [row.members[0].hash() for row in report.rows[:4]]
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes)
    changed = config.copy_and_resolve_references()
    changed.model.form = "a"
    (row,) = evaluate_all(changed, [], [file]).rows
    assert row.members[0].network.params.keys() != report.rows[0].members[0].network.params.keys()
    assert row.members[0].hash() == hashes[0]


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("5", "there is no checkpoint .*5; the steps that have one: 0, 7"),
        ("newest", "'newest' must be latest, best or a step"),
        ("best", "best.json is missing"),
    ],
)
def test_a_checkpoint_that_is_not_there(
    config: ConfigDict, workdirs: list[Path], checkpoint: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        evaluate_workdir(config, workdirs[0], checkpoint)


def test_classes_are_matched_by_name(
    config: ConfigDict,
    workdirs: list[Path],
    report: EvaluationReport,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same names in another order are mapped; others are refused, unless they are accepted."""
    turned = read_state_dict(file)
    for name in ("fc.weight", "fc.bias"):
        turned[name] = turned[name][::-1]
    names = [str(9 - label) for label in range(10)]
    write_state_dict(turned, tmp_path / "named.safetensors", names)
    write_state_dict(turned, tmp_path / "plain.safetensors")
    run_of_turned = make_workdir(tmp_path / "run", config, names=names)
    rows = evaluate_all(
        config,
        [run_of_turned],
        [tmp_path / "named.safetensors", tmp_path / "plain.safetensors"],
    ).rows
    written = capsys.readouterr().err.splitlines()
    mapped = [line.partition(" has the classes of data set 'digits' in")[0] for line in written]
    named = tmp_path / "named.safetensors"
    assert mapped == [f"note: the run in {run_of_turned}", f"note: weights file {named}"]
    of_run, of_names, of_labels, _ = (row.result for row in rows)
    assert of_names == report.rows[3].result
    assert of_names != of_labels == of_run
    # The weights are what they were.
    assert rows[1].members[0].hash() == rows[2].members[0].hash()
    assert rows[0].members[0].hash() == report.rows[0].members[0].hash()

    letters = tmp_path / "letters.safetensors"
    write_state_dict(read_state_dict(file), letters, tuple("abcdefghij"))
    with pytest.raises(DataError, match=r"other classes than the 10 .*\('a' is not among them\)"):
        evaluate_all(config, [], [letters])
    (row,) = evaluate_all(config, [], [letters], any_class_names=True).rows
    assert row.result == report.rows[3].result
    few = make_workdir(tmp_path / "few", config, names=tuple("0123456"))
    with pytest.raises(DataError, match=r"\(it has 7\); use the run's data\.$"):
        evaluate_all(config, [few], any_class_names=True)


def test_members_must_fit_the_data(
    config: ConfigDict, workdirs: list[Path], tmp_path: Path
) -> None:
    """One sentence each, before anything is scored."""

    def refused(
        kind: type[UserError], message: str, *, files: list[Path], paths: list[Path]
    ) -> None:
        with pytest.raises(kind, match=message):
            evaluate_all(config, paths, files)

    few = write_weights(tmp_path / "few.safetensors", config, classes=7)
    message = "few.safetensors is for 7 classes, but data set 'digits' has 10; give weights"
    refused(WeightsError, message, files=[few], paths=[])
    (tmp_path / "text.pth").write_text("weights")
    refused(WeightsError, "neither .safetensors nor", files=[tmp_path / "text.pth"], paths=[])
    refused(WeightsError, "No such file", files=[tmp_path / "none.pth"], paths=[])
    broken = read_state_dict(few)
    del broken["layer1.0.bn1.bias"]
    write_state_dict(broken, tmp_path / "broken.safetensors")
    message = r"the nearest is resnext11_2x4d: 1 name missing \(layer1.0.bn1.bias\)"
    refused(WeightsError, message, files=[tmp_path / "broken.safetensors"], paths=[])
    letters = tuple("abcdefghij")
    other = make_workdir(tmp_path / "letters", config, names=letters)
    reason = r"trained on other classes than the 10 that .* \('a' is not among them\); use"
    refused(DataError, reason, files=[], paths=[workdirs[0], other])
    changed = config.copy_and_resolve_references()
    changed.data.mean = (1.0, 2.0, 3.0)
    other = make_workdir(tmp_path / "mean", changed)
    refused(ConfigError, r"another config \(data.mean is", files=[], paths=[workdirs[0], other])
    # Alone, a workdir's run is the config's.
    refused(ConfigError, r"another config \(.*model.form is", files=[], paths=workdirs[1:])


def test_a_config_of_a_workdir_that_cannot_be_read(workdirs: list[Path], tmp_path: Path) -> None:
    assert classifier_config(workdirs[1]).model.form == "b"
    with pytest.raises(UserError, match=r"has no config\.json"):
        classifier_config(tmp_path)
    for text, message in (
        ("{", "is damaged"),
        ("[1]", "is damaged"),
        ('{"model": 3}', "is damaged"),
        ('{"seed": -1}', r"cannot be used: config\.seed=-1 must be"),
        ('{"sede": 3}', "cannot be used: the config has an unknown field 'sede'"),
    ):
        (tmp_path / CONFIG_FILE).write_text(text)
        with pytest.raises(UserError, match=rf"config\.json {message}"):
            classifier_config(tmp_path)


@pytest.mark.parametrize("crops", ["centre", "ten", "dense"])
def test_more_first_classes_than_there_are(config: ConfigDict, crops: str) -> None:
    changed = config.copy_and_resolve_references()
    changed.data.eval_crops, changed.data.eval_first_classes = crops, 11
    with pytest.raises(ConfigError, match="=11 is more than the 10 classes of 'digits'"):
        Evaluation(changed, open_split(config, "test"), None, make_mesh(8, None))
