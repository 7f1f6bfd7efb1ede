"""From the bytes of an image file to pixels by Pillow, with regard to samples of more than 8 bits.

The file's header decides what its samples mean, not Pillow's mode: Pillow clips 16-bit grey to
255, rounds the 16-bit colours of a PPM, truncates those of a PNG, and reads some TIFFs wrongly.

- 16-bit samples become `sample >> 8`: grey and colours, in either byte order.
- Samples of a PGM or PPM whose maxval is above 255, and of a 12-bit TIFF, are first scaled to 16
  bits: `sample * 65535 / maxval`, rounded to the nearest, a half upwards.
- Samples whose black and white no header states are refused: signed, 32-bit, floating-point.
"""

import dataclasses
import functools
import io
import math
import re
import struct
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image

# What Pillow may read, whatever a file is called: not PostScript, for which it runs another program
# (`gs`), nor what needs a library of other formats.
_READ = (
    *("JPEG", "PNG", "PPM", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000"),
    *("ICO", "TGA", "PCX", "SGI", "QOI", "FITS"),
)

# Sensors of microscopes and depth cameras often fill 12 of 16 bits.
_DIM = 4096

_PNG_START, _PNG_BITS = b"\x89PNG\r\n\x1a\n", 24
# A PGM or PPM, plain or binary: which of them, width, height and maxval.
_PNM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" + rb"\s")
_PLAIN, _COLOUR = (b"2", b"3"), (b"3", b"6")
# A JPEG 2000's codestream begins with this; where in it the number of components is, and what
# says how deep the first one is.
_JPEG_2000_START, _COMPONENTS, _DEPTHS = b"\xff\x4f\xff\x51", 40, 42

# The starts of a TIFF that Pillow accepts; the last one's pages it does not find.
_UNREAD_TIFF = b"MM\0\x2b"
_TIFF_STARTS = (b"II\x2a\0", b"MM\0\x2a", b"II\0\x2a", b"MM\x2a\0", b"II\x2b\0", _UNREAD_TIFF)
_BIG_TIFF = 43
# TIFF tags, and by their types the whole numbers in them.
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _FORMAT = 258, 259, 262, 277, 284, 339
_TAGS = (_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _FORMAT)
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
# Their values.
_UNCOMPRESSED, _WHITE_IS_ZERO, _BLACK_IS_ZERO, _TOGETHER, _APART = 1, 0, 1, 1, 2
# Values of SampleFormat, without 1: unsigned integers.
_FORMATS = {
    2: "signed integers",
    3: "floating-point numbers",
    5: "complex integers",
    6: "complex numbers",
}

_unnoted = threading.Lock()


def open_picture(source: bytes | bytearray | BinaryIO) -> Image.Image:
    """Open an image file, or what is in one, by Pillow, which reads no more than its header.

    Raises:
      Image.UnidentifiedImageError: it is of no format that is read.
      Exception: Pillow's readers raise whatever the bytes make them stumble over.
    """
    file = io.BytesIO(source) if isinstance(source, bytes | bytearray) else source
    return Image.open(file, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    # Builds of Pillow lack some.
    return tuple(name for name in _READ if name in Image.OPEN)


def decode(data: bytes) -> tuple[np.ndarray, bool]:
    """Decode an image file by Pillow.

    Args:
      data: of an image file. Of several frames or pages the first is taken.

    Returns:
      uint8 `[H, W, 3]`, RGB; and whether it is dim: 16-bit samples that are all below 4096, so
      that at most 16 of 256 levels are left.

    Raises:
      ValueError: its samples cannot be read, or not without knowing more than its header states.
      Exception: Pillow's readers raise whatever the bytes make them stumble over.
    """
    tiff = _read_tiff(data)
    readable = _readable_tiff(data, tiff) if tiff else data
    try:
        with open_picture(readable) as picture:
            return _pixels(picture, data, tiff)
    except Image.UnidentifiedImageError:
        if tiff is None:
            raise
        raise ValueError(
            f"it is a TIFF of a kind that is not read ({tiff}), or damaged; save it as 8-bit or "
            "16-bit PNG, grey or RGB"
        ) from None


def note_dim(name: Callable[[], str]) -> None:
    """Say on stderr that an image is dim, if it is the first of this process.

    Args:
      name: returns which image it is, for people; called only if it is needed.
    """
    if _unnoted.acquire(blocking=False):
        print(
            f"note: the 16-bit samples of {name()} are all below {_DIM}; only their high bytes are "
            "used, so it is nearly black. If more images are like that, multiply all samples by "
            "one number so that they fill 0..65535 (12-bit data: by 16), or save 8-bit images.",
            file=sys.stderr,
            flush=True,
        )


def _pixels(picture: Image.Image, data: bytes, tiff: "_Tiff | None") -> tuple[np.ndarray, bool]:
    match = _PNM.match(data)
    if match and int(match[4]) > 255:
        return _decode_pnm(data, match)
    bits = tiff.bits if tiff else data[_PNG_BITS] if data.startswith(_PNG_START) else 8
    if bits > 8:
        return _high_bytes(picture, bits, white_is_zero=tiff is not None and tiff.white_is_zero)
    if picture.mode == "F":
        raise _unscaled("floating-point numbers")
    # Pillow scales what other formats hold one way or another, or not at all.
    deep = picture.mode.startswith("I")
    if deep or (picture.format == "JPEG2000" and _is_deep_jpeg_2000(data)):
        raise ValueError(
            f"of {picture.format} files only those with unsigned 8-bit samples are read; save it "
            "as 8-bit or 16-bit PNG"
        )
    return np.asarray(picture.convert("RGB")), False


def _high_bytes(picture: Image.Image, bits: int, *, white_is_zero: bool) -> tuple[np.ndarray, bool]:
    """Return the pixels of a 16-bit PNG or a 12-bit or 16-bit TIFF, and whether it is dim."""
    samples = np.asarray(picture)
    if samples.ndim == 3:  # of colours Pillow keeps the high bytes only
        colours = samples[..., :3] if picture.mode.startswith("RGB") else samples
        return np.asarray(picture.convert("RGB")), _is_dim(colours)
    high = (samples >> 8).astype(np.uint8) if bits == 16 else _scaled(samples, 2**bits - 1)
    dim = bits == 16 and _is_dim(high)
    return _as_rgb(255 - high if white_is_zero else high), dim


def _decode_pnm(data: bytes, head: re.Match[bytes]) -> tuple[np.ndarray, bool]:
    """Return the pixels of a PGM or PPM with a maxval above 255, and whether it is dim."""
    kind, width, height, maxval = head[1], int(head[2]), int(head[3]), int(head[4])
    shape = (height, width, 3) if kind in _COLOUR else (height, width)
    count = math.prod(shape)
    if kind in _PLAIN:
        text = re.sub(rb"#[^\r\n]*", b"", data[head.end() :])
        samples = np.array([int(word) for word in text.split(maxsplit=count)[:count]], np.int64)
    else:
        there = (len(data) - head.end()) // 2
        samples = np.frombuffer(data, ">u2", min(count, there), head.end())
    if len(samples) < count:
        raise ValueError("the file is cut short")
    if np.min(samples) < 0 or np.max(samples) > maxval:
        raise ValueError(f"it has samples outside 0..{maxval}, its maxval")
    high = _scaled(samples, maxval).reshape(shape)
    # Another maxval says what white is.
    return _as_rgb(high), maxval == 65535 and _is_dim(high)


def _scaled(samples: np.ndarray, maxval: int) -> np.ndarray:
    """Scale samples of 0..maxval to 16 bits and return the high bytes, uint8."""
    deep = (samples.astype(np.uint32) * 65535 + maxval // 2) // maxval
    return (deep >> 8).astype(np.uint8)


def _is_dim(high_bytes: np.ndarray) -> bool:
    return bool(high_bytes.max() < _DIM >> 8)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def _unscaled(samples: str) -> ValueError:
    return ValueError(
        f"its samples are {samples}, whose black and white no header states; choose both, the "
        "same for all images, and save round(255 * (sample - black) / (white - black)), clipped "
        "to 0..255, as 8-bit PNG"
    )


def _is_deep_jpeg_2000(data: bytes) -> bool:
    """Whether a JPEG 2000's samples are signed or deeper than 8 bits: Pillow wraps those around."""
    start = data.find(_JPEG_2000_START)
    if start < 0 or len(data) < start + _DEPTHS:
        return False
    (components,) = struct.unpack_from(">H", data, start + _COMPONENTS)
    depths = data[start + _DEPTHS : start + _DEPTHS + 3 * components : 3]
    return any(depth > 7 for depth in depths)  # bits less one; the highest bit: signed


@dataclasses.dataclass(frozen=True)
class _Tiff:
    """What the tags of a TIFF's first page say of its samples.

    Attributes:
      tags: the values of those of `_TAGS` that it has.
      places: where in the file they are, and as which struct.
    """

    tags: dict[int, tuple[int, ...]]
    places: dict[int, tuple[int, str]]

    def __str__(self) -> str:
        bits = "/".join(map(str, self.tags.get(_BITS, (1,))))
        return f"BitsPerSample {bits}, PhotometricInterpretation {self.photometric}"

    @property
    def bits(self) -> int:
        return max(self.tags.get(_BITS, (1,)))

    @property
    def samples(self) -> int:
        """Per pixel."""
        return self.tags.get(_SAMPLES, (1,))[0]

    @property
    def photometric(self) -> int:
        return self.tags.get(_PHOTOMETRIC, (_WHITE_IS_ZERO,))[0]  # as Pillow

    @property
    def white_is_zero(self) -> bool:
        return self.photometric == _WHITE_IS_ZERO


def _read_tiff(data: bytes) -> _Tiff | None:
    """Read a TIFF's head; None if it is damaged or of another kind of file."""
    if not data.startswith(_TIFF_STARTS):
        return None
    order = "<" if data.startswith(b"II") else ">"
    big = _BIG_TIFF in data[2:4]
    # The struct of an offset and of the number of tags, and the bytes of a tag.
    offset, number, step = ("Q", "Q", 20) if big else ("I", "H", 12)
    tags, places = {}, {}
    try:
        (place,) = struct.unpack_from(order + offset, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + number, data, place)
        place += struct.calcsize(number)
        for entry in range(place, place + count * step, step):
            tag, kind, length = struct.unpack_from(f"{order}HH{offset}", data, entry)
            if tag not in _TAGS or kind not in _WHOLE_NUMBERS or not length:
                continue
            form = f"{order}{length}{_WHOLE_NUMBERS[kind]}"
            value = entry + 4 + struct.calcsize(offset)
            if struct.calcsize(form) > struct.calcsize(offset):
                (value,) = struct.unpack_from(order + offset, data, value)
            tags[tag], places[tag] = struct.unpack_from(form, data, value), (value, form)
    except (struct.error, IndexError, OverflowError):
        return None
    return _Tiff(tags, places)


def _readable_tiff(data: bytes, tiff: _Tiff) -> bytes | bytearray:
    """Return the file as Pillow reads it correctly.

    Raises:
      ValueError: it does not, or the samples' black and white are unknown.
    """
    if data.startswith(_UNREAD_TIFF):
        raise ValueError("it is a big-endian BigTIFF, which is not read; save it as another TIFF")
    numbers = next((_FORMATS[each] for each in tiff.tags.get(_FORMAT, ()) if each in _FORMATS), "")
    if numbers or tiff.bits > 16:
        raise _unscaled(f"{tiff.bits}-bit {numbers or 'integers'}")
    apart = tiff.tags.get(_PLANES, (_TOGETHER,))[0] == _APART
    compressed = tiff.tags.get(_COMPRESSION, (_UNCOMPRESSED,))[0] != _UNCOMPRESSED
    if tiff.bits > 8 and apart and tiff.samples > 1 and not compressed:
        raise ValueError(  # Pillow reads bytes for samples
            f"it is an uncompressed {tiff.bits}-bit TIFF with the colours in planes of their own "
            "(PlanarConfiguration 2); save it compressed, or with a pixel's colours together"
        )
    changes = {}
    if apart and tiff.samples == 1:  # which Pillow reads as 8-bit, or inverts
        changes[_PLANES] = _TOGETHER
    if tiff.bits > 8 and tiff.white_is_zero:  # which Pillow leaves as they are, or does not read
        changes[_PHOTOMETRIC] = _BLACK_IS_ZERO
    changes = {tag: value for tag, value in changes.items() if tag in tiff.places}
    if not changes:
        return data
    changed = bytearray(data)
    for tag, value in changes.items():
        place, form = tiff.places[tag]
        struct.pack_into(form, changed, place, value)
    return changed
