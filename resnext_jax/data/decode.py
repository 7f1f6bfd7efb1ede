"""From the bytes of an image file to pixels, as Pillow would give them, mostly by OpenCV.

OpenCV decodes what nearly every file is (grey or three-channel JPEG, 8-bit grey or RGB
PNG) to the same bits as Pillow, a little faster. Everything else, and every file that
looks cut short, goes to Pillow: its handling of CMYK and palettes is what other pipelines have,
and it refuses truncated files, which some versions of OpenCV fill up with grey. Samples of more
than 8 bits, where Pillow is wrong, are the business of `deep_images`.

A crop does not need the rows below it, and decoding is most of what an input pipeline
does: `ImageFile` stops there, with the same pixels.
"""

import contextlib
import dataclasses
import re
import struct
from typing import Any

import cv2
import numpy as np
from PIL import Image

from resnext_jax.data import deep_images
from resnext_jax.data.headers import (
    EXIF,
    JPEG_START,
    PNG_START,
    jpeg_segments,
    orientation,
    upright,
)
from resnext_jax.errors import one_line

# A worker decodes one image; OpenCV's own threads would fight with the other workers.
cv2.setNumThreads(1)

# Not turned by EXIF: `ImageFile` does that, if anything.
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

# Largest ratio of the longer to the shorter side: cropping from a thinner image would first resize
# it to gigabytes.
_LARGEST_RATIO = 50

_JPEG_SCAN = b"\xff\xda"
# What ends a scan: any marker but a restart marker, which entropy-coded data may hold.
_JPEG_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PNG_END = b"IEND"
# Of a PNG with an animation, which OpenCV shows in place of the still image, ahead of both.
_PNG_ANIMATION, _PNG_PIXELS = b"acTL", b"IDAT"
# Bit depth and colour type of a PNG that OpenCV reads as Pillow does: 8-bit grey, 8-bit RGB.
_PLAIN_PNG = ((8, 0), (8, 2))

# Rows that a JPEG is decoded by, at most, where colour is stored at half resolution.
_JPEG_ROWS = 16


class UndecodableImageError(ValueError):
    """Bytes that are no image, or an image cut short."""


def decode_rgb(data: bytes) -> np.ndarray:
    """Decode an image file.

    Args:
      data: a JPEG (grey, RGB or CMYK), a PNG, or another file of `deep_images.decode`.

    Returns:
      uint8 `[H, W, 3]`, RGB, not turned by EXIF (but by a TIFF's own mark); of several frames or
      pages the first. 16-bit samples become `sample >> 8`, see `deep_images`.

    Raises:
      UndecodableImageError: says what is wrong with it.
    """
    return _decode(data, _plain_jpeg(data))[0]


def is_too_thin(height: int, width: int) -> bool:
    """Whether an image is too long and thin for a crop of it to be resized."""
    return max(height, width) > _LARGEST_RATIO * min(height, width)


class ImageFile:
    """The pixels of an image file, decoded when they are asked for.

    Behaves as an array uint8 `[H, W, 3]`: has its `shape`, gives parts of it by
    slices of rows and columns, and all of it to `np.asarray`.

    Attributes:
      is_dim: it was decoded and is nearly black, as its samples use at most 12 of 16 bits.
      is_turned: it is given as its EXIF orientation says, and that is not as it is stored.

    Raises:
      UndecodableImageError: by each of these, says what is wrong with the file.
    """

    def __init__(self, data: bytes, exif: str = EXIF[0]):
        """Look at the head of a file that `decode_rgb` takes.

        Args:
          data: of the file.
          exif: one of `EXIF`: the paper's code and torchvision ignore it, programs that show
            images follow it.
        """
        self._data = data
        self._jpeg = _plain_jpeg(data)
        self._orientation = orientation(data) if exif == "follow" else 1
        self.is_turned = self._orientation != 1
        self._pixels: np.ndarray | None = None
        self.is_dim = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and 3; read from a JPEG's head without decoding it."""
        if self._jpeg:
            height, width = self._jpeg.height, self._jpeg.width
            return (height, width, 3) if self._orientation < 5 else (width, height, 3)
        return np.asarray(self).shape

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """Return rows and columns, decoding no further than the last row."""
        if self._jpeg and not self.is_turned and self._pixels is None and part[0].stop is not None:
            pixels = _first_rows(self._data, self._jpeg, part[0].stop)
            if pixels is not None:
                return pixels[part]
        return np.asarray(self)[part]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all pixels."""
        if self._pixels is None:
            pixels, self.is_dim = _decode(self._data, self._jpeg)
            self._pixels = upright(pixels, self._orientation) if self.is_turned else pixels
        return np.array(self._pixels, dtype, copy=copy)


@dataclasses.dataclass(frozen=True)
class _PlainJpeg:
    """A whole JPEG of one or three components.

    Attributes:
      height, width: in pixels.
      height_place: where in the file the height is.
      end: where its end mark is.
      sequential: its rows can be decoded one after the other, without marks between.
    """

    height: int
    width: int
    height_place: int
    end: int
    sequential: bool


def _decode(data: bytes, jpeg: _PlainJpeg | None) -> tuple[np.ndarray, bool]:
    """Return the pixels, and whether they are dim."""
    if jpeg or _is_plain_png(data):
        image = _by_opencv(data)
        if image is not None:
            return image, False
    try:
        return deep_images.decode(data)
    except Exception as error:
        # Pillow's readers raise whatever the bytes make them stumble over.
        raise UndecodableImageError(_reason(error, data)) from error


def _by_opencv(data: bytes | bytearray) -> np.ndarray | None:
    with contextlib.suppress(cv2.error):  # what it stumbles over, Pillow explains
        return cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    return None


def _first_rows(data: bytes, jpeg: _PlainJpeg, rows: int) -> np.ndarray | None:
    """Decode at least the first `rows` rows, None where that is not to be had for less.

    The file's head is made to say that the image is no higher, and its end is
    taken away: what follows the last row is then neither decoded nor complained about.
    """
    # The last row's colours take from the row below it, so that one is decoded too.
    rows = -(-(rows + 1) // _JPEG_ROWS) * _JPEG_ROWS
    if not jpeg.sequential or rows + _JPEG_ROWS > jpeg.height:
        return None
    lower = bytearray(data[: jpeg.end])
    struct.pack_into(">H", lower, jpeg.height_place, rows)
    return _by_opencv(lower)


def _is_absurd(height: int, width: int) -> bool:
    """Whether Pillow refuses an image of this size, because a few bytes may unfold to gigabytes."""
    return Image.MAX_IMAGE_PIXELS is not None and height * width > 2 * Image.MAX_IMAGE_PIXELS


def _is_plain_png(data: bytes) -> bool:
    return (
        data.startswith(PNG_START)
        and tuple(data[24:26]) in _PLAIN_PNG
        and _PNG_END in data[-12:]
        and _PNG_ANIMATION not in data[: data.find(_PNG_PIXELS)]
        and not _is_absurd(*struct.unpack_from(">II", data, 16))
    )


def _plain_jpeg(data: bytes) -> _PlainJpeg | None:
    """Read the head of a JPEG that OpenCV decodes as Pillow does; None for everything else.

    Raises:
      UndecodableImageError: it is a JPEG that is cut short.
    """
    if not data.startswith(JPEG_START):
        return None
    place, frame, sequential, restarts = 0, None, False, False
    for mark, place in jpeg_segments(data):
        # SOF0 to SOF15, without the tables that are numbered among them (DHT, JPG, DAC).
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            frame = place
            sequential = mark in (0xC0, 0xC1)
        if mark == 0xDD:  # restart markers between rows
            restarts = True
    if frame is None or not data.startswith(_JPEG_SCAN, place):
        return None
    height, width = struct.unpack_from(">HH", data, frame + 5)
    if _is_absurd(height, width):
        return None
    end = _jpeg_end(data, place)
    if data[frame + 9] not in (1, 3):
        return None
    # All components in one scan, or row after row of one after the other.
    together = data[place + 4] == data[frame + 9]
    return _PlainJpeg(height, width, frame + 5, end, sequential and together and not restarts)


def _jpeg_end(data: bytes, place: int) -> int:
    """Find the end mark of a JPEG whose first scan is at `place`.

    What follows may be anything, and may have end marks of its own: phones put a second picture or
    a film after a photograph.

    Raises:
      UndecodableImageError: there is none: decoders would fill up what is missing with grey, or
        with what follows.
    """
    while place + 4 <= len(data):
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        mark = _JPEG_MARK.search(data, place + 2 + length)
        if mark is None or data.startswith(JPEG_START, mark.start()):
            break
        place = mark.start()
        if data[place + 1] == 0xD9:
            return place
    raise UndecodableImageError("the image is cut short")


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no image of a known kind"
    return one_line(error, longest=None)
