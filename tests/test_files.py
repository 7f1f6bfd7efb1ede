"""A file is replaced as a whole, or not at all; a path is what the user means by it."""

import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from resnext_jax.errors import UserError
from resnext_jax.files import replacing, strict_json, user_path
from resnext_jax.interop.files import write_state_dict


def test_takes_the_place_of_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_the_umask_says_who_may_read(tmp_path: Path, umask: int) -> None:
    """Also where what writes the file thinks otherwise."""
    path, draft = tmp_path / "file.txt", tmp_path / ".file.txt.tmp"
    draft.touch(mode=0o600)  # of a run that was killed
    before = os.umask(umask)
    try:
        for mode in (0o600, 0o666):
            with replacing(path) as temporary:
                temporary.unlink()
                temporary.touch(mode=mode)
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        write_state_dict({"a": np.zeros(2)}, tmp_path / "a.safetensors")
        assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_the_callers_to_tell(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "file.txt") as temporary:
        temporary.write_text("text")


@pytest.mark.parametrize("path", ["x", "a/b c", "C:d", "a:/b", Path("x")])
def test_a_path_is_itself(path: str | Path) -> None:
    assert user_path(path, "--out") == Path(path)


def test_a_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs", "--workdir") == tmp_path / "runs"
    assert user_path(Path("~"), "--workdir") == tmp_path


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("", ["--out is empty"]),
        (" ", ["--out is empty"]),
        ("gs://bucket/run", ["--out=gs://bucket/run is a URL", "mount or copy"]),
        (Path("gs://bucket/run"), ["is a URL"]),
        ("hf+https://a/b", ["is a URL"]),
        ("~nobody-of-this-name/x", ["unknown user"]),
    ],
)
def test_what_is_no_path_of_this_machine(path: str | Path, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        user_path(path, "--out")
    for part in parts:
        assert part in str(error.value)


def test_json_is_strict_at_every_depth() -> None:
    value = {"a": math.nan, "b": [1.5, (math.inf, "x")], "c": {"d": -math.inf, "e": None}}
    assert json.loads(strict_json(value), parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, [None, "x"]],
        "c": {"d": None, "e": None},
    }
