"""CIFAR from archives of binary records: the examples that tfds's own builders make."""

import dataclasses
import hashlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from resnext_jax.data.builders.base import Inputs
from resnext_jax.data.builders.cifar import Cifar10
from resnext_jax.data.prepare import prepare
from resnext_jax.errors import DataError
from tests.data.raw import CIFAR, RawSplit, class_names, write_cifar_archive

NAMES = ["cifar10", "cifar100"]
COARSE = "cifar-100-binary/coarse_label_names.txt"


@dataclasses.dataclass(frozen=True)
class Made:
    """An archive, what is in it, and the data set that was prepared from it."""

    raw: dict[str, RawSplit]
    builder: tfds.core.DatasetBuilder

    def examples(self, split: str) -> list[dict[str, Any]]:
        """All examples of a split, in the order on the disk."""
        return list(self.builder.as_data_source(split=split))


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    archive = folder / "archive.tar.gz"
    raw = write_cifar_archive(archive, request.param, train=60, test=21)
    inputs = Inputs(archive=archive, trust_archives=True)
    return Made(raw, prepare(request.param, inputs, str(folder / "data")))


def refusal(name: str, folder: Path, **inputs: Any) -> str:
    """The sentence with which preparing is refused, after which nothing must be left."""
    with pytest.raises(DataError) as caught:
        prepare(name, Inputs(**inputs), str(folder / "data"))
    message = str(caught.value)
    assert "\n" not in message
    left = [path.name for path in (folder / "data").rglob("*") if path.is_file()]
    assert left == [f".{name}.lock"]
    return message


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_those_of_the_archive(made: Made, split: str) -> None:
    raw, examples = made.raw[split], made.examples(split)
    assert len(examples) == len(raw.images)
    indices = [int(example["id"].decode().removeprefix(f"{split}_")) for example in examples]
    assert sorted(indices) == list(range(len(examples)))
    for index, example in zip(indices, examples, strict=True):
        assert example["id"].decode() == f"{split}_{index:05d}"
        assert example["image"].dtype == np.uint8
        np.testing.assert_array_equal(example["image"], raw.images[index])
        labels = {name: example[name] for name in raw.labels}
        assert labels == {name: values[index] for name, values in raw.labels.items()}


@pytest.mark.parametrize("split", ["train", "test"])
def test_order_is_that_of_hashed_running_numbers(made: Made, split: str) -> None:
    hasher = hashing.Hasher(split)
    expected = sorted(range(len(made.raw[split].images)), key=hasher.hash_key)
    assert expected != sorted(expected)
    ids = [example["id"].decode() for example in made.examples(split)]
    assert ids == [f"{split}_{index:05d}" for index in expected]


def test_class_names_are_those_of_the_archive(made: Made) -> None:
    for name in made.raw["train"].labels:
        label = made.builder.info.features[name]
        assert label.names == class_names(CIFAR[made.builder.name].CLASSES[name])


def test_names_are_there_when_it_is_opened_again(made: Made) -> None:
    again = prepare(made.builder.name, data_dir=made.builder.data_dir_root)
    assert again.info.features["label"].names == made.builder.info.features["label"].names
    assert [example["id"] for example in again.as_data_source("test")] == [
        example["id"] for example in made.examples("test")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_is_the_data_set_of_tfds(tmp_path: Path, name: str) -> None:
    ours = CIFAR[name].create(Inputs(), str(tmp_path))
    theirs = tfds.builder(name, data_dir=tmp_path)
    assert type(theirs).__module__.startswith("tensorflow_datasets.")
    assert ours.info.full_name == theirs.info.full_name == f"{name}/3.0.2"
    assert ours.info.features.to_json() == theirs.info.features.to_json()
    assert ours.info.supervised_keys == theirs.info.supervised_keys
    assert ours.data_dir == theirs.data_dir


@pytest.mark.parametrize("name", NAMES)
def test_archive_is_the_one_that_tfds_downloads(tmp_path: Path, name: str) -> None:
    archive = CIFAR[name].ARCHIVE
    theirs = tfds.builder(name, data_dir=tmp_path).url_infos[archive.url]
    assert (archive.size, archive.sha256) == (theirs.size, theirs.checksum)
    assert archive.file_name == theirs.filename


Change = Callable[[dict[str, bytes]], object]


def replace_byte(file: str, place: int, value: int) -> Change:
    def change(files: dict[str, bytes]) -> None:
        data = bytearray(files[file])
        data[place] = value
        files[file] = bytes(data)

    return change


def append(file: str, data: bytes) -> Change:
    return lambda files: files.update({file: files[file] + data})


def rename(file: str, name: str) -> Change:
    return lambda files: files.update({name: files.pop(file)})


# Twelve training images are spread over five files as 0, 1, 3, 3 and 5.
DAMAGES: dict[str, tuple[str, Change, str]] = {
    "label": (
        "cifar10",
        replace_byte("cifar-10-batches-bin/data_batch_3.bin", 2 * 3073, 10),
        "it has label 10 in image 2 of data_batch_3.bin, outside the classes 0 to 9;",
    ),
    "fine label": (
        "cifar100",
        replace_byte("cifar-100-binary/test.bin", 1, 100),
        "it has label 100 in image 0 of test.bin, outside the classes 0 to 99;",
    ),
    "coarse label": (
        "cifar100",
        replace_byte("cifar-100-binary/train.bin", 5 * 3074, 20),
        "it has coarse_label 20 in image 5 of train.bin, outside the classes 0 to 19;",
    ),
    "size of records": (
        "cifar10",
        append("cifar-10-batches-bin/data_batch_1.bin", b"x"),
        "it has 1 bytes in data_batch_1.bin, which is no multiple of 3,073;",
    ),
    "size of fine records": (
        "cifar100",
        append("cifar-100-binary/test.bin", b"x"),
        "it has 12,297 bytes in test.bin, which is no multiple of 3,074;",
    ),
    "missing file": (
        "cifar10",
        lambda files: files.pop("cifar-10-batches-bin/data_batch_4.bin"),
        "it lacks data_batch_4.bin in cifar-10-batches-bin;",
    ),
    "missing names": ("cifar100", lambda files: files.pop(COARSE), "coarse_label_names.txt"),
    "other folder": (
        "cifar10",
        rename("cifar-10-batches-bin/test_batch.bin", "elsewhere/test_batch.bin"),
        "it lacks test_batch.bin in cifar-10-batches-bin;",
    ),
    "file twice": (
        "cifar10",
        rename("cifar-10-batches-bin/readme.html", "./cifar-10-batches-bin//test_batch.bin"),
        "it has two files cifar-10-batches-bin/test_batch.bin;",
    ),
    "empty split": (
        "cifar10",
        lambda files: files.update({"cifar-10-batches-bin/test_batch.bin": b""}),
        "it has no images for test;",
    ),
    "another class": ("cifar100", append(COARSE, b"more\n"), "not 20 different class names in"),
    "a class twice": (
        "cifar10",
        lambda files: files.update({"cifar-10-batches-bin/batches.meta.txt": b"cat\n" * 10}),
        "it has not 10 different class names in batches.meta.txt;",
    ),
    "unsafe path": (
        "cifar10",
        rename("cifar-10-batches-bin/readme.html", "../readme.html"),
        "has an unsafe path",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_refuses_a_damaged_archive(tmp_path: Path, name: str, change: Change, message: str) -> None:
    archive = tmp_path / "archive.tar.gz"
    write_cifar_archive(archive, name, change=change)
    told = refusal(name, tmp_path, archive=archive, trust_archives=True)
    assert message in told
    assert str(archive) in told


def test_refuses_an_archive_of_another_data_set(tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    write_cifar_archive(archive, "cifar10")
    told = refusal("cifar100", tmp_path, archive=archive, trust_archives=True)
    assert "lacks coarse_label_names.txt, fine_label_names.txt, test.bin, train.bin" in told


def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(b"<html>")
    told = refusal("cifar10", tmp_path, archive=archive, trust_archives=True)
    assert "is not a whole tar archive" in told


def test_tells_that_an_archive_is_missing(tmp_path: Path) -> None:
    told = refusal("cifar10", tmp_path, archive=tmp_path / "none.tar.gz")
    assert told == f"archive {tmp_path}/none.tar.gz does not exist; check its name and folder."


def test_tells_that_an_archive_is_a_folder(tmp_path: Path) -> None:
    told = refusal("cifar10", tmp_path, archive=tmp_path)
    assert f"archive {tmp_path} is a folder" in told


def test_refuses_an_archive_of_another_size(tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    write_cifar_archive(archive, "cifar10")
    told = refusal("cifar10", tmp_path, archive=archive)
    assert f"(it has {archive.stat().st_size:,} bytes instead of 170,052,171)" in told
    assert "--trust_archives" in told


def publish(monkeypatch: pytest.MonkeyPatch, archive: Path, url: str = "http://x/c.tar.gz") -> None:
    """Let an archive be the official CIFAR-10."""
    data = archive.read_bytes()
    published = dataclasses.replace(
        Cifar10.ARCHIVE, url=url, size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    monkeypatch.setattr(Cifar10, "ARCHIVE", published)


def test_takes_the_published_archive_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "archive.tar.gz"
    write_cifar_archive(archive, "cifar10")
    publish(monkeypatch, archive)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "changed.tar.gz"
    changed.write_bytes(data)
    assert "its checksum is another" in refusal("cifar10", tmp_path, archive=changed)
    builder = prepare("cifar10", Inputs(archive=archive), str(tmp_path / "data"))
    assert builder.info.splits["train"].num_examples == 12


def test_finds_the_archive_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    archive = folder / "c.tar.gz"
    write_cifar_archive(archive, "cifar10")
    publish(monkeypatch, archive)
    builder = prepare("cifar10", Inputs(manual_dir=folder), str(tmp_path / "data"))
    assert builder.info.splits["test"].num_examples == 4


@dataclasses.dataclass(frozen=True)
class Server:
    """A web server on this machine, what it serves by path, and what it was asked for."""

    url: str
    files: dict[str, bytes]
    requests: list[str]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files: dict[str, bytes] = {}
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            if self.path not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[self.path])))
            self.end_headers()
            self.wfile.write(files[self.path])

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{running.server_port}", files, requests)
        running.shutdown()
        thread.join()


def published_at(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Publish an archive for download, and return it."""
    archive = folder / "published.tar.gz"
    write_cifar_archive(archive, "cifar10")
    publish(monkeypatch, archive, f"{server.url}/c.tar.gz")
    return archive.read_bytes()


def test_downloads_the_archive_once(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/c.tar.gz"] = published_at(server, tmp_path, monkeypatch)
    data_dir = tmp_path / "data"
    builder = prepare("cifar10", Inputs(manual_dir=tmp_path), str(data_dir))
    assert builder.info.splits["train"].num_examples == 12
    asked = len(server.requests)
    assert asked > 0

    # Prepared once more, from what tfds keeps, while nothing is there to be downloaded.
    (data_dir / "cifar10").rename(tmp_path / "first")
    server.files.clear()
    builder = prepare("cifar10", data_dir=str(data_dir))
    assert builder.info.splits["train"].num_examples == 12
    assert len(server.requests) == asked


def test_refuses_a_download_with_another_checksum(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(published_at(server, tmp_path, monkeypatch))
    data[len(data) // 2] ^= 1
    server.files["/c.tar.gz"] = bytes(data)
    told = refusal("cifar10", tmp_path)
    assert f"{server.url}/c.tar.gz (its size or checksum is not the published one)" in told


def test_tells_that_a_download_is_not_there(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_at(server, tmp_path, monkeypatch)
    assert "(the server answers 404 Not Found)" in refusal("cifar10", tmp_path)


def test_tells_that_a_download_is_gone_a_moment_later(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_at(server, tmp_path, monkeypatch)
    monkeypatch.setattr("resnext_jax.data.builders.cifar._why_unreachable", lambda url: None)
    assert "HTTP code: 404" in refusal("cifar10", tmp_path)


def test_tells_that_a_download_breaks_off(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_at(server, tmp_path, monkeypatch)

    class Short(bytes):
        def __len__(self) -> int:
            return 10**6

    server.files["/c.tar.gz"] = Short(b"x" * 5000)
    assert "CIFAR-10 cannot be fetched from" in refusal("cifar10", tmp_path)


def test_tells_without_network_where_the_archive_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/c.tar.gz"
    monkeypatch.setattr(Cifar10, "ARCHIVE", dataclasses.replace(Cifar10.ARCHIVE, url=url))
    told = refusal("cifar10", tmp_path)
    assert told == (
        f"CIFAR-10 cannot be fetched from {url} (Connection refused); fetch c.tar.gz elsewhere "
        "and give it with python -m resnext_jax.data.prepare --dataset=cifar10 --archive=FILE "
        f"--data_dir={tmp_path / 'data'}"
    )
