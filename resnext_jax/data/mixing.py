"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): pairs of training images are mixed.

Neighbours of the global batch are partners: images 0 and 1, 2 and 3, and so on. Both get the same
share of the other, by the numbers that the first of them brings along, drawn on the host from its
own generator. So a mixed image depends on its pair alone, and not on devices, hosts or
micro-batches, where each of these holds whole pairs.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from resnext_jax.data.erasing import inside

# Where images are mixed: of each image in a batch, float32 `[N, NUM_MIX]`, see `draw_mix`.
MIX = "mix"
NUM_MIX = 6


def draw_mix(rng: np.random.Generator, size: int, *, mixup: float, cutmix: float) -> np.ndarray:
    """Draw how a pair of square images is mixed.

    Mixup blends whole images: an image keeps the weight lambda of Beta(alpha,
    alpha), its partner comes in with 1 - lambda. CutMix pastes a box of the
    partner with sides sqrt(1 - lambda) of the image's, its centre anywhere in
    the image; what of the box is beyond the border is left out.

    Args:
      rng: source of randomness.
      size: side of the images, in pixels.
      mixup: alpha of mixup; 0 leaves it out.
      cutmix: alpha of CutMix; 0 leaves it out. Where neither is left out, each
        is as likely.

    Returns:
      float32 `[NUM_MIX]`: what is left of an image itself, a share in 0..1; its
      own weight within a box; and the box, in whole pixels: top, left, bottom
      and right, the last two exclusive. Mixup has the whole image for its box;
      CutMix the weight 0, and for the share what of the area is not pasted over.

    Raises:
      ValueError: both are left out.
    """
    if not mixup and not cutmix:
        raise ValueError("mixup and cutmix are both 0: there is nothing to draw.")
    cuts = rng.random() < 0.5 if mixup and cutmix else bool(cutmix)
    if not cuts:
        weight = rng.beta(mixup, mixup)
        return np.array([weight, weight, 0, 0, size, size], np.float32)
    half = int(0.5 * math.sqrt(1 - rng.beta(cutmix, cutmix)) * size)
    centre = rng.integers(size, size=2)
    first, last = np.maximum(centre - half, 0), np.minimum(centre + half, size)
    share = 1 - np.prod(last - first) / size**2
    return np.array([share, 0, *first, *last], np.float32)


def mix(images: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mix each image with its partner.

    Args:
      images: `[N, H, W, C]`, normalised.
      numbers: `[N, NUM_MIX]`, of `draw_mix`; those of images 0, 2, ... are used.

    Returns:
      The mixed images `[N, H, W, C]`, and what is left of each itself, `[N]` in
      0..1: the share of its label in the loss. The partner's label has the rest.

    Raises:
      ValueError: N is odd, when traced.
    """
    others = partners(images)
    numbers = jnp.repeat(numbers[::2], 2, axis=0)
    share, weight, box = numbers[:, 0], numbers[:, 1], numbers[:, 2:]
    weight = weight.astype(images.dtype)[:, None, None, None]
    blend = weight * images + (1 - weight) * others
    return jnp.where(inside(box, *images.shape[1:3]), blend, images), share


def partners(array: jax.Array) -> jax.Array:
    """Swap neighbours: `[N, ...]` in the order 1, 0, 3, 2, ...

    Raises:
      ValueError: N is odd.
    """
    count = array.shape[0]
    if count % 2:
        raise ValueError(f"{count} images are no pairs; images are mixed in pairs.")
    pairs = array.reshape(count // 2, 2, *array.shape[1:])
    return pairs[:, ::-1].reshape(array.shape)
