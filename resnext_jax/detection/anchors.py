"""Anchors: the reference boxes at every position of the feature map (Ren et al. 2015, Sec. 3.1).

Their sides are rounded to whole pixels as in py-faster-rcnn, whose anchors these are.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32


@dataclasses.dataclass(frozen=True)
class AnchorSpec:
    """Which anchors there are at a position.

    Attributes:
      stride: pixels of the image from position to position, both ways.
      base: side in pixels of the square that ratios and scales start from.
      ratios: heights by widths.
      scales: sides by those of the base.
    """

    stride: int = 16
    base: int = 16
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    scales: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)

    @property
    def per_position(self) -> int:
        """How many anchors there are at a position."""
        return len(self.ratios) * len(self.scales)


def base_anchors(spec: AnchorSpec | None = None) -> Float32[np.ndarray, "a 4"]:
    """Return the anchors at the first position, of the top left corner.

    Args:
      spec: which; None is the paper's, 12 a position.

    Returns:
      float32 `[A, 4]`, continuous; all scales of the first ratio, then those of the next.
    """
    spec = spec or AnchorSpec()
    widths = np.round(np.sqrt(spec.base**2 / np.array(spec.ratios)))
    # From the rounded widths, and halves to the even side: 11.5 becomes 12.
    heights = np.round(widths * spec.ratios)
    sides = np.stack([widths, heights], axis=1)[:, None] * np.array(spec.scales)[:, None]
    sides = sides.reshape(-1, 2)
    centre = spec.base / 2
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=1).astype(np.float32)


def are_reached(boxes: np.ndarray, sizes: np.ndarray, spec: AnchorSpec) -> np.ndarray:
    """Mark the boxes that an anchor wholly inside their image overlaps; others cannot be learnt.

    Args:
      boxes: `[n, 4]`, in pixels of their resized images.
      sizes: `[n, 2]`, height and width of these.
      spec: the anchors.

    Returns:
      bool `[n]`.
    """
    reached, stride = np.zeros(len(boxes), bool), spec.stride
    for anchor in base_anchors(spec).astype(float):
        found = np.ones(len(boxes), bool)
        for axis in range(2):
            first, last, length = anchor[axis], anchor[axis + 2], sizes[:, 1 - axis]
            start, end = boxes[:, axis], boxes[:, axis + 2]
            # Positions at which it is inside the image, and those at which it overlaps the box.
            lowest = np.maximum(max(0, np.ceil(-first / stride)), (start - last) // stride + 1)
            highest = np.minimum((length - last) // stride, np.ceil((end - first) / stride) - 1)
            found &= lowest <= highest
        reached |= found
    return reached


def make_anchors(
    height: int, width: int, spec: AnchorSpec | None = None
) -> Float32[np.ndarray, "anchors 4"]:
    """Return all anchors of a feature map.

    Args:
      height: of the feature map, in positions.
      width: of the feature map, in positions.
      spec: which at a position; None is the paper's.

    Returns:
      float32 `[height * width * A, 4]`, continuous, in pixels of the image; by row, then by
      column, then as in `base_anchors`. Many of them reach beyond the image.
    """
    spec = spec or AnchorSpec()
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    shifts = np.stack([columns, rows, columns, rows], axis=-1).reshape(-1, 1, 4) * spec.stride
    return (shifts + base_anchors(spec)).astype(np.float32).reshape(-1, 4)
