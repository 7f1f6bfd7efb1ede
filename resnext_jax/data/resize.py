"""Resizing of uint8 images, by the rules of several libraries."""

import functools
from typing import Literal, get_args

import cv2
import numpy as np
from PIL import Image

Interpolation = Literal["bicubic", "bilinear", "torch7"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)

_OPENCV = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resize(
    image: np.ndarray, height: int, width: int, *, interpolation: str, antialias: bool
) -> np.ndarray:
    """Resize an image.

    Args:
      image: uint8 `[H, W, 3]`.
      height: of the result, in pixels.
      width: of the result, in pixels.
      interpolation: "bicubic", "bilinear", or "torch7": the bicubic of the paper's code, which
        lays the outermost pixels' centres on each other and never antialiases.
      antialias: when shrinking, widen the filter so that every pixel counts, as Pillow does;
        otherwise points are sampled, as OpenCV does.

    Returns:
      uint8 `[height, width, 3]`.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "torch7":
        return _torch7(image, height, width)
    if antialias:
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((width, height), _PILLOW[interpolation]))
    return cv2.resize(image, (width, height), interpolation=_OPENCV[interpolation])


def _torch7(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Torch7's `image.scale(..., "bicubic")`: rows first, then columns."""
    pixels = image.astype(np.float32)
    for axis, size in ((1, width), (0, height)):
        taps, weights = _torch7_taps(image.shape[axis], size)
        shape = (-1, 1) if axis == 1 else (-1, 1, 1)
        samples = [
            weights[:, tap].reshape(shape) * pixels.take(taps[:, tap], axis=axis)
            for tap in range(4)
        ]
        pixels = np.sum(samples, axis=0, dtype=np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _torch7_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels `[new, 4]` of each result along one axis, and their weights (float32)."""
    if old == 1:
        return np.zeros((new, 4), np.int64), np.tile(_row(0, 1, 0, 0), (new, 1))
    scale = np.float32(old - 1) / np.float32(max(new - 1, 1))
    places = np.arange(new, dtype=np.float32) * scale
    left = np.minimum(places.astype(np.int64), old - 2)
    t = (places - left)[:, None].astype(np.float32)
    # Cubic through the two inner pixels, with the slopes of their neighbours (Catmull-Rom).
    weights = np.hstack(
        [
            -t / 2 + t**2 - t**3 / 2,
            1 - 5 * t**2 / 2 + 3 * t**3 / 2,
            t / 2 + 2 * t**2 - 3 * t**3 / 2,
            -(t**2) / 2 + t**3 / 2,
        ]
    ).astype(np.float32)
    # Beyond the border the line through the two outermost pixels goes on.
    first, last = left == 0, left == old - 2
    weights[first] += weights[first, :1] * _row(-1, 2, -1, 0)
    weights[last] += weights[last, 3:] * _row(0, -1, 2, -1)
    taps = np.clip(left[:, None] + np.arange(-1, 3), 0, old - 1)
    return taps, weights


def _row(*weights: float) -> np.ndarray:
    return np.array(weights, np.float32)
