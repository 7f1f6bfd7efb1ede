"""Preparing: once, by one process, wholly or not at all, with mistakes told in a sentence."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from resnext_jax.data import catalog
from resnext_jax.data import prepare as prepare_module
from resnext_jax.data.builders.base import Builder, Inputs
from resnext_jax.data.prepare import prepare
from resnext_jax.errors import DataError
from tests.data.images import encoded
from tests.data.raw import write_cifar_archive

ROOT = Path(__file__).parents[2]
IMAGE = encoded(Image.new("RGB", (2, 2)), "PNG")
Example = tuple[int, dict[str, Any]]


class Toy(Builder):
    """Five images for training and two for testing, whose making a test can disturb."""

    TITLE = "the toy"
    VERSION = tfds.core.Version("1.0.0")
    # What is done before the last training image, and how often examples were made.
    disturb: ClassVar[Callable[[], object] | None] = None
    splits: ClassVar[dict[str, list[int]]] = {"train": [0, 1, 2, 3, 4], "test": [0, 1]}
    needed: ClassVar[int] = 1000
    runs: ClassVar[int] = 0

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def check_inputs(self) -> int:
        """Return what the test says."""
        return self.needed

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        Toy.runs += 1
        return {split: self._generate_examples(keys) for split, keys in self.splits.items()}

    def _generate_examples(self, keys: list[int]) -> Iterator[Example]:
        for key in keys:
            if key == 4 and Toy.disturb:
                Toy.disturb()
            yield key, {"image": IMAGE, "label": key % 2}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.CATALOG, "toy", catalog.Entry(f"{__name__}:Toy"))
    # So that they are as before when the test is over.
    for name in ("disturb", "splits", "needed", "runs"):
        monkeypatch.setattr(Toy, name, getattr(Toy, name))


def refusal(folder: Path, name: str = "toy", inputs: Inputs | None = None) -> str:
    with pytest.raises(DataError) as caught:
        prepare(name, inputs, str(folder))
    message = str(caught.value)
    assert "\n" not in message
    return message


def raises(error: BaseException) -> Callable[[], object]:
    def disturb() -> None:
        raise error

    return disturb


def assert_whole(builder: tfds.core.DatasetBuilder) -> None:
    """The toy's images are all there, and nothing else is where they are."""
    labels = {
        split: [example["label"] for example in builder.as_data_source(split)]
        for split in ("train", "test")
    }
    assert {split: sorted(values) for split, values in labels.items()} == {
        "train": [0, 0, 0, 1, 1],
        "test": [0, 1],
    }
    folder = Path(builder.data_dir)
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert sorted(path.name for path in folder.iterdir() if "array_record" in path.name) == [
        "toy-test.array_record-00000-of-00001",
        "toy-train.array_record-00000-of-00001",
    ]


def test_prepares_once(tmp_path: Path) -> None:
    assert_whole(prepare("toy", data_dir=str(tmp_path)))
    Toy.needed = 10**18  # would be refused, were anything checked
    assert_whole(prepare("toy", data_dir=str(tmp_path)))
    assert Toy.runs == 1


def test_says_what_it_was_prepared_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives = [tmp_path / f"{name}.tar.gz" for name in "ab"]
    for number, archive in enumerate(archives, start=1):
        write_cifar_archive(archive, "cifar10", train=12 * number)
    given, other = (Inputs(archive=archive, trust_archives=True) for archive in archives)
    data = tmp_path / "data"
    folder = Path(prepare("cifar10", given, str(data)).data_dir)
    size = archives[0].stat().st_size
    assert capsys.readouterr().err.count("note:") == 0
    again = prepare("cifar10", given, str(data))
    assert again.info.splits["train"].num_examples == 12
    source = f"--archive={archives[0]} ({size:,} bytes)"
    before = f"CIFAR-10 in {folder} was prepared before, from {source}"
    assert f"note: {before}, and is left as it is; to prepare" in capsys.readouterr().err
    told = refusal(data, "cifar10", other)
    assert told.startswith(f"{before} and not from --archive={archives[1]} (")
    assert "; remove that folder first, or choose another folder with --data_dir=FOLDER" in told
    prepare("cifar10", data_dir=str(data))  # as training does
    assert capsys.readouterr().err == ""
    # Prepared by an earlier version.
    (folder / "prepared_from.json").unlink()
    prepare("cifar10", other, str(data))
    assert "from files that nobody wrote down, and is left" in capsys.readouterr().err


def test_says_that_other_archives_are_not_what_was_downloaded(tmp_path: Path) -> None:
    prepare("toy", data_dir=str(tmp_path))
    told = refusal(tmp_path, "toy", Inputs(manual_dir=tmp_path))
    assert f"from what it downloaded and not from --manual_dir={tmp_path};" in told


def test_needs_no_lock_for_what_is_prepared(tmp_path: Path) -> None:
    prepare("toy", data_dir=str(tmp_path))
    with (tmp_path / ".toy.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_whole(prepare("toy", data_dir=str(tmp_path)))


def test_takes_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    builder = prepare("toy", data_dir="~/data")
    assert builder.data_dir == f"{tmp_path}/data/toy/1.0.0"
    archive = tmp_path / "archive.tar.gz"
    write_cifar_archive(archive, "cifar10")
    inputs = Inputs(archive=Path("~/archive.tar.gz"), trust_archives=True)
    assert prepare("cifar10", inputs, "~/data").info.splits["train"].num_examples == 12


def test_leaves_stdout_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare("toy", data_dir=str(tmp_path))
    assert capfd.readouterr().out == ""


def test_knows_no_other_names(tmp_path: Path) -> None:
    assert "unknown data set 'mnist'" in refusal(tmp_path, "mnist")


@pytest.mark.parametrize("option", ["archive", "synsets"])
@pytest.mark.parametrize("name", ["digits", "folder", "imagenet2012"])
def test_refuses_inputs_that_are_of_no_use(tmp_path: Path, option: str, name: str) -> None:
    given: dict[str, Any] = {option: tmp_path / "x"}
    told = refusal(tmp_path, name, Inputs(**given))
    assert f"data set {name!r} takes no --{option}; it is for" in told


def test_ignores_a_folder_that_is_of_no_use(tmp_path: Path) -> None:
    inputs = Inputs(manual_dir=tmp_path / "none")
    assert prepare("digits", inputs, str(tmp_path)).info.splits["test"].num_examples == 359


def test_shuffles_through_files_without_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    assert_whole(prepare("toy", data_dir=str(tmp_path)))


def test_refuses_where_the_disk_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def disk_usage(path: Path) -> SimpleNamespace:
        asked.append(Path(path))
        return SimpleNamespace(total=10**13, used=0, free=2_000_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    Toy.needed = 2_000_000_000
    told = refusal(tmp_path / "new" / "data")
    assert "the toy needs 2.27 GB in" in told
    assert "2.00 GB are free" in told
    assert "--data_dir=FOLDER" in told
    assert asked[0] == tmp_path / "new" / "data"
    assert Toy.runs == 0
    Toy.needed = 1_000_000_000
    assert_whole(prepare("toy", data_dir=str(tmp_path / "new" / "data")))


NO_SPACE = os.strerror(errno.ENOSPC)
# As Python says it, and as the library says it that writes the shards.
FULL = {
    "python": OSError(errno.ENOSPC, NO_SPACE),
    "quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "library": RuntimeError(f"write() failed: {NO_SPACE}; writing /x; at byte 0"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL.keys())
def test_tells_that_the_disk_became_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def write_examples(path: Path, examples: Any) -> None:
        Path(path).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ArrayRecordFileAdapter, "write_examples", write_examples)
        told = refusal(tmp_path)
    assert f"the toy cannot be prepared in {tmp_path}; the disk is full: make room there" in told
    assert list((tmp_path / "toy").iterdir()) == []
    assert_whole(prepare("toy", data_dir=str(tmp_path)))


def test_tells_that_a_full_device_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ArrayRecordFileAdapter.write_examples
    monkeypatch.setattr(
        ArrayRecordFileAdapter,
        "write_examples",
        lambda path, examples: original("/dev/full", examples),
    )
    assert "the disk is full" in refusal(tmp_path)


def test_tells_that_shuffling_files_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(self: object, key: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, NO_SPACE)

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    monkeypatch.setattr(shuffle._Bucket, "add", add)
    assert "the disk is full" in refusal(tmp_path)


def test_tells_how_to_open_more_files(tmp_path: Path) -> None:
    Toy.disturb = raises(OSError(errno.EMFILE, "Too many open files"))
    assert "run ulimit -n 4096 first" in refusal(tmp_path)


@pytest.mark.parametrize("below", ["", "data"])
def test_tells_that_the_folder_cannot_be_written(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    told = refusal(tmp_path / "file" / below)
    assert f"the toy cannot be prepared in {tmp_path}/file" in told
    assert "--config.data.data_dir=FOLDER" in told


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    Toy.disturb = raises(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare("toy", data_dir=str(tmp_path))
    assert list((tmp_path / "toy").iterdir()) == []
    Toy.disturb = None
    assert_whole(prepare("toy", data_dir=str(tmp_path)))


KILLED = f"""
import os, signal, sys
from tests.data import test_prepare
test_prepare.catalog.CATALOG["toy"] = test_prepare.catalog.Entry("{__name__}:Toy")
test_prepare.Toy.disturb = lambda: os.kill(os.getpid(), signal.SIGKILL)
test_prepare.prepare("toy", data_dir=sys.argv[1])
"""


def test_what_a_killed_run_leaves_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    (left,) = (tmp_path / "toy").iterdir()
    assert left.name.startswith("incomplete.")
    assert_whole(prepare("toy", data_dir=str(tmp_path)))


def test_removes_what_is_left_of_this_data_set_only(tmp_path: Path) -> None:
    left = [
        "toy/incomplete.ABC123_1.0.0/x",
        "toy/config/incomplete.ABC123_1.0.0/x",
        "downloads/toy/x.tar.gzabc.tmp.0123/x",
    ]
    kept = ["other/incomplete.ABC123_1.0.0/x", "downloads/toy/x.tar.gz", "toy/mine/x"]
    for name in left + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    prepare("toy", data_dir=str(tmp_path))
    assert [name for name in left if (tmp_path / name).parent.exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []


def test_errors_of_data_come_out_as_they_are(tmp_path: Path) -> None:
    Toy.disturb = raises(DataError("archive x is damaged; fetch it again."))
    assert refusal(tmp_path) == "archive x is damaged; fetch it again."
    assert list((tmp_path / "toy").iterdir()) == []


def test_errors_of_data_come_out_of_others(tmp_path: Path) -> None:
    def disturb() -> None:
        try:
            raise DataError("archive x is damaged; fetch it again.")
        except DataError as error:
            raise RuntimeError("Failed to encode example:\n...") from error

    Toy.disturb = disturb
    assert refusal(tmp_path) == "archive x is damaged; fetch it again."


def test_tells_that_two_images_have_one_key(tmp_path: Path) -> None:
    Toy.splits = {"train": [0, 1, 1], "test": [0]}
    told = refusal(tmp_path)
    assert f"the toy cannot be prepared in {tmp_path}; two images have the same name: " in told


def test_refuses_an_empty_split(tmp_path: Path) -> None:
    Toy.splits = {"train": [0, 1], "test": []}
    assert 'split "test": No examples were yielded' in refusal(tmp_path)
    assert list((tmp_path / "toy").iterdir()) == []


def test_refuses_a_data_set_without_splits(tmp_path: Path) -> None:
    Toy.splits = {}
    assert refusal(tmp_path).startswith("the toy has no images;")
    assert list((tmp_path / "toy").iterdir()) == []


def test_mistakes_of_the_program_are_not_disguised(tmp_path: Path) -> None:
    Toy.disturb = raises(TypeError("a mistake"))
    with pytest.raises(TypeError, match="a mistake"):
        prepare("toy", data_dir=str(tmp_path))
    assert list((tmp_path / "toy").iterdir()) == []


def test_two_at_once_prepare_once(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def disturb() -> None:
        begun.set()
        assert go_on.wait(60)

    Toy.disturb = disturb
    builders: list[tfds.core.DatasetBuilder] = []

    def run() -> None:
        builders.append(prepare("toy", data_dir=str(tmp_path)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(builders) == 2
    for builder in builders:
        assert_whole(builder)
    assert Toy.runs == 1


def test_what_another_prepares_while_the_builder_is_made_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder is made, the other ends, and only then is looked whether it is prepared."""
    make = prepare_module._create
    made: list[tfds.core.DatasetBuilder] = []

    def make_too_early(*arguments: Any) -> tfds.core.DatasetBuilder:
        builder = make(*arguments)
        made.append(builder)
        if len(made) == 1:
            prepare("toy", data_dir=str(tmp_path))  # the other
        return builder

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_create", make_too_early)
        builder = prepare("toy", data_dir=str(tmp_path))
    assert not made[0].info.splits
    assert_whole(builder)
    assert Toy.runs == 1


def test_waits_for_another_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    builders: list[tfds.core.DatasetBuilder] = []
    with (tmp_path / ".toy.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(
            target=lambda: builders.append(prepare("toy", data_dir=str(tmp_path)))
        )
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert Toy.runs == 0
        told = capfd.readouterr().err
        assert f"waiting for another process that prepares toy in {tmp_path}" in told
    thread.join(60)
    assert_whole(builders[0])


def test_refuses_a_folder_that_is_no_whole_data_set(tmp_path: Path) -> None:
    builder = prepare("toy", data_dir=str(tmp_path))
    (Path(builder.data_dir) / "dataset_info.json").unlink()
    assert f"{builder.data_dir} is no whole data set; remove it" in refusal(tmp_path)


def test_refuses_a_damaged_data_set(tmp_path: Path) -> None:
    builder = prepare("toy", data_dir=str(tmp_path))
    (Path(builder.data_dir) / "dataset_info.json").write_text("{")
    assert f"the toy in {tmp_path} cannot be read (" in refusal(tmp_path)


def test_refuses_a_data_set_in_another_format(tmp_path: Path) -> None:
    builder = prepare("toy", data_dir=str(tmp_path))
    path = Path(builder.data_dir) / "dataset_info.json"
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert f"the toy in {tmp_path} cannot be read (File format is already" in refusal(tmp_path)
