"""Files of torch.save without PyTorch: what is in them is read, and nothing is ever run."""

import argparse
import collections
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.pickles import read_pth
from tests.interop.pickled import (
    mapping,
    number,
    program,
    tensor,
    text,
    write_archive,
    write_older,
)
from tests.interop.weights import CIFAR_SPEC, random_state_dict

GOLDEN = Path(__file__).parent / "golden"  # by make_golden.py

VALUES = np.arange(6, dtype=np.float32)
Write = Callable[[Path, bytes], Path]


def read(path: Path, select: Callable[[Any], Any] = lambda saved: saved) -> dict[str, np.ndarray]:
    return read_pth(path, select, "FILE")


def archived(path: Path, data_pkl: bytes) -> Path:
    return write_archive(path, data_pkl, {"0": VALUES.tobytes()})


def older(path: Path, data_pkl: bytes) -> Path:
    return write_older(path, data_pkl, {"0": (6, VALUES.tobytes())})


both_formats = pytest.mark.parametrize("write", [archived, older])


def test_golden_files_are_read() -> None:
    expected = random_state_dict(CIFAR_SPEC)
    plain = read(GOLDEN / "plain.pth")
    wrapped = read(GOLDEN / "wrapped_before_1.6.pth", lambda saved: saved["state_dict"])
    assert list(wrapped) == [f"module.{name}" for name in plain]
    for arrays in (plain, dict(zip(plain, wrapped.values(), strict=True))):
        assert list(arrays) == list(expected)
        for name, array in expected.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)


def read_one(path: Path, write: Write, **options: Any) -> np.ndarray:
    older_format = write is older
    data_pkl = program(mapping({"a": tensor(older=older_format, **options)}))
    return read(write(path, data_pkl))["a"]


@both_formats
def test_strides_and_offsets(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    np.testing.assert_array_equal(read_one(path, write), VALUES.reshape(2, 3))
    transposed = read_one(path, write, shape=(3, 2), strides=(1, 3))
    np.testing.assert_array_equal(transposed, VALUES.reshape(2, 3).T)
    part = read_one(path, write, shape=(2, 2), strides=(3, 1), offset=1)
    np.testing.assert_array_equal(part, VALUES.reshape(2, 3)[:, 1:])
    expanded = read_one(path, write, shape=(4, 2), strides=(0, 1), offset=2)
    np.testing.assert_array_equal(expanded, [[2, 3]] * 4)
    scalar = read_one(path, write, shape=(), strides=(), offset=5)
    assert scalar.shape == ()
    assert scalar == 5
    assert read_one(path, write, shape=(0, 9), strides=(9, 1)).shape == (0, 9)


DTYPES: dict[str, Any] = {
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@pytest.mark.parametrize("storage", DTYPES)
def test_dtypes(storage: str, tmp_path: Path) -> None:
    values = np.array([1, 0, 1, 1, 0, 0], DTYPES[storage])
    data_pkl = program(mapping({"a": tensor(storage)}))
    path = write_archive(tmp_path / "a.pth", data_pkl, {"0": values.tobytes()})
    array = read(path)["a"]
    assert array.dtype == values.dtype
    np.testing.assert_array_equal(array, values.reshape(2, 3))


def test_parameters_and_ordered_dictionaries(tmp_path: Path) -> None:
    """As `state_dict(keep_vars=True)` gives, with the `_metadata` that PyTorch hangs on."""
    ordered = b"ccollections\nOrderedDict\n)R"
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88" + ordered + b"tR"
    state = mapping({"_metadata": ordered})
    entry = text("a") + parameter + b"s"
    path = archived(tmp_path / "a.pth", program(ordered + entry + state + b"b"))
    np.testing.assert_array_equal(read(path)["a"], VALUES.reshape(2, 3))


def test_only_what_is_selected_is_read(tmp_path: Path) -> None:
    """Beside the weights there may be an optimiser's state, twice as large."""
    entries = {"model": mapping({"a": tensor()}), "optimizer": mapping({"b": tensor(key="9")})}
    path = archived(tmp_path / "a.pth", program(mapping(entries)))
    assert list(read(path, lambda saved: saved["model"])) == ["a"]
    with pytest.raises(WeightsError, match=r"archive/data/9"):
        read(path, lambda saved: saved["optimizer"])
    with pytest.raises(WeightsError, match="'model' is a dict, not a tensor"):
        read(path)


class Runs:
    """Pickles into a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        """Call `function` with `arguments` when unpickled by pickle itself."""
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@both_formats
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickles_are_refused(write: Write, protocol: int, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    malicious = pickle.dumps({"a": Runs(os.rmdir, str(victim))}, protocol)
    message = refused(write(tmp_path / "a.pth", malicious))
    assert victim.exists()
    assert "FILE is refused: its pickle wants to run posix.rmdir" in message
    pickle.loads(malicious)
    assert not victim.exists()  # or the test would show nothing


def test_malicious_parts_of_the_older_format_are_refused(tmp_path: Path) -> None:
    """All its five pickles are read alike."""
    victim = tmp_path / "victim"
    victim.mkdir()
    malicious = pickle.dumps(Runs(os.rmdir, str(victim)), 2)
    path = older(tmp_path / "a.pth", program(mapping({"a": tensor(older=True)})))
    whole = path.read_bytes()
    starts = [0]
    with path.open("rb") as file:
        for _ in range(3):
            pickle.load(file)
            starts.append(file.tell())
    starts.append(whole.index(pickle.dumps(["0"], 2)))
    assert len(starts) == 5
    for start in starts:
        path.write_bytes(whole[:start] + malicious)
        assert "wants to run posix.rmdir" in refused(path)
    assert victim.exists()


@pytest.mark.parametrize(
    ("instructions", "called"),
    [
        (b"cbuiltins\neval\n(X\x04\x00\x00\x001+11tR", "builtins.eval"),
        (text("builtins") + text("exec") + b"\x93", "builtins.exec"),
        (b"(X\x02\x00\x00\x00idios\nsystem\n", "os.system"),
        (b"ctorch\nload\n", "torch.load"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n", "torch._utils._rebuild_tensor_v3"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", "numpy.core.multiarray._reconstruct"),
        (b"cargparse\nNamespace\n)\x81", "argparse.Namespace"),
        (
            text("collections") + text("OrderedDict.__init__.__class__") + b"\x93",
            "collections.OrderedDict.__init__.__class__",
        ),
    ],
)
def test_everything_else_is_refused(instructions: bytes, called: str, tmp_path: Path) -> None:
    path = archived(tmp_path / "a.pth", program(mapping({"a": instructions})))
    message = refused(path)
    assert f"wants to run {called}, for which a state dict has no use" in message
    assert "torch.save(model.state_dict(), FILE)" in message


@pytest.mark.parametrize(
    "victim",
    [
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nFloatStorage\n",
        tensor(),
    ],
)
@pytest.mark.parametrize("slots", [False, True], ids=["dictionary", "slots"])
def test_pickles_cannot_change_what_they_may_use(
    victim: bytes, slots: bool, tmp_path: Path
) -> None:
    """The instruction BUILD sets attributes of any object, `__setstate__` or not."""
    state = mapping(dict.fromkeys(("__call__", "shape", "move_to_end"), b"N"))
    if slots:
        state = b"N" + state + b"\x86"
    path = archived(tmp_path / "a.pth", program(mapping({"a": victim + state + b"b"})))
    assert "is damaged" in refused(path)
    assert OrderedDict().move_to_end is not None
    np.testing.assert_array_equal(read_one(path, archived), VALUES.reshape(2, 3))


@both_formats
@pytest.mark.parametrize(
    "options",
    [
        {"shape": (2, 4)},
        {"offset": 1},
        {"strides": (4, 1)},
        {"offset": -1},
        {"strides": (3, -1), "offset": 2},
        {"shape": (-2, 3)},
        {"shape": (2,)},
        {"numel": 7},
        {"numel": 5, "shape": (1,), "strides": (1,)},
        {"numel": -6, "shape": (1,), "strides": (1,)},
        {"numel": 10**30},
        {"shape": (10**30, 0), "strides": (0, 0)},
        {"shape": (2,) * 100, "strides": (0,) * 100},
        {"key": "../0"},
        {"metadata": mapping({"neg": b"\x88"})},  # stored with the other sign
    ],
    ids=str,
)
def test_impossible_tensors_are_refused(
    options: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "a.pth"
    write(path, program(mapping({"a": tensor(older=write is older, **options)})))
    assert "FILE is damaged, or was not written by torch.save" in refused(path)


def test_shapes_of_other_things_are_refused(tmp_path: Path) -> None:
    for bad in (b"G" + struct.pack(">d", 1.0), text("x"), b"N", b"\x88"):
        place = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
        place += number(6) + b"tQ"
        call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + number(0)
        call += b"(" + bad + b"t(" + number(1) + b"t\x89NtR"
        assert "is damaged" in refused(archived(tmp_path / "a.pth", program(mapping({"a": call}))))
    one_storage_as_two = {"a": tensor(), "b": tensor("DoubleStorage")}
    path = archived(tmp_path / "a.pth", program(mapping(one_storage_as_two)))
    assert "storage 0 of two kinds" in refused(path)


@both_formats
@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"p2147483647\n"], ids=["binary", "text"])
def test_no_memory_is_made_for_objects_that_are_not_there(
    put: bytes, write: Write, tmp_path: Path
) -> None:
    """Python's unpickler would take 32 GB for the object of this number."""
    path = write(tmp_path / "a.pth", program(mapping({"a": tensor(older=write is older) + put})))
    assert "an object of an impossible number" in refused(path)


def test_foreign_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    data_pkl, data = program(mapping({"a": tensor()})), {"0": VALUES.tobytes()}
    write_archive(path, data_pkl, data, {"byteorder": b"big"})
    assert "big-endian" in refused(path)
    write_archive(path, data_pkl, data, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(path)
    write_archive(path, data_pkl, {})
    assert "is damaged" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is damaged, or was not written by torch.save" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data_pkl)
        archive.writestr("b/data.pkl", data_pkl)
    assert "is damaged" in refused(path)


def test_foreign_pickles_are_refused(tmp_path: Path) -> None:
    path, data_pkl = tmp_path / "a.pth", program(mapping({"a": tensor(older=True)}))
    write_older(path, data_pkl, {"0": (6, VALUES.tobytes())}, little_endian=False)
    assert "big-endian" in refused(path)
    write_older(path, data_pkl, {"0": (6, VALUES.tobytes())}, magic_number=1)
    assert "a pickle of something else" in refused(path)
    write_older(path, data_pkl, {"0": (5, VALUES.tobytes())})
    assert "storage 0 has another size" in refused(path)
    write_older(path, data_pkl, {})
    assert "is damaged" in refused(path)
    path.write_bytes(pickle.dumps({"a": [1.0, 2.0]}))
    assert "is damaged, or was not written by torch.save" in refused(path)
    view = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(6)
    view += b"(" + text("1") + number(0) + number(6) + b"t"
    older(path, program(mapping({"a": b"(" + view + b"tQ"})))
    assert "a storage of an unknown kind" in refused(path)


@pytest.mark.parametrize("name", ["plain.pth", "wrapped_before_1.6.pth"])
def test_truncated_files_are_refused(name: str, tmp_path: Path) -> None:
    whole, path = (GOLDEN / name).read_bytes(), tmp_path / "a.pth"

    def weights(saved: Any) -> Any:
        return saved.get("state_dict", saved)

    for size in (*range(0, 400, 7), *range(400, len(whole), 1009), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            WeightsError, match=r"FILE is damaged, or was not written by torch\.save"
        ):
            read(path, weights)


@pytest.mark.parametrize("name", ["plain.pth", "wrapped_before_1.6.pth"])
def test_damaged_bytes_raise_nothing_else(name: str, tmp_path: Path) -> None:
    """Whatever they are changed to; in the zip format, with its check sums, all are found."""
    whole, path, rng = (GOLDEN / name).read_bytes(), tmp_path / "a.pth", np.random.RandomState(0)

    def weights(saved: Any) -> Any:
        return saved.get("state_dict", saved)

    found = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.randint(0, 8000, 3):
            damaged[place] = rng.randint(256)
        path.write_bytes(damaged)
        try:
            read(path, weights)
        except WeightsError as error:
            assert "\n" not in str(error)  # noqa: PT017 - reading may also go well
            found += 1
    assert found > 100


@both_formats
@pytest.mark.parametrize("protocol", range(4))  # the later ones have frames, which nest badly
def test_what_a_training_keeps_beside_its_weights_is_ignored(
    write: Write, protocol: int, tmp_path: Path
) -> None:
    """As torchvision's and timm's trainings do: options, and whatever else, are not run."""
    victim = tmp_path / "victim"
    victim.mkdir()
    beside = {
        "args": argparse.Namespace(lr=0.1, device=Path("cuda")),
        "scaler": {"scale": np.float64(2)},
        "seen": collections.defaultdict(list, a=[1]),
        "paths": {Path("a")},
        "deque": collections.deque([1, 2]),
        "runs": Runs(os.rmdir, str(victim)),
    }
    pickled = pickle.dumps(beside, protocol)
    others = pickled[2 if protocol >= 2 else 0 : -1]
    weights = mapping({"a": tensor(older=write is older)})
    both = b"}(" + text("args") + others + text("state_dict") + weights + b"u"
    path = write(tmp_path / "a.pth", program(both))
    arrays = read(path, lambda saved: saved["state_dict"])
    np.testing.assert_array_equal(arrays["a"], VALUES.reshape(2, 3))
    assert victim.exists()


def test_modules_of_the_older_format_are_placeholders_too(tmp_path: Path) -> None:
    """Their classes stand there as storages do, with their source code."""
    module = b"(" + text("module") + b"cown\nNetwork\n" + text("own.py") + text("1+1") + b"tQ)\x81"
    path = older(tmp_path / "a.pth", program(module + b"}b"))
    assert "wants to run own.Network" in refused(path)
    path = older(tmp_path / "b.pth", program(mapping({"ema": module, "a": tensor(older=True)})))
    arrays = read(path, lambda saved: {"a": saved["a"]})
    np.testing.assert_array_equal(arrays["a"], VALUES.reshape(2, 3))
