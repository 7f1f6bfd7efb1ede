"""Sizes of images: resized as py-faster-rcnn resizes them, and padded to a canvas."""

import dataclasses

import numpy as np

from resnext_jax.data.resize import resize


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How images are resized and padded.

    Attributes:
      short_side: of the resized image, in pixels, unless the long side would be too long.
      long_side: of the resized image, in pixels, at most.
      stride: of the feature map; canvases are multiples of it.
      flip: train on the mirrored images too, as images of their own: an epoch is twice as long.
      keep_empty: train on images without objects too, where all is background.
    """

    short_side: int = 600
    long_side: int = 1000
    stride: int = 16
    flip: bool = True
    keep_empty: bool = False

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the padded landscape images, and of the portrait ones if other."""
        short, long = (-(-side // self.stride) * self.stride for side in self._sides)
        return ((short, long),) if short == long else ((short, long), (long, short))

    def canvas_of(self, height: int, width: int) -> int:
        """Return which of `canvases` an image gets, as its place there."""
        return int(height > width and len(self.canvases) > 1)

    @property
    def _sides(self) -> tuple[int, int]:
        return min(self.short_side, self.long_side), self.long_side


def resized_shape(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Return height and width of an image when resized."""
    short, long = sorted((height, width))
    scale = spec.short_side / short
    if round(scale * long) > spec.long_side:
        scale = spec.long_side / long
    return max(1, round(height * scale)), max(1, round(width * scale))


def prepare_image(image: np.ndarray, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image and pad it at the bottom and right with zeros.

    Args:
      image: uint8 `[h, w, 3]`.
      spec: of the result.

    Returns:
      The padded image, uint8 `[H, W, 3]`, and the resized height and width, float32 `[2]`.
    """
    height, width = image.shape[:2]
    padded = np.zeros((*spec.canvases[spec.canvas_of(height, width)], 3), np.uint8)
    height, width = resized_shape(height, width, spec)
    padded[:height, :width] = resize(
        image, height, width, interpolation="bilinear", antialias=False
    )
    return padded, np.array([height, width], np.float32)


def resized_boxes(
    boxes: np.ndarray, original_size: np.ndarray, size: np.ndarray, *, mirrored: bool
) -> np.ndarray:
    """Take boxes from the image as it is stored to the resized one.

    Both sides are whole pixels, so each axis has its own scale.

    Args:
      boxes: `[n, 4]`, in pixels of the image as it is stored.
      original_size: `[2]`, height and width of that image; or `[n, 2]`, of each box's image.
      size: of the resized one, likewise.
      mirrored: whether the image is mirrored left to right.

    Returns:
      float32 `[n, 4]`.
    """
    if mirrored:
        x1, y1, x2, y2 = boxes.T
        width = original_size[..., 1]
        boxes = np.stack([width - x2, y1, width - x1, y2], axis=1)
    return (boxes * _scales(original_size, size)).astype(np.float32)


def original_boxes(boxes: np.ndarray, size: np.ndarray, original_size: np.ndarray) -> np.ndarray:
    """Take boxes from a resized image back to the image as it is stored, and clip them to it.

    Args:
      boxes: `[..., 4]`, in pixels of the resized image.
      size: `[2]`, its height and width.
      original_size: `[2]`, of the image as it is stored.

    Returns:
      float32 `[..., 4]`.
    """
    limits = np.tile(np.asarray(original_size)[::-1], 2)
    return np.clip(boxes * _scales(size, original_size), 0, limits).astype(np.float32)


def _scales(size: np.ndarray, new_size: np.ndarray) -> np.ndarray:
    """Return what x1, y1, x2, y2 are multiplied by, float64 `[..., 4]`."""
    factors = np.asarray(new_size, np.float64) / np.asarray(size)
    return np.tile(factors[..., ::-1], 2)
