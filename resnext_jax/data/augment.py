"""The device's half of augmentation: exact arithmetic in float32, inside the compiled step."""

import dataclasses

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class DeviceTransform:
    """Normalise, and in training shift, a batch of shipped images.

    Attributes:
      mean, std: of each channel, in pixel values 0..255.
      max_shift: training images are zero-padded by this many pixels on every
        side, after normalising, and a random crop of the old size is taken
        (paper Sec. 5.3: 4 on CIFAR). 0 turns it off.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_shift: int

    def train(self, batch: Batch) -> jax.Array:
        """Map uint8 `image` `[N, H, W, 3]` and `random` `[N, 2]` to float32 images."""
        images = self.test(batch)
        if self.max_shift:
            images = shift(images, batch["random"], self.max_shift)
        return images

    def test(self, batch: Batch) -> jax.Array:
        """Map uint8 `image` `[N, H, W, 3]` to normalised float32 images."""
        mean = jnp.asarray(self.mean, jnp.float32)
        std = jnp.asarray(self.std, jnp.float32)
        return (batch["image"].astype(jnp.float32) - mean) / std


def shift(images: jax.Array, random: jax.Array, max_shift: int) -> jax.Array:
    """Move each image by up to `max_shift` pixels each way, zeros coming in at the border.

    Args:
      images: `[N, H, W, C]`.
      random: `[N, 2]`, uniform in [0, 1): vertical and horizontal.
      max_shift: largest shift, in pixels.
    """
    places = 2 * max_shift + 1
    offsets = jnp.minimum((random * places).astype(jnp.int32), places - 1)
    border = (max_shift, max_shift)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*offset, jnp.zeros_like(offset[0])), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)
