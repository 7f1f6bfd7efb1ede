"""What eval.py tells, and the files that it writes."""

import csv
import dataclasses
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from resnext_jax.configs import imagenet
from resnext_jax.errors import UserError
from resnext_jax.evaluation import report as command
from resnext_jax.evaluation.eval_file import as_json, merge_into, read_evaluations
from resnext_jax.evaluation.images import EvalResult
from resnext_jax.evaluation.outputs import check_writable, locked_folder, write_output
from resnext_jax.evaluation.protocol import Protocol
from resnext_jax.evaluation.run import EvaluationReport, Scored
from resnext_jax.evaluation.table import render_report, row_names
from resnext_jax.models.variables import Network
from resnext_jax.runs.weights import LoadedWeights
from tests.evaluation.small_test_sets import images_of, records_of, small_config
from tests.interop.weights import CIFAR_SPEC

RECORDS = records_of([0, 0, 1], [0, 2, 1], [0, 5, 0])


def member(origin: str, step: int | None = 3, weights: str = "raw") -> LoadedWeights:
    arrays: dict[str, Any] = {"fc.bias": np.arange(3, dtype=np.float32)}
    network = Network(nnx.graphdef(nnx.Module()), arrays, {})
    return LoadedWeights(origin, "resnext11_2x1d", step, weights, CIFAR_SPEC, network)


def result(loss: float = 1.25, **more: Any) -> EvalResult:
    return EvalResult(3, loss, 100 / 3, 0.0, records=RECORDS, **more)


def report_of(*rows: Scored, config: ConfigDict | None = None) -> EvaluationReport:
    return EvaluationReport(images_of([(8, 8)], 3), Protocol.of(config or small_config()), rows)


def of_a_run(loss: float = 1.25) -> EvaluationReport:
    """Raw and averaged weights of one workdir."""
    raw, average = member("runs/a"), member("runs/a", weights="ema")
    return report_of(Scored((raw,), result(loss)), Scored((average,), result(0.5)))


def of_an_ensemble() -> EvaluationReport:
    members = (member("runs/a"), member("b.pth", None))
    rows = [Scored((one,), result(among_first={2: (50.0, 0.0)}, skipped=1)) for one in members]
    both = Scored(members, result(among_first={2: (25.0, 0.0)}, skipped=1))
    return report_of(*rows, both)


def test_a_run_is_shown_by_its_weights() -> None:
    assert render_report(of_a_run()) == [
        "noise, split test, 7 classes; bicubic, antialiased",
        "weights           test           images    loss  top-1 error  top-5 error",
        "step 3            centre 8 of 9       3  1.2500      33.33 %       0.00 %",
        "step 3, averaged  centre 8 of 9       3  0.5000      33.33 %       0.00 %",
    ]


def test_an_ensemble_is_shown_below_its_members() -> None:
    assert render_report(of_an_ensemble()) == [
        "noise, split test, 7 classes; bicubic, antialiased",
        "weights                test           images    loss  top-1 error  top-5 error"
        "  2-way top-1  2-way top-5",
        "runs/a, step 3         centre 8 of 9       3  1.2500      33.33 %       0.00 %"
        "      50.00 %       0.00 %",
        "b.pth, resnext11_2x1d  centre 8 of 9       3  1.2500      33.33 %       0.00 %"
        "      50.00 %       0.00 %",
        "ensemble of 2          centre 8 of 9       3  1.2500      33.33 %       0.00 %"
        "      25.00 %       0.00 %",
        "ensemble of 2: the mean of the probabilities of runs/a, step 3 + b.pth, resnext11_2x1d",
        "left out: 1 images that cannot be decoded",
    ]


def test_protocols_have_names() -> None:
    config = imagenet.get_config("resnet50")
    assert str(Protocol.of(config)) == "centre 224 of 256"
    assert Protocol.of(config).resizing == "bicubic, antialiased"
    config.data.eval_crops, config.data.eval_interpolation = "ten", "torch7"
    assert str(Protocol.of(config)) == "ten 224 of 256"
    assert Protocol.of(config).resizing == "torch7"
    config.data.eval_crops, config.data.eval_image_size = "dense", 320
    assert Protocol.of(config).short_sides == (320, 366, 549, 686, 914)
    config = imagenet.get_config("resnet50,crop320")
    assert Protocol.of(config).as_json() == {
        "crops": "centre",
        "image_size": 320,
        "short_sides": [320],
        "interpolation": "bicubic",
        "antialias": True,
        "centre": "torch7",
    }
    config = imagenet.get_config("resnet50")
    config.data.crop = "whole"
    assert str(Protocol.of(config)) == "whole 224"
    assert Protocol.of(config).as_json()["short_sides"] is None


def test_a_record_says_what_was_scored_and_how() -> None:
    made = as_json(of_an_ensemble())
    how = "noise test, centre 8 of 9, bicubic, antialiased"
    names = ["runs/a, step 3", "b.pth, resnext11_2x1d"]
    assert list(made) == [
        *(f"{name}: {how}" for name in names),
        f"ensemble of 2: {' + '.join(names)}: {how}",
    ]
    one = made[f"{names[1]}: {how}"]
    (of_file,) = one["members"]
    assert len(of_file.pop("sha256")) == 64
    network = {"network": "resnext11_2x1d", "weights": "raw"}
    assert of_file == {"origin": "b.pth", "step": None} | network
    assert one["data"] == {"name": "noise", "version": "", "split": "test", "classes": 7}
    numbers = {name: one[name] for name in ("images", "skipped", "loss", "top1_error_2way")}
    assert numbers == {"images": 3, "skipped": 1, "loss": 1.25, "top1_error_2way": 50.0}
    assert {"jax", "resnext_jax"} <= one["versions"].keys()
    assert one["date"].endswith("+00:00")
    assert len(list(made.values())[2]["members"]) == 2


def test_evaluations_of_several_protocols_stand_together(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    merge_into(path, as_json(of_a_run()))
    ten = dataclasses.replace(of_a_run(2.0), protocol=Protocol.of(small_config(eval_crops="ten")))
    merge_into(path, as_json(ten))
    assert len(read_evaluations(path)) == 4
    merge_into(path, as_json(of_a_run(math.nan)))
    stored = read_evaluations(path)
    assert len(stored) == 4
    losses = [one["loss"] for name, one in stored.items() if "averaged" not in name]
    assert losses == [None, 2.0]  # the one made again has taken its place
    assert json.loads(path.read_text(), parse_constant=pytest.fail)


def test_two_evaluations_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    other = threading.Thread(target=merge_into, args=(path, as_json(of_a_run())))
    with locked_folder(tmp_path):
        other.start()
        other.join(0.2)
        assert not path.exists()
    other.join()
    assert len(read_evaluations(path)) == 2


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"evaluations": 3}', '{"evaluations": {"a": {}}}', '{"losses": {}}'],
)
def test_another_file_is_not_overwritten(text: str, tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no file of evaluations, or damaged"):
        merge_into(path, as_json(of_a_run()))
    assert path.read_text() == text


def test_files_that_cannot_be_written_are_told_before(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, reason in (("none/a.csv", "there is no folder"), ("folder", "it is a folder")):
        with pytest.raises(UserError, match=f"cannot be written: {reason}.*--per_class=FILE"):
            check_writable(tmp_path / name, "--per_class")
    with pytest.raises(UserError, match=r"cannot be written: .*--output=FILE"):
        write_output(tmp_path / "folder", "text", "--output")
    config = small_config()
    asked: list[tuple[dict[str, Any], str]] = [
        ({"confusion": str(tmp_path / "matrix.txt")}, r"must end in \.csv or \.npy"),
        ({"output": str(tmp_path / "none" / "a.json")}, "there is no folder"),
    ]
    for outputs, reason in asked:
        with pytest.raises(UserError, match=reason):
            command.evaluate_and_write(config, [], [str(tmp_path / "never_read")], **outputs)


def test_writes_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By class, of the table's last row."""

    def evaluate_all(
        config: ConfigDict, workdirs: Any, files: Any, **options: Any
    ) -> EvaluationReport:
        return of_an_ensemble() if len(files) + len(workdirs) > 1 else of_a_run()

    monkeypatch.setattr(command, "evaluate_all", evaluate_all)
    per_class, matrix = tmp_path / "class.csv", tmp_path / "matrix.npy"
    command.evaluate_and_write(
        small_config(),
        [str(tmp_path)],
        ["b.pth"],
        per_class=str(per_class),
        confusion=str(matrix),
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [
        "by class, of ensemble of 2, the worst first:",
        "  'a': top-1 error 50.00 % of 2 images, 1 taken for 'c'",
        f"written: {per_class}",
        f"written: {matrix}",
    ]
    assert len(list(csv.reader(per_class.read_text().splitlines()))) == 1 + 7
    assert np.load(matrix).sum() == 3
    # A single workdir has its evaluations in itself, or where one says.
    command.evaluate_and_write(small_config(), [str(tmp_path)], [])
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {tmp_path}/eval.json"
    assert len(read_evaluations(tmp_path / "eval.json")) == 2
    command.evaluate_and_write(
        small_config(), [str(tmp_path)], [], output=str(tmp_path / "other.json")
    )
    assert len(read_evaluations(tmp_path / "other.json")) == 2
    capsys.readouterr()
    command.evaluate_and_write(small_config(), [], ["b.pth"])
    assert "written" not in capsys.readouterr().out


def test_names_tell_rows_apart() -> None:
    assert row_names(of_a_run()) == ["step 3", "step 3, averaged"]
    alone = report_of(Scored((member("b.pth", None, "ema"),), result()))
    assert row_names(alone) == ["b.pth, resnext11_2x1d, averaged"]
