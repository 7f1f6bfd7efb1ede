"""Files of weights: which are read and written, and what is said of the others."""

import os
import sys
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import read_state_dict, write_state_dict
from tests.interop.pickled import mapping, program, tensor, write_archive
from tests.interop.weights import CIFAR_SPEC, random_state_dict

GOLDEN = Path(__file__).parent / "golden"  # by make_golden.py
FILES = ("plain.safetensors", "plain.pth", "wrapped_before_1.6.pth")


def assert_same_arrays(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


def refused(path: Path | str, *, ema: bool = False) -> str:
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path, ema=ema)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_what_pytorch_wrote_is_read(name: str, tmp_path: Path) -> None:
    """By whatever name: the beginning tells the format."""
    expected = random_state_dict(CIFAR_SPEC)
    assert_same_arrays(read_state_dict(str(GOLDEN / name)), expected)
    renamed = tmp_path / "pytorch_model.bin"
    renamed.write_bytes((GOLDEN / name).read_bytes())
    assert_same_arrays(read_state_dict(renamed), expected)
    assert "has no averaged weights" in refused(renamed, ema=True)


def test_averages_are_read(tmp_path: Path) -> None:
    average = mapping({"n_averaged": tensor(key="1"), "module.a": tensor(shape=(6,), strides=(1,))})
    saved = program(mapping({"model": mapping({"a": tensor()}), "model_ema": average}))
    path = write_archive(tmp_path / "a.pth", saved, {"0": np.arange(6, dtype="f").tobytes()})
    assert read_state_dict(path)["a"].shape == (2, 3)
    assert_same_arrays(read_state_dict(path, ema=True), {"a": np.arange(6, dtype=np.float32)})


def test_safetensors_are_written(tmp_path: Path) -> None:
    arrays = random_state_dict(CIFAR_SPEC)
    arrays["fc.weight"] = np.asfortranarray(arrays["fc.weight"])
    arrays["fc.bias"] = arrays["fc.bias"].astype(jnp.bfloat16)
    path = tmp_path / "new.safetensors"
    path.write_text("older")
    write_state_dict(arrays, path)
    assert_same_arrays(read_state_dict(path), arrays)
    assert os.listdir(tmp_path) == ["new.safetensors"]
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_pth_without_pytorch_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match=r"needs PyTorch, which is not installed; write \.safe"):
        write_state_dict({"a": np.zeros(1)}, tmp_path / "a.pth")
    assert os.listdir(tmp_path) == []


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(arrays: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(WeightsError, match="cannot be written: No space left on device"):
        write_state_dict({"a": np.zeros(1)}, tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.npz", "a", "weights.h5"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"must end in \.safetensors, or in \.pth"):
        write_state_dict({}, tmp_path / name)


def test_unwritable_paths_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot be written: .*No such file or directory"):
        write_state_dict({"a": np.zeros(1)}, tmp_path / "none" / "a.safetensors")
    (tmp_path / "b.safetensors").mkdir()
    with pytest.raises(WeightsError, match="cannot be written: Is a directory"):
        write_state_dict({"a": np.zeros(1)}, tmp_path / "b.safetensors")
    assert os.listdir(tmp_path) == ["b.safetensors"]


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert refused(path) == (
        f"weights file {path} cannot be read: No such file or directory; check the path."
    )
    assert "Is a directory" in refused(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty; check what it is"),
        (b"<!DOCTYPE html><html>404</html>", r"neither .safetensors nor a file of torch.save;"),
        (b"version https://git-lfs.github.com/spec/v1\n", "check what it is, or fetch it again"),
    ],
)
def test_foreign_files_are_told(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    assert message in refused(path)
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    assert "is damaged, or not a .safetensors file" in refused(path)


def test_tar_archives_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(GOLDEN / "plain.pth", "storages")
    assert "is a tar archive, as the first versions of PyTorch wrote" in refused(path)


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_told(name: str, tmp_path: Path) -> None:
    whole, path = (GOLDEN / name).read_bytes(), tmp_path / name
    for size in (*range(1, 300, 13), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        message = refused(path)
        assert "is damaged" in message or (size < 4 and "nor a file of torch.save" in message)


def test_damaged_safetensors_raise_nothing_else(tmp_path: Path) -> None:
    """Values have no check sums there, but the header must be right."""
    whole, path = (GOLDEN / "plain.safetensors").read_bytes(), tmp_path / "a.safetensors"
    rng, found = np.random.RandomState(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.randint(0, 5000, 3):
            damaged[place] = rng.randint(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except WeightsError as error:
            assert "\n" not in str(error)  # noqa: PT017 - reading may also go well
            found += 1
    assert found > 100
