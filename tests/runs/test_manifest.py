"""A manifest tells every change to a folder of files."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnext_jax.runs.manifest import StepFolders, find_damage, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "12"
    (folder / "weights" / "d").mkdir(parents=True)
    (folder / "weights" / "d" / "0a").write_bytes(bytes(range(256)))
    (folder / "weights" / "_METADATA").write_text('{"shape": [1]}')
    (folder / "empty").write_bytes(b"")
    (folder / "run.json").write_text("{}")
    write_manifest(folder)
    return folder


def flips(content: bytes) -> Iterator[bytes]:
    """Change each byte, once in the bit that makes small letters capitals."""
    for place in range(len(content)):
        yield content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :]


def test_lists_every_file_with_size_and_hash(folder: Path) -> None:
    assert find_damage(folder) is None
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted(listed) == ["empty", "run.json", "weights/_METADATA", "weights/d/0a"]
    content = (folder / "weights" / "d" / "0a").read_bytes()
    expected = {"bytes": 256, "sha256": hashlib.sha256(content).hexdigest()}
    assert listed["weights/d/0a"] == expected


def test_finds_a_missing_file(folder: Path) -> None:
    (folder / "empty").unlink()
    assert find_damage(folder) == "empty is missing"


def test_finds_an_added_file(folder: Path) -> None:
    (folder / "weights" / "d" / "0b").write_text("")
    assert find_damage(folder) == "weights/d/0b does not belong to it"


def test_finds_a_link_in_place_of_a_file(folder: Path) -> None:
    (folder / "dangling").symlink_to(folder / "nothing")
    assert find_damage(folder) == "dangling does not belong to it"


@pytest.mark.parametrize("size", [0, 100, 257])
def test_finds_another_size(folder: Path, size: int) -> None:
    os.truncate(folder / "weights" / "d" / "0a", size)
    assert find_damage(folder) == f"weights/d/0a has {size} bytes instead of 256"


def test_finds_every_flipped_byte_of_every_file(folder: Path) -> None:
    for name in ("weights/d/0a", "weights/_METADATA", "run.json"):
        path = folder / name
        whole = path.read_bytes()
        for changed in flips(whole):
            path.write_bytes(changed)
            assert find_damage(folder) == f"{name} has other contents than were saved"
        path.write_bytes(whole)
    assert find_damage(folder) is None


def test_finds_every_change_of_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_bytes()
    same = json.dumps(json.loads(whole)).encode()  # in other bytes
    for changed in (*flips(whole), whole[:-1], whole + b"\n", b"", b"[]", b'{"files": 1}', same):
        path.write_bytes(changed)
        assert find_damage(folder) == "manifest.json is not as it was written"
    path.unlink()
    assert find_damage(folder) == "it has no manifest.json"
    path.mkdir()
    assert find_damage(folder) == "manifest.json cannot be read (Is a directory)"


def test_finds_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    assert find_damage(folder) == "empty is missing"


def test_a_file_that_cannot_be_read_is_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    assert find_damage(folder) == "empty cannot be read (Input/output error)"


def step_folders(workdir: Path) -> StepFolders:
    return StepFolders(workdir, workdir / "checkpoints", print)


def test_only_numbers_name_steps(tmp_path: Path, folder: Path) -> None:
    for name in ("9", "007", "-1", "5.saving", "\u0663", "best", "100", "0"):
        (folder.parent / name).mkdir()
    (folder.parent / "8").write_text("")
    assert step_folders(tmp_path).steps() == [0, 9, 12, 100]


def test_hashes_a_checkpoint_once(tmp_path: Path, folder: Path) -> None:
    folders = step_folders(tmp_path)
    assert folders.damage(12) is None
    (folder / "run.json").unlink()
    assert folders.damage(12) is None
    assert step_folders(tmp_path).damage(12) == "run.json is missing"


def test_what_a_run_that_goes_on_deletes_meanwhile_is_not_damaged(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folder, folder.with_name("11"))
    folders = step_folders(tmp_path)
    steps = folders.steps()
    shutil.rmtree(folder)
    monkeypatch.setattr(folders, "steps", lambda: steps)
    assert folders.newest_whole(repair=False) == 11
    assert not capsys.readouterr().out


def test_moves_across_file_systems(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", refuse)
    target = step_folders(tmp_path).move_aside(12)
    assert target == tmp_path / "damaged" / "12"
    assert find_damage(target) is None
    assert not folder.exists()
