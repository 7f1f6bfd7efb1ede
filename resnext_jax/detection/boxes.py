"""Boxes: overlaps, and the four numbers by which a network moves one.

A box is x1, y1, x2, y2 in pixels of the image, continuous: x2 and y2 are the inclusive
corner + 1, so that the width is x2 - x1. Nothing here gives NaN or infinity for a box
without area, nor do the gradients.
"""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

# On the host and on the device.
Array = TypeVar("Array", np.ndarray, jax.Array)

# A box grows at most this much at once: from 16 pixels to 1000.
MAX_LOG_SCALE = math.log(1000 / 16)

# Divisors are no smaller, in pixels: about float32's resolution at 1000 pixels.
_SHORTEST = 1e-4


def area(boxes: Float[Array, "*shape 4"]) -> Float[Array, "*shape"]:
    """Measure boxes.

    Args:
      boxes: `[..., 4]`, of NumPy or JAX.

    Returns:
      `[...]`, in square pixels; 0 where a corner is on the wrong side of the other.
    """
    width = (boxes[..., 2] - boxes[..., 0]).clip(0)
    height = (boxes[..., 3] - boxes[..., 1]).clip(0)
    # Clipped, so that no compiler fuses the product with a later sum and rounds differently.
    return (width * height).clip(0)


def iou(
    a: Float[jax.Array, "n 4"],
    b: Float[jax.Array, "m 4"],
    valid: Bool[jax.Array, " m"] | None = None,
) -> Float[jax.Array, "n m"]:
    """Intersection over union of every box of one set with every box of another.

    Args:
      a: `[N, 4]`.
      b: `[M, 4]`.
      valid: bool `[M]`, which of `b` are boxes and not padding; None is all.

    Returns:
      `[N, M]`, in 0..1; 0 between boxes without area, -1 where b is not valid.
    """
    shared = _intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - shared
    overlaps = shared / jnp.maximum(union, _SHORTEST**2)
    return overlaps if valid is None else jnp.where(valid, overlaps, -1)


def coverage(a: Float[jax.Array, "n 4"], b: Float[jax.Array, "m 4"]) -> Float[jax.Array, "n m"]:
    """Share of each box of `a` that lies in each box of `b`.

    COCO's measure against a crowd, of which a box may well be a part.

    Args:
      a: `[N, 4]`.
      b: `[M, 4]`.

    Returns:
      `[N, M]`, in 0..1; 0 where a box of `a` has no area.
    """
    return _intersection(a, b) / jnp.maximum(area(a), _SHORTEST**2)[:, None]


def encode(
    boxes: Float[jax.Array, "*#shape 4"], reference: Float[jax.Array, "*#shape 4"]
) -> Float[jax.Array, "*#shape 4"]:
    """Say by which numbers reference boxes become others (Girshick et al. 2014, App. C).

    Args:
      boxes: `[..., 4]`, what is to be reached.
      reference: `[..., 4]`, anchors or proposals.

    Returns:
      `[..., 4]`: dx and dy, by which the centre moves, in widths and heights of the
      reference; dw and dh, logarithms of the growth of width and height.
    """
    sides = jnp.maximum(_sides(reference), _SHORTEST)
    moved = boxes - reference
    # The mean of the corners' moves: centres of their own would be rounded once more.
    shift = (moved[..., :2] + moved[..., 2:]) / 2 / sides
    growth = jnp.log(jnp.maximum(_sides(boxes), _SHORTEST) / sides)
    return jnp.concatenate([shift, growth], axis=-1)


def decode(
    deltas: Float[jax.Array, "*#shape 4"], reference: Float[jax.Array, "*#shape 4"]
) -> Float[jax.Array, "*#shape 4"]:
    """Move reference boxes, the inverse of `encode`.

    Args:
      deltas: `[..., 4]`, dx, dy, dw, dh; the last two count up to log(1000 / 16), so that no
        width overflows.
      reference: `[..., 4]`.

    Returns:
      `[..., 4]`; exactly the reference (whose corners are in order) where deltas are 0.
    """
    sides = _sides(reference)
    shift = deltas[..., :2] * sides
    growth = jnp.expm1(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * sides / 2
    # Reference corners are added last, once: they are the largest, and round the most.
    return reference + jnp.concatenate([shift - growth, shift + growth], axis=-1)


def clip(boxes: Float[Array, "*shape 4"], size: Any) -> Float[Array, "*shape 4"]:
    """Cut boxes at the image's border.

    Args:
      boxes: `[..., 4]`, of NumPy or JAX.
      size: height and width of the image in pixels, two numbers or an array `[2]`.

    Returns:
      `[..., 4]`, dtype of `boxes`; a box wholly outside has no area.
    """
    xp: Any = np if isinstance(boxes, np.ndarray) else jnp
    height, width = size[0], size[1]
    limits = xp.stack([xp.asarray(side, boxes.dtype) for side in (width, height, width, height)])
    return xp.clip(boxes, 0, limits)


def flip(boxes: Float[Array, "*shape 4"], width: Any) -> Float[Array, "*shape 4"]:
    """Mirror boxes left to right, as their image is.

    Args:
      boxes: `[..., 4]`, of NumPy or JAX.
      width: of the image in pixels, without padding.

    Returns:
      `[..., 4]`, dtype of `boxes`.
    """
    xp: Any = np if isinstance(boxes, np.ndarray) else jnp
    width = xp.asarray(width, boxes.dtype)
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return xp.stack([width - x2, y1, width - x1, y2], axis=-1)


def _sides(boxes: jax.Array) -> jax.Array:
    """Return width and height, `[..., 2]`, not negative."""
    return (boxes[..., 2:] - boxes[..., :2]).clip(0)


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the area that each of `a` shares with each of `b`, `[N, M]`."""
    low = jnp.maximum(a[:, None, :2], b[None, :, :2])
    high = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    width, height = jnp.moveaxis((high - low).clip(0), -1, 0)
    # Clipped, so that no compiler fuses the product with a later sum and rounds differently.
    return (width * height).clip(0)
