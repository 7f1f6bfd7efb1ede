"""Random erasing (Zhong et al. 2017): a box of a training image is painted over.

The box is drawn on the host from the image's own generator, and painted on the device after
normalising, with zeros: the mean colour.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Where boxes are erased: of each image in a batch, int32 `[N, 4]`, see `draw_box`.
ERASE = "erase"

# Share of the image's area, and height by width: those of torchvision's RandomErasing.
_MIN_AREA, _MAX_AREA = 0.02, 0.33
_MIN_ASPECT, _MAX_ASPECT = 0.3, 3.3
_TRIES = 10


def draw_box(rng: np.random.Generator, size: int, probability: float) -> np.ndarray:
    """Draw the box that is erased from a square image.

    Its area is uniform in 2 to 33 % of the image's and its height by width
    log-uniform in 0.3 to 3.3; every place in the image is as likely.

    Args:
      rng: source of randomness.
      size: side of the image, in pixels.
      probability: that a box is erased at all.

    Returns:
      int32 `[4]`: top, left, bottom and right, the last two exclusive; all 0
      where nothing is erased, also where ten draws were too long for the image.
    """
    if rng.random() < probability:
        for _ in range(_TRIES):
            area = rng.uniform(_MIN_AREA, _MAX_AREA) * size**2
            aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), math.log(_MAX_ASPECT)))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if high < size and wide < size:
                top = int(rng.integers(size - high, endpoint=True))
                left = int(rng.integers(size - wide, endpoint=True))
                return np.array([top, left, top + high, left + wide], np.int32)
    return np.zeros(4, np.int32)


def erase(images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Paint a box of each image with zeros.

    Args:
      images: `[N, H, W, C]`, normalised.
      boxes: int32 `[N, 4]`, of `draw_box`.

    Returns:
      `[N, H, W, C]`.
    """
    return jnp.where(inside(boxes, *images.shape[1:3]), 0, images)


def inside(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Mark the pixels in each image's box.

    Args:
      boxes: whole numbers `[N, 4]`: top, left, bottom and right, the last two exclusive.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Returns:
      bool `[N, height, width, 1]`.
    """
    top, left, bottom, right = (boxes[:, i, None, None, None] for i in range(4))
    rows = jnp.arange(height)[None, :, None, None]
    columns = jnp.arange(width)[None, None, :, None]
    return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)
