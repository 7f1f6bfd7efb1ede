"""The folder of a run: made, checked, and kept to one config."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from resnext_jax.config.fields import base_config
from resnext_jax.data.sources import Source
from resnext_jax.errors import ConfigError, DataError, UserError, WorkdirError
from resnext_jax.runs.workdir import (
    CONFIG_FILE,
    WholeWriter,
    check_same_data,
    check_same_run,
    existing_workdir,
    locked,
    open_workdir,
    write_atomically,
    write_config,
    write_data_set,
)


def test_makes_the_folder_and_its_parents(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path / "a" / "b")
    assert workdir == tmp_path / "a" / "b"
    assert workdir.is_dir()
    left = {path.name for path in workdir.iterdir()}
    assert left == {"checkpoints", "plots", "tensorboard"}


def test_opens_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    assert open_workdir(str(tmp_path)) == tmp_path
    assert (tmp_path / "kept").read_text() == "kept"


def test_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_workdir("run") == tmp_path / "run"
    assert existing_workdir("run") == tmp_path / "run"


# Tests may run as root, whom no permission stops: a file in the way stops all.
@pytest.mark.parametrize("below", ["", "run", "run/deeper"])
def test_folder_that_cannot_be_made(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    path = tmp_path / "file" / below
    with pytest.raises(WorkdirError) as error:
        open_workdir(path)
    message = str(error.value)
    assert message.startswith(f"workdir {path} cannot be used: ")
    assert "--workdir=" in message
    assert "None" not in message
    assert "\n" not in message
    assert isinstance(error.value, UserError)
    assert (tmp_path / "file").read_text() == "kept"


def test_folder_that_should_be_there(tmp_path: Path) -> None:
    assert existing_workdir(tmp_path) == tmp_path
    missing = tmp_path / "none"
    with pytest.raises(WorkdirError, match="does not exist") as error:
        existing_workdir(missing)
    assert str(missing) in str(error.value)
    assert not missing.exists()


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("first", "second, longer", "3"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_half_way_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new, but with a character no file can hold: \ud800")
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"


def run_config(**changes: Any) -> ConfigDict:
    """Base config with changed fields, by dotted name with __ for the dot."""
    config = base_config()
    config.model.name = "resnet50"
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


def test_config_file_holds_every_field(tmp_path: Path) -> None:
    config = run_config(seed=7)
    write_config(config, tmp_path)
    stored = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert stored["seed"] == 7
    assert stored["bn_group_size"] is None
    assert stored["model"]["name"] == "resnet50"
    assert stored["schedule"]["boundaries"] == [30.0, 60.0, 90.0]
    assert stored == json.loads(json.dumps(config.to_dict()))


def test_the_same_config_may_resume(tmp_path: Path) -> None:
    """Though JSON turns tuples into lists."""
    config = run_config(schedule__boundaries=(1.5, 2.5), bn_group_size=32)
    write_config(config, tmp_path)
    check_same_run(config, tmp_path)


def test_a_folder_without_config_holds_no_other_run(tmp_path: Path) -> None:
    check_same_run(run_config(), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.data_dir", "/elsewhere"),
        ("data.num_workers", 4),
        ("data.eval_image_size", 320),
        ("data.eval_crops", "ten"),
        ("data.eval_interpolation", "bilinear"),
        ("eval_batch_size", 1),
        ("eval_every_epochs", 2.0),
        ("checkpoint_every_epochs", 0.5),
        ("keep_checkpoints", 1),
        ("log_every_steps", 1),
        ("accumulate_steps", 2),
        ("checkpoint_every_steps", 7),
        ("checkpoint_every_minutes", 5.0),
        ("guard.on_nonfinite", "skip"),
        ("optimizer.clip_norm", 1.0),
        ("profile_steps", (3, 4)),
    ],
)
def test_what_does_not_change_the_result_may_change(tmp_path: Path, name: str, value: Any) -> None:
    write_config(run_config(), tmp_path)
    check_same_run(run_config(**{name: value}), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "old"),
    [
        ("seed", 1, "0"),
        ("batch_size", 128, "256"),
        ("bn_group_size", 32, "None"),
        ("num_epochs", 90.0, "100.0"),
        ("images_per_epoch", 1000, "None"),
        ("model.name", "resnet101", "'resnet50'"),
        ("model.dtype", "bfloat16", "'float32'"),
        ("optimizer.learning_rate", 0.2, "0.1"),
        ("optimizer.nesterov", False, "True"),
        ("optimizer.decay_norm", False, "True"),
        ("ema.decay", 0.9, "None"),
        ("finetune.backbone_rate", 0.1, "1.0"),
        ("data.mixup", 0.2, "0.0"),
        ("schedule.boundaries", (30.0, 60.0), "[30.0, 60.0, 90.0]"),
        ("data.name", "digits", "''"),
        ("data.image_size", 192, "224"),
    ],
)
def test_what_changes_the_result_may_not(tmp_path: Path, name: str, value: Any, old: str) -> None:
    write_config(run_config(), tmp_path)
    with pytest.raises(ConfigError) as error:
        check_same_run(run_config(**{name: value}), tmp_path)
    message = str(error.value)
    new = repr(list(value) if isinstance(value, tuple) else value)
    assert f"({name} is {new}, was {old})" in message
    assert str(tmp_path) in message
    assert "another --workdir" in message


def test_all_that_differ_are_listed_and_no_other(tmp_path: Path) -> None:
    write_config(run_config(seed=1, log_every_steps=1), tmp_path)
    with pytest.raises(ConfigError) as error:
        check_same_run(run_config(seed=2, optimizer__momentum=0.5), tmp_path)
    message = str(error.value)
    assert "seed is 2, was 1" in message
    assert "optimizer.momentum is 0.5, was 0.9" in message
    assert message.count(" was ") == 2


def test_a_field_that_the_old_run_did_not_have(tmp_path: Path) -> None:
    old = run_config()
    del old.optimizer["nesterov"]
    write_config(old, tmp_path)
    check_same_run(run_config(), tmp_path)  # it did as the default says
    other = run_config()
    other.optimizer.nesterov = False
    with pytest.raises(ConfigError, match=r"optimizer\.nesterov is False, was True"):
        check_same_run(other, tmp_path)


@pytest.mark.parametrize("text", ['{"a":', "3", "[]"])
def test_a_damaged_config_of_the_run_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WorkdirError, match=r"config\.json is damaged"):
        check_same_run(base_config(), tmp_path)


def test_sections_can_be_compared_alone(tmp_path: Path) -> None:
    config = base_config()
    write_config(config, tmp_path)
    config.num_epochs = 1.0
    check_same_run(config, tmp_path, sections=("model", "data"))
    config.data.flip = False
    with pytest.raises(ConfigError, match=r"data\.flip is False, was True\)"):
        check_same_run(config, tmp_path, sections=("model", "data"))


@pytest.mark.parametrize("name", ["checkpoints", "plots", "tensorboard"])
def test_a_file_in_the_way_is_told_at_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("in the way")
    with pytest.raises(WorkdirError, match=f"cannot be used: File exists .*{name}"):
        open_workdir(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """A file for a folder: as root, which tests may run as, any folder can be read."""
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(WorkdirError, match="cannot be read: Not a directory"):
        existing_workdir(path)


def test_a_workdir_is_locked_while_a_run_writes_to_it(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(WorkdirError, match=rf"another run \(process {os.getpid()} on .*\); wait"),
        locked(tmp_path),
    ):
        pass
    # Afterwards it is free, and was not touched by the one that was refused.
    with locked(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_a_lock_that_cannot_be_taken_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(WorkdirError, match=r"\.lock cannot be written"), locked(tmp_path):
        pass


def test_the_lock_of_a_dead_run_is_free(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal; from resnext_jax.runs.workdir import locked; "
        f"locked(pathlib.Path({str(tmp_path)!r})).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL
    with locked(tmp_path):
        pass


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux")
def test_a_folder_that_cannot_be_written_is_told_at_the_start() -> None:
    """Nobody can write there, root neither."""
    with pytest.raises(WorkdirError, match="workdir /sys/kernel cannot be used: "):
        open_workdir("/sys/kernel")


def test_a_read_only_file_system_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**arguments: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments["dir"]))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(WorkdirError, match="cannot be used: Read-only file system"):
        open_workdir(tmp_path)


def test_what_is_written_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a")
    writer = WholeWriter(path)
    writer.write(b"bc")
    assert path.read_bytes() == b"abc"
    writer.sync()
    writer.close()
    with pytest.raises(WorkdirError, match=r"missing/file cannot be written \(No such file"):
        WholeWriter(tmp_path / "missing" / "file")


def test_a_run_goes_on_with_its_data_also_as_earlier_versions_named_it(tmp_path: Path) -> None:
    def source(version: str, *former: str) -> Source:
        return Source("folder", "train", [], ("cat", "dog"), version, former)

    now = source("0123456789abcdef", "pets-0123456789ab/1.0.0")
    for stored in (now, source("pets-0123456789ab/1.0.0")):
        write_data_set(stored, tmp_path)
        check_same_data(now, tmp_path)
    write_data_set(source("pets-ba9876543210/1.0.0"), tmp_path)
    with pytest.raises(DataError, match="images were added, removed or renamed"):
        check_same_data(now, tmp_path)
