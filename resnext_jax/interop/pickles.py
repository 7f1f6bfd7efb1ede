"""Reading what `torch.save` wrote, without PyTorch and without running anything.

A pickle is a program that may call any function. The one here may name only the few things that
a state dict is made of, all harmless: dictionaries, the types of storages, and functions that in
PyTorch make a tensor of a storage and here a description of one. Anything else is neither imported
nor run: a placeholder takes its place, which keeps nothing but its name. Beside the state dict,
where trainings keep their options, it is ignored; in the state dict it is refused. Arrays are read
only when the pickle has ended, and only those that are asked for.

Both formats are known: the zip archive that PyTorch writes since 1.6, and the several pickles
before the storages' raw data, which it wrote before that.
"""

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from resnext_jax.errors import one_line
from resnext_jax.interop.errors import WeightsError

# What picks the state dict from all that was saved.
Select = Callable[[Any], Mapping[str, Any]]

# How the zip archive begins.
_ARCHIVE = b"PK\x03\x04"

# The first two pickles of the older format.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_COUNT_BYTES = 8  # in front of each storage's data there

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class _Storage(NamedTuple):
    dtype: str
    key: str
    numel: int


class _Tensor(NamedTuple):
    """A tensor by its place in a storage. Nothing in it is checked yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# Objects that a pickle gets hold of have neither a dictionary nor attributes that can be set:
# a pickle can change those of what it has.
class _RebuildTensor:
    __slots__ = ()

    def __call__(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
    ) -> _Tensor:
        if not isinstance(storage, _Storage) or metadata:
            raise pickle.UnpicklingError("a tensor of an unknown kind")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Any, requires_grad: Any = False, hooks: Any = None) -> Any:
        return data


class _Foreign:
    """Takes the place of what is not imported: made and filled by a pickle, it stays empty."""

    __slots__ = ()
    name = ""

    def __new__(cls, *arguments: Any, **options: Any) -> "_Foreign":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Leave it empty."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Leave it empty."""

    def append(self, item: Any) -> None:
        """Leave it empty."""

    add = append
    extend = append


def _refusal(value: Any, source: str) -> WeightsError | None:
    """Return the error for a placeholder of something foreign; None for anything else."""
    kind = value if isinstance(value, type) else type(value)
    if not issubclass(kind, _Foreign):
        return None
    return WeightsError(
        f"{source} is refused: its pickle wants to run {kind.name}, for which a "
        "state dict has no use; save the weights alone, with "
        "torch.save(model.state_dict(), FILE) or as .safetensors."
    )


_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", storage): dtype for storage, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Reads the next pickle of a file, and leaves the file's position after it."""

    def __init__(self, file: IO[bytes]):
        # Python 2 wrote names as bytes.
        super().__init__(io.BytesIO(_next_pickle(file)), encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            found = type("Foreign", (_Foreign,), {"__slots__": (), "name": f"{module}.{name}"})
        return found

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # in the older format a module's class, with its source code
            return pid[1]
        # In the older format followed by what is None, unless the storage is part of another.
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or any(view):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        storage = _Storage(dtype, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} of two kinds")
        return storage


def _without_foreign(tensors: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Return what was selected; raises WeightsError if anything in it is foreign."""
    for tensor in tensors.values():
        if error := _refusal(tensor, source):
            raise error
    return tensors


def _load(unpickler: _Unpickler, source: str) -> Any:
    """Return the pickle's object; raises WeightsError for a foreign one."""
    loaded = unpickler.load()
    if error := _refusal(loaded, source):
        raise error
    return loaded


def _next_pickle(file: IO[bytes]) -> bytes:
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):
        # Python makes room for as many objects as the largest of their numbers says.
        if opcode.name.endswith("PUT") and argument is not None and argument > file.tell():
            raise pickle.UnpicklingError("an object of an impossible number")
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def read_pth(path: Path, select: Select, source: str) -> dict[str, np.ndarray]:
    """Read arrays from a file of `torch.save`.

    Args:
      path: of the file.
      select: takes what was saved, with tensors in it as they are here described, and returns the
        dictionary of those to read.
      source: the file's name in error messages.

    Returns:
      Arrays by name, read-only: float64, float32, float16, bfloat16 (that of `ml_dtypes`), and
      integers.

    Raises:
      WeightsError: the state dict wants to run something; the file is damaged, or was not
        written by `torch.save`; or `select` raises it.
      OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
            file.seek(0)
            return (_read_archive if is_archive else _read_pickles)(file, select, source)
        except WeightsError:
            raise
        # Damaged or hostile bytes make the readers of zip archives and pickles raise anything.
        except Exception as error:
            reason = one_line(error, longest=None)
            raise WeightsError(
                f"{source} is damaged, or was not written by torch.save ({reason}); fetch or save "
                "it again."
            ) from error


def _read_archive(file: IO[bytes], select: Select, source: str) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        # All is in one folder, which may have any name.
        (root,) = {name.partition("/")[0] for name in archive.namelist()}

        def member(name: str) -> bytes:
            info = archive.getinfo(f"{root}/{name}")
            # Nothing in it can be larger than the file itself.
            if info.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"{name} is compressed")
            return archive.read(info)

        if f"{root}/byteorder" in archive.namelist():
            _check_byte_order(member("byteorder") == b"little", source)
        saved = _load(_Unpickler(io.BytesIO(member("data.pkl"))), source)
        tensors = _without_foreign(select(saved), source)
        return _arrays(tensors, lambda storage: member(f"data/{storage.key}"), source)


def _read_pickles(file: IO[bytes], select: Select, source: str) -> dict[str, np.ndarray]:
    header = [_load(_Unpickler(file), source) for _ in range(3)]
    if header[:2] != [_MAGIC_NUMBER, _PROTOCOL_VERSION]:
        raise pickle.UnpicklingError("a pickle of something else")
    _check_byte_order(header[2]["little_endian"], source)
    unpickler = _Unpickler(file)
    tensors = _without_foreign(select(_load(unpickler, source)), source)
    places = {}
    for key in _load(_Unpickler(file), source):
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(_COUNT_BYTES), "little") != storage.numel:
            raise pickle.UnpicklingError(f"storage {key} has another size")
        places[key] = file.tell()
        file.seek(_bytes(storage), os.SEEK_CUR)

    def read(storage: _Storage) -> bytes:
        file.seek(places[storage.key])
        return file.read(_bytes(storage))

    return _arrays(tensors, read, source)


def _check_byte_order(little: bool, source: str) -> None:
    if not little:
        raise WeightsError(
            f"{source} was written on a big-endian machine; save it there as .safetensors."
        )


def _bytes(storage: _Storage) -> int:
    return storage.numel * jnp.dtype(storage.dtype).itemsize


def _arrays(
    tensors: Mapping[str, Any], read: Callable[[_Storage], bytes], source: str
) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, _Tensor):
            raise WeightsError(
                f"{source} is no state dict: {name!r} is a {type(tensor).__name__}, not a tensor."
            )
        arrays[name] = _array(tensor, read)
    return arrays


def _array(tensor: _Tensor, read: Callable[[_Storage], bytes]) -> np.ndarray:
    """Make an array of a tensor, whose numbers may be anything."""
    storage, offset, shape, strides = tensor
    numbers = (storage.numel, offset, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor of impossible size")
    dtype = jnp.dtype(storage.dtype)
    if 0 in shape:
        return np.zeros(shape, dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= storage.numel:
        raise pickle.UnpicklingError("a tensor beyond its storage")
    flat = np.frombuffer(read(storage), dtype)
    if len(flat) != storage.numel:
        raise pickle.UnpicklingError("a storage of another size")
    return np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [stride * dtype.itemsize for stride in strides], writeable=False
    )
