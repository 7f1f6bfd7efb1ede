"""What image files say of themselves: the segments of a JPEG, and the EXIF orientation of any."""

import struct
from collections.abc import Iterator

import numpy as np

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"

# Whether images are turned as their EXIF says.
EXIF = ("ignore", "follow")

_EXIF_START = b"Exif\0\0"
_TIFF_STARTS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION = 274
# By its type, the struct of a whole number in a tag.
_NUMBERS = {3: "H", 4: "I"}


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the mark and the place of each segment of a JPEG, up to its first scan."""
    place = len(JPEG_START)
    while place + 10 <= len(data) and data[place] == 0xFF:
        mark = data[place + 1]
        if mark == 0xFF:  # padding
            place += 1
            continue
        yield mark, place
        if mark == 0xDA:
            return
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP, 1 to 8.

    1, upright, where there is none or none that can be read, and for all other files (a TIFF's own
    mark is followed where it is decoded).
    """
    for exif in _exif(data):
        exif = exif.removeprefix(_EXIF_START)
        order = _TIFF_STARTS.get(exif[:4])
        if order is None:
            continue
        try:
            (place,) = struct.unpack_from(f"{order}I", exif, 4)
            (count,) = struct.unpack_from(f"{order}H", exif, place)
            for entry in range(place + 2, place + 2 + 12 * count, 12):
                tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, entry)
                if tag == _ORIENTATION and kind in _NUMBERS:
                    (found,) = struct.unpack_from(order + _NUMBERS[kind], exif, entry + 8)
                    return int(found) if 1 <= found <= 8 else 1
        except struct.error:
            pass
    return 1


def spread_sample(count: int, most: int) -> list[int]:
    """Return the indices of at most `most` of `count` items, spread evenly, ascending."""
    indices: list[int] = np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
    return indices


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image `[H, W, ...]` as its orientation says; from 5 on the sides change places."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])


def _exif(data: bytes) -> Iterator[bytes]:
    """Yield what may be the EXIF data of a file."""
    if data.startswith(JPEG_START):
        for mark, place in jpeg_segments(data):
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            if mark == 0xE1 and data.startswith(_EXIF_START, place + 4):
                yield data[place + 4 : place + 2 + length]
    elif data.startswith(PNG_START):
        yield from _chunks(data, len(PNG_START), ">I", b"eXIf", name_first=False, checksum=4)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        yield from _chunks(data, 12, "<I", b"EXIF", name_first=True, checksum=0)


def _chunks(
    data: bytes, place: int, length_format: str, wanted: bytes, *, name_first: bool, checksum: int
) -> Iterator[bytes]:
    """Yield the chunks of a name; chunks without a checksum are padded to an even length."""
    name_at, length_at = (0, 4) if name_first else (4, 0)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(length_format, data, place + length_at)
        if data[place + name_at : place + name_at + 4] == wanted:
            yield data[place + 8 : place + 8 + length]
        place += 8 + length + (checksum or length % 2)
