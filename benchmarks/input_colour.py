"""Colour, lighting and normalisation: what the device does for `input_pipeline`, and NumPy would.

The paper's settings: brightness, contrast and saturation within 0.4, lighting of 0.1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from resnext_jax.data.augment import NUM_RANDOM, DeviceTransform, vary_lighting

COLOUR, LIGHTING = 0.4, 0.1

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def timings(
    batch_size: int, image_size: int, *, rounds: int, limit: float
) -> dict[str, measure.Timing]:
    """Time a batch on the default "device", compiled, and on the "host", in NumPy."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    random = rng.random((batch_size, NUM_RANDOM), np.float32)
    variants = {"device": _on_device(images, random), "host": _on_host(images, random)}
    return measure.interleave(variants, rounds=rounds, limit=limit)


def _on_device(images: np.ndarray, random: np.ndarray) -> Callable[[], Any]:
    transform = DeviceTransform(_MEAN, _STD, colour=(COLOUR,) * 3, lighting=LIGHTING)
    batch = jax.device_put({"image": images, "random": random})
    compiled = jax.jit(transform.train).lower(batch).compile()
    return lambda: compiled(batch)


def _on_host(images: np.ndarray, random: np.ndarray) -> Callable[[], Any]:
    mean, std = np.array(_MEAN, np.float32), np.array(_STD, np.float32)
    components = lighting_components()

    def run() -> list[np.ndarray]:
        return [
            (vary_on_host(image, row[:3], row[3:6], components) - mean) / std
            for image, row in zip(images, random, strict=True)
        ]

    return run


def vary_on_host(
    image: np.ndarray, amounts: np.ndarray, lighting: np.ndarray, components: np.ndarray
) -> np.ndarray:
    """Do to one image what `augment.vary_colour` and `vary_lighting` do to a batch.

    Args:
      image: uint8 `[H, W, 3]`, RGB.
      amounts: float32 `[3]`, in [0, 1): brightness, contrast, saturation.
      lighting: float32 `[3]`, standard normal, of each component.
      components: see `lighting_components`.

    Returns:
      float32 `[H, W, 3]`, on the scale 0..255, not clipped.
    """
    brightness, contrast, saturation = 1 + np.float32(COLOUR) * (2 * amounts - 1)
    varied = image.astype(np.float32)
    # By einsum: a matrix product may take more cores than one.
    grey = np.einsum("hwc,c->hw", varied, _GREY)
    mean = grey.mean()
    grey *= brightness * contrast * (1 - saturation)
    varied *= brightness * contrast * saturation
    varied += grey[..., None]
    varied += brightness * (1 - contrast) * mean + np.float32(LIGHTING) * lighting @ components
    return varied


def lighting_components() -> np.ndarray:
    """Colours `[3, 3]` that `augment.vary_lighting` adds for one unit of each component."""
    black = jnp.zeros((3, 1, 1, 3), jnp.float32)
    return np.asarray(vary_lighting(black, jnp.eye(3)))[:, 0, 0]
