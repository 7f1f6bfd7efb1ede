"""Writers of PNG, TIFF, PGM and PPM files whose every sample is known, of any depth.

None of these uses an image library: what a file's samples are is then beyond doubt.
"""

import struct
import zlib
from collections.abc import Mapping

import numpy as np

TYPES = {"B": 1, "H": 3, "I": 4, "Q": 16}


def png(samples: np.ndarray) -> bytes:
    """Return samples, uint8 or uint16 `[H, W]` or `[H, W, 1..4]`, as a PNG."""
    height, width = samples.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[samples.size // (height * width)]
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(height, -1)
    unfiltered = b"".join(b"\0" + row.tobytes() for row in rows)
    bits = 8 * samples.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def pnm(samples: np.ndarray, maxval: int, *, plain: bool = False) -> bytes:
    """Return samples `[H, W]` as a PGM, `[H, W, 3]` as a PPM."""
    kind = {(2, True): 2, (3, True): 3, (2, False): 5, (3, False): 6}[samples.ndim, plain]
    head = b"P%d\n# a comment\n%d %d # another\n%d\n" % (kind, *samples.shape[1::-1], maxval)
    if plain:
        lines = (b" ".join(b"%d" % value for value in row.ravel()) for row in samples)
        return head + b"# and one more\n" + b"\n".join(lines) + b"\n"
    return head + samples.astype(">u2" if maxval > 255 else np.uint8).tobytes()


def tiff(
    samples: np.ndarray,
    *,
    order: str = "<",
    photometric: int = 1,
    compressed: bool = False,
    apart: bool = False,
    tile: int = 0,
    big: bool = False,
    tags: Mapping[int, int | tuple[int, ...]] | None = None,
) -> bytes:
    """Return samples `[H, W]` or `[H, W, C]` of any type as a TIFF of one page.

    Args:
      samples: what it holds.
      order: "<" or ">", of the bytes.
      photometric: 0: white is zero, 1: black is zero, 2: RGB, 3: palette, 5: CMYK.
      compressed: by deflate.
      apart: a plane for each colour.
      tile: side of the tiles, in pixels; 0: one strip.
      big: BigTIFF.
      tags: replace others, or are added.
    """
    height, width = samples.shape[:2]
    count = samples.size // (height * width)
    stored = samples.reshape(height, width, count).astype(order + samples.dtype.str[1:])
    planes = np.split(stored, count, axis=2) if apart else [stored]
    blocks = [block for plane in planes for block in _blocks(plane, tile)]
    if compressed:
        blocks = [zlib.compress(block) for block in blocks]
    start = 16 if big else 8
    places = np.cumsum([start, *map(len, blocks)]).tolist()
    layout = {322: tile, 323: tile, 324: places[:-1], 325: list(map(len, blocks))}
    strips = {273: places[:-1], 278: height, 279: list(map(len, blocks))}
    values = {
        256: width,
        257: height,
        258: (8 * samples.dtype.itemsize,) * count,
        259: 8 if compressed else 1,
        262: photometric,
        277: count,
        284: 2 if apart else 1,
        339: ({"u": 1, "b": 1, "i": 2, "f": 3, "c": 6}[samples.dtype.kind],) * count,
        **(layout if tile else strips),
        **(tags or {}),
    }
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + ("HHQ" if big else "I"), *((8, 0) if big else ()), places[-1])
    return head + b"".join(blocks) + _directory(values, places[-1], order, big=big)


def _blocks(plane: np.ndarray, tile: int) -> list[bytes]:
    if not tile:
        return [plane.tobytes()]
    padding = [(0, -side % tile) for side in plane.shape[:2]]
    padded = np.pad(plane, (*padding, (0, 0)))
    return [
        padded[row : row + tile, column : column + tile].tobytes()
        for row in range(0, padded.shape[0], tile)
        for column in range(0, padded.shape[1], tile)
    ]


def _directory(
    values: Mapping[int, int | tuple[int, ...] | list[int]], place: int, order: str, *, big: bool
) -> bytes:
    """Return the tags, for that place in the file."""
    number, offset = ("Q", "Q") if big else ("H", "I")
    room = struct.calcsize(offset)
    size = struct.calcsize(number) + len(values) * (4 + 2 * room) + room
    entries, behind = b"", b""
    for tag, value in sorted(values.items()):
        numbers = [value] if isinstance(value, int) else list(value)
        kind = "H" if max(numbers) < 65536 else "I"
        data = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(data) > room:
            behind += data
            data = struct.pack(order + offset, place + size + len(behind) - len(data))
        entries += struct.pack(f"{order}HH{offset}", tag, TYPES[kind], len(numbers))
        entries += data.ljust(room, b"\0")
    return struct.pack(order + number, len(values)) + entries + bytes(room) + behind
