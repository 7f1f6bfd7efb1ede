"""Data sets by name: what is read as it is, and what is told in one sentence."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from resnext_jax.config.fields import base_config
from resnext_jax.data.builders.base import Inputs
from resnext_jax.data.catalog import CATALOG, find
from resnext_jax.data.decode import decode_rgb
from resnext_jax.data.prepare import prepare
from resnext_jax.data.sources import open_source, open_split, open_splits
from resnext_jax.errors import DataError, UserError
from tests.data.images import encoded, photograph
from tests.data.raw import write_cifar_archive


def sentence(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert isinstance(error.value, UserError)
    return message


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny CIFAR-10, prepared."""
    folder = tmp_path_factory.mktemp("cifar")
    archive = folder / "cifar.tar.gz"
    write_cifar_archive(archive, "cifar10", train=7, test=3)
    prepare("cifar10", Inputs(archive=archive, trust_archives=True), str(folder))
    return folder


@pytest.fixture
def copy(cifar: Path, tmp_path: Path) -> Path:
    """Folder with a copy of it, to be damaged."""
    shutil.copytree(cifar / "cifar10", tmp_path / "cifar10")
    return tmp_path


def version_folder(data_dir: Path) -> Path:
    return data_dir / "cifar10" / "3.0.2"


@pytest.mark.parametrize("name", ["", "Digits", "mnist", "cifar"])
def test_unknown_data_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_source(name, "train", str(tmp_path))
    message = sentence(error)
    assert message.startswith(f"unknown data set {name!r}; ")
    assert "config.data.name" in message
    assert all(known in message for known in CATALOG)


@pytest.mark.parametrize("name", CATALOG)
def test_every_builder_can_be_imported(name: str) -> None:
    builder_class = find(name).builder_class()
    assert builder_class.name == name
    assert find(name).tfds_split("train", ()) == "train"


@pytest.mark.parametrize("name", ["imagenet2012", "imagenet5k"])
def test_large_data_sets_are_prepared_by_a_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_source(name, "train", str(tmp_path))
    message = sentence(error)
    assert f"data set {name!r} is not prepared in {tmp_path}" in message
    assert f"python -m resnext_jax.data.prepare --dataset={name} --manual_dir=" in message
    assert f"--data_dir={tmp_path}" in message
    assert list(tmp_path.iterdir()) == []


def test_the_usual_folder_of_tfds_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=f"not prepared in {tmp_path}"):
        open_source("imagenet2012", "train")


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
    assert decode_rgb(source.examples[0]["image"]).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("exif", "done"), [("ignore", "left as they are stored"), ("follow", "turned")]
)
def test_images_that_are_not_stored_upright_are_counted(
    exif: str, done: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = Image.Exif()
    for split, marks in (("train", (1, 6, 3)), ("val", (1, 1))):
        for index, mark in enumerate(marks):
            marked[0x0112] = mark
            path = tmp_path / "raw" / split / "cat" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photograph("china", 9, 6), "JPEG", exif=marked))
    config = base_config()
    config.data.name, config.data.manual_dir = "folder", str(tmp_path / "raw")
    config.data.data_dir, config.data.exif = str(tmp_path / "data"), exif
    train, test = open_splits(config)
    assert train.exif == test.exif == exif
    notes = [line for line in capsys.readouterr().err.splitlines() if "upright" in line]
    assert notes == [
        f"note: 2 of 3 images of split train are not stored upright, and are {done} "
        f"(config.data.exif={exif})"
    ]


def test_a_prepared_set_is_read_without_its_archive(cifar: Path) -> None:
    train = open_source("cifar10", "train", str(cifar))
    test = open_source("cifar10", "test", str(cifar))
    assert (len(train), len(test)) == (7, 3)
    assert train.num_classes == len(train.class_names) == 10
    assert train.version == test.version == "3.0.2"
    assert isinstance(train.examples[0]["image"], bytes)
    assert train.examples[0]["id"].startswith(b"train_")


def test_the_newest_version_is_read(copy: Path) -> None:
    """Stock tfds may have prepared another version than ours."""
    old = version_folder(copy)
    new = old.with_name("3.1.0")
    shutil.copytree(old, new)
    path = new / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"version": "3.1.0"}))
    (old / "features.json").unlink()  # whoever reads the old one stumbles
    assert len(open_source("cifar10", "train", str(copy))) == 7


def test_a_set_for_tensorflow_alone(copy: Path) -> None:
    path = version_folder(copy) / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError) as error:
        open_source("cifar10", "train", str(copy))
    message = sentence(error)
    assert "is stored as tfrecord, which only TensorFlow reads" in message
    assert "prepare it in another folder" in message
    command = f"tfds convert_format --dataset_version_dir={version_folder(copy)}"
    assert f"{command} --out_file_format=array_record" in message


def test_any_set_that_tfds_prepared_is_read_by_its_name(cifar: Path, tmp_path: Path) -> None:
    """Of a configuration too; with a validation split, that is tested on."""
    for folder in ("flowers", "flowers/small"):
        target = tmp_path / folder / "1.2.3"
        shutil.copytree(version_folder(cifar), target)
        source = open_source(f"tfds:{folder}", "test", str(tmp_path))
        assert (source.name, source.version) == (f"tfds:{folder}", "1.2.3")
        assert len(source) == len(open_source("cifar10", "test", str(cifar)))
    path = target / "dataset_info.json"
    info = json.loads(path.read_text())
    (train,) = (split for split in info["splits"] if split["name"] == "train")
    info["splits"].append(train | {"name": "validation"})
    path.write_text(json.dumps(info))
    for shard in target.glob("cifar10-train.*"):
        shutil.copy(shard, target / shard.name.replace("-train", "-validation"))
    assert len(open_source("tfds:flowers/small", "test", str(tmp_path))) == 7


def test_a_set_of_tfds_that_is_not_there_or_is_of_another_kind(copy: Path) -> None:
    with pytest.raises(DataError) as error:
        open_source("tfds:flowers", "train", str(copy))
    assert "there is no folder flowers/VERSION in" in sentence(error)
    assert "tfds build flowers --file_format=array_record" in sentence(error)
    path = version_folder(copy) / "features.json"
    path.write_text(path.read_text().replace('"label"', '"kind"'))
    with pytest.raises(DataError) as error:
        open_source("tfds:cifar10", "train", str(copy))
    assert "what is trained on has an image and a label" in sentence(error)


def test_a_damaged_data_set(copy: Path) -> None:
    (shard,) = version_folder(copy).glob("cifar10-test.array_record*")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError) as error:
        open_source("cifar10", "test", str(copy))
    message = sentence(error)
    assert f"data set 'cifar10' in {version_folder(copy)} cannot be read" in message
    assert "remove that folder" in message


def test_a_damaged_description(copy: Path) -> None:
    (version_folder(copy) / "features.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_source("cifar10", "train", str(copy))


def test_a_missing_split(copy: Path) -> None:
    path = version_folder(copy) / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    path.write_text(json.dumps(info))
    assert len(open_source("cifar10", "train", str(copy))) == 7
    with pytest.raises(DataError, match="has no split 'test'") as error:
        open_source("cifar10", "test", str(copy))
    assert "(it has train)" in sentence(error)


def test_an_empty_split(copy: Path) -> None:
    path = version_folder(copy) / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["shardLengths"] = ["0"]
    path.write_text(json.dumps(info))
    with pytest.raises(DataError) as error:
        open_source("cifar10", "test", str(copy))
    message = sentence(error)
    assert f"data set 'cifar10' in {version_folder(copy)} has no images in split 'test'" in message
    assert "prepare it again" in message


def test_facts_tell_copies_that_differ_from_those_that_do_not(cifar: Path) -> None:
    """What hosts compare before they train together."""
    source = open_source("cifar10", "train", str(cifar))
    assert source.facts() == open_source("cifar10", "train", str(cifar)).facts()
    json.dumps(source.facts())
    examples = [dict(source.examples[index]) for index in range(len(source))]
    for name, value in (("image", b"other"), ("label", 11), ("id", b"train_99999")):
        changed = [*examples[:-1], examples[-1] | {name: value}]
        assert dataclasses.replace(source, examples=changed).facts() != source.facts()
    for changes in (
        {"examples": examples[:-1]},
        {"class_names": source.class_names[::-1]},
        {"version": "3.0.3"},
    ):
        facts = dataclasses.replace(source, **changes).facts()
        assert sum(facts[name] != value for name, value in source.facts().items()) in (1, 2)
