"""Data sets that cannot be read say so in one sentence."""

from pathlib import Path

import pytest

from resnext_jax.data.sources import check_readable, open_source, open_split
from resnext_jax.errors import DataError, UserError
from resnext_jax.training.config import base_config


def sentence(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert isinstance(error.value, UserError)
    return message


@pytest.mark.parametrize("name", ["", "Digits", "mnist", "cifar"])
def test_unknown_data_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_source(name, "train", str(tmp_path))
    message = sentence(error)
    assert message.startswith(f"unknown data set {name!r}; ")
    assert "config.data.name" in message
    assert "digits" in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet2012", "imagenet5k"])
def test_planned_data_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_source(name, "train", str(tmp_path))
    message = sentence(error)
    assert f"data set {name!r} cannot be read by this version yet" in message
    assert "readable: digits" in message
    assert list(tmp_path.iterdir()) == []


def test_digits_are_readable() -> None:
    check_readable("digits")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    # Tests may run as root, whom no permission stops: a folder below a file stops all.
    (tmp_path / "file").write_text("")
    data_dir = tmp_path / "file" / "tfds"
    with pytest.raises(DataError) as error:
        open_source("digits", "train", str(data_dir))
    message = sentence(error)
    assert str(data_dir) in message
    assert "--config.data.data_dir=" in message


def test_open_split_reads_what_the_config_names(data_dir: Path) -> None:
    config = base_config()
    config.data.name = "digits"
    config.data.data_dir = str(data_dir)
    source = open_split(config, "test")
    assert (source.name, source.split, len(source)) == ("digits", "test", 359)


def test_a_damaged_data_set_is_one_sentence(tmp_path: Path) -> None:
    open_source("digits", "test", str(tmp_path))
    (shard,) = (tmp_path / "digits" / "1.0.0").glob("digits-test.array_record*")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be prepared or read in") as error:
        open_source("digits", "test", str(tmp_path))
    assert "\n" not in str(error.value)
