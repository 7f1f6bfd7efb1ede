"""Archives of single synsets, loose and within a large one."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from resnext_jax.data.builders.synset_archives import SynsetArchive, index, loose
from resnext_jax.errors import DataError
from tests.data.raw_imagenet import tar_bytes, write_imagenet22k_whole, write_tar

SYNSET = "n00000001"
IMAGES = [(f"{SYNSET}_12.JPEG", b"first"), (f"{SYNSET}_3.JPEG", b"second")]


def write_one(folder: Path, where: str, members: Sequence[tuple[str, bytes]]) -> SynsetArchive:
    """Write a synset's archive as a file of its own, or within a large archive."""
    if where == "loose":
        write_tar(folder / f"{SYNSET}.tar", members)
        return loose(folder)[SYNSET]
    write_tar(folder / "whole.tar", [(f"all/{SYNSET}.tar", tar_bytes(members))])
    return index(folder / "whole.tar")[SYNSET]


@pytest.mark.parametrize("where", ["loose", "whole"])
@pytest.mark.parametrize("prefix", ["", "./", f"{SYNSET}/"])
def test_yields_the_images(tmp_path: Path, where: str, prefix: str) -> None:
    archive = write_one(tmp_path, where, [(prefix + name, data) for name, data in IMAGES])
    assert list(archive.images()) == IMAGES
    assert archive.count() == 2
    assert not archive.is_empty()
    assert archive.size() == len(tar_bytes(IMAGES))


@pytest.mark.parametrize("where", ["loose", "whole"])
def test_archive_without_images(tmp_path: Path, where: str) -> None:
    archive = write_one(tmp_path, where, [])
    assert archive.is_empty()
    assert archive.count() == 0
    assert list(archive.images()) == []


@pytest.mark.parametrize("where", ["loose", "whole"])
@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("n00000002_1.JPEG", b"")], "'n00000002_1.JPEG' is not an image of its synset"),
        ([(f"{SYNSET}_1.txt", b"")], f"'{SYNSET}_1.txt' is not an image of its synset"),
        ([*IMAGES, (f"a/{SYNSET}_3.JPEG", b"")], f"has two files {SYNSET}_3.JPEG"),
        ([(f"../{SYNSET}_3.JPEG", b"")], "unsafe path"),
    ],
)
def test_odd_contents_are_refused(
    tmp_path: Path, where: str, members: list[tuple[str, bytes]], sentence: str
) -> None:
    archive = write_one(tmp_path, where, members)
    with pytest.raises(DataError, match=f"{SYNSET}.tar.* {sentence}"):
        archive.count()
    with pytest.raises(DataError, match=sentence):
        list(archive.images())


@pytest.mark.parametrize("length", [700, 1024, 1030])
@pytest.mark.parametrize("where", ["loose", "whole"])
def test_truncated_archive(tmp_path: Path, where: str, length: int) -> None:
    data = tar_bytes(IMAGES)[:length]
    path = tmp_path / f"{SYNSET}.tar"
    path.write_bytes(data)
    archive = loose(tmp_path)[SYNSET]
    if where == "whole":
        write_tar(tmp_path / "whole.tar", [(path.name, data)])
        archive = index(tmp_path / "whole.tar")[SYNSET]
    with pytest.raises(DataError, match=rf"archive .*{SYNSET}\.tar is not a whole tar archive"):
        archive.count()
    with pytest.raises(DataError, match="is not a whole tar archive"):
        list(archive.images())


def test_index_of_a_large_archive(tmp_path: Path) -> None:
    path = tmp_path / "whole.tar"
    write_imagenet22k_whole(path, {"n00000002": 3, "n00000001": 1}, prefix="winter21_whole/")
    found = index(path)
    assert {synset: archive.count() for synset, archive in found.items()} == {
        "n00000002": 3,
        "n00000001": 1,
    }
    assert found["n00000002"].where == path / "winter21_whole" / "n00000002.tar"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["n00000001.tar", "n00000001_5.JPEG"], "'n00000001_5.JPEG' is not an archive of a synset"),
        (["n00000001.tar", "a/n00000001.tar"], "synset n00000001 twice"),
    ],
)
def test_odd_large_archive_is_refused(tmp_path: Path, names: list[str], sentence: str) -> None:
    path = tmp_path / "whole.tar"
    write_tar(path, [(name, tar_bytes([])) for name in names])
    with pytest.raises(DataError, match=f"archive .*whole.tar is refused: .*{sentence}"):
        index(path)


def test_truncated_large_archive(tmp_path: Path) -> None:
    path = tmp_path / "whole.tar"
    write_imagenet22k_whole(path, {"n00000002": 1, "n00000001": 1})
    path.write_bytes(path.read_bytes()[:-12_000])
    with pytest.raises(DataError, match=r"whole\.tar is not a whole tar archive"):
        index(path)


def test_loose_archives_are_found_in_a_folder_and_its_subfolders(tmp_path: Path) -> None:
    folders = [tmp_path, tmp_path / "fall11"]
    folders[1].mkdir()
    for folder, name in zip(folders, ["n00000001.tar", "n00000002.tar"], strict=True):
        write_tar(folder / name, [])
    write_tar(tmp_path / "notes.tar", [])
    assert {synset: archive.path for synset, archive in loose(tmp_path).items()} == {
        "n00000001": tmp_path / "n00000001.tar",
        "n00000002": tmp_path / "fall11" / "n00000002.tar",
    }
    write_tar(folders[1] / "n00000001.tar", [])
    with pytest.raises(DataError, match="synset n00000001 is there twice"):
        loose(tmp_path)
