"""Files of `torch.save` written by hand, so that anything can be put into them."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    storage: str = "FloatStorage",
    key: str = "0",
    numel: int = 6,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    older: bool = False,
    metadata: bytes = b"",
) -> bytes:
    """Return the instructions that push a tensor."""
    place = b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n"
    place += text(key) + text("cpu") + number(numel) + (b"N" if older else b"") + b"tQ"
    arguments = place + number(offset) + numbers(shape) + numbers(strides) + b"\x89N" + metadata
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def mapping(entries: Mapping[str, bytes]) -> bytes:
    """Return the instructions that push a dictionary."""
    return b"}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"


def program(instructions: bytes) -> bytes:
    return b"\x80\x02" + instructions + b"."


def write_archive(
    path: Path,
    data_pkl: bytes,
    storages: Mapping[str, bytes] | None = None,
    others: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write the zip format."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in (others or {"byteorder": b"little", "version": b"3\n"}).items():
            archive.writestr(f"archive/{name}", data)
    return path


def write_older(
    path: Path,
    data_pkl: bytes,
    storages: Mapping[str, tuple[int, bytes]] | None = None,
    little_endian: bool = True,
    magic_number: int = MAGIC_NUMBER,
) -> Path:
    """Write the format before 1.6; `storages` are numbers of values, and bytes."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    storages = storages or {}
    parts = [pickle.dumps(part, protocol=2) for part in (magic_number, 1001, system)]
    parts += [data_pkl, pickle.dumps(list(storages), protocol=2)]
    parts += [struct.pack("<q", count) + data for count, data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path
