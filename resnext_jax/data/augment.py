"""The device's half of augmentation: exact arithmetic in float32, inside the compiled step.

Random numbers come with the images, drawn on the host from a generator of each image's own, so
that the result does not depend on devices or hosts.
"""

import dataclasses

import jax
import jax.numpy as jnp

from resnext_jax.data.erasing import ERASE, erase

Batch = dict[str, jax.Array]

# Where images that cannot be decoded are left out: which of a batch they are, bool `[N]`.
SKIPPED = "skipped"
# Where residual functions are dropped: uniform in [0, 1), of each image and block, `[N, blocks]`.
DEPTH = "depth"

# Columns of `random`: first uniform in [0, 1), then standard normal.
_SHIFT = slice(0, 2)  # vertical, horizontal
_COLOUR = slice(2, 5)  # brightness, contrast, saturation
_LIGHTING = slice(5, 8)  # one for each principal component
NUM_UNIFORM, NUM_NORMAL = 5, 3
NUM_RANDOM = NUM_UNIFORM + NUM_NORMAL

# Luma of ITU-R BT.601, as grey images are commonly made.
_GREY = (0.299, 0.587, 0.114)

# Principal components of ImageNet's pixel values on a scale of 0 to 1 (Krizhevsky et al. 2012):
# eigenvalues, and eigenvectors in columns.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@dataclasses.dataclass(frozen=True)
class DeviceTransform:
    """Normalise, and in training vary, a batch of shipped images.

    Attributes:
      mean, std: of each channel, in pixel values 0..255.
      max_shift: training images are zero-padded by this many pixels on every
        side, after normalising, and a random crop of the old size is taken
        (paper Sec. 5.3: 4 on CIFAR). 0 turns it off.
      colour: largest change of brightness, contrast and saturation, see `vary_colour`.
      lighting: standard deviation of `vary_lighting`; 0 turns it off.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_shift: int = 0
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lighting: float = 0.0

    @jax.named_scope("input")
    def train(self, batch: Batch) -> jax.Array:
        """Map uint8 `image` `[N, H, W, 3]` and `random` `[N, NUM_RANDOM]` to float32 images.

        Where nothing is varied, `random` may be missing. Where the batch has boxes, `erase` int32
        `[N, 4]`, they are erased in the end. Images are not mixed here, see `data.mixing`.
        """
        images = self._normalise(self.vary(batch))
        if self.max_shift:
            images = shift(images, batch["random"][:, _SHIFT], self.max_shift)
        if ERASE in batch:
            images = erase(images, batch[ERASE])
        return images

    @jax.named_scope("input")
    def test(self, batch: Batch) -> jax.Array:
        """Normalise uint8 `image` `[N, H, W, 3]` or `[N, crops, H, W, 3]`, giving float32."""
        return self._normalise(batch["image"].astype(jnp.float32))

    def vary(self, batch: Batch) -> jax.Array:
        """Vary colour and lighting; float32 pixel values on the scale 0..255, not clipped."""
        images = batch["image"].astype(jnp.float32)
        if any(self.colour):
            images = vary_colour(images, batch["random"][:, _COLOUR], self.colour)
        if self.lighting:
            images = vary_lighting(images, self.lighting * batch["random"][:, _LIGHTING])
        return images

    def _normalise(self, images: jax.Array) -> jax.Array:
        return (images - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)


def vary_colour(
    images: jax.Array, amounts: jax.Array, largest: tuple[float, float, float]
) -> jax.Array:
    """Vary brightness, contrast and saturation (paper Sec. 4).

    Each blends the image with another one, `a * image + (1 - a) * other`, where
    a is uniform in 1 +- `largest`: brightness with black, contrast with the mean
    of the grey image, saturation with the grey image.

    The recipe applies them in random order. As nothing is clipped, all orders
    are the same function: saturation leaves the grey image as it is, and
    brightness scales it as it scales the image. So there is no order to draw.

    Args:
      images: `[N, H, W, 3]`, RGB.
      amounts: `[N, 3]`, uniform in [0, 1): brightness, contrast, saturation.
      largest: of brightness, contrast and saturation.

    Returns:
      `[N, H, W, 3]`.
    """
    factors = 1 + jnp.asarray(largest, images.dtype) * (2 * amounts - 1)
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    mean = _grey(images.mean(axis=(1, 2), keepdims=True))
    images = saturation * images + (1 - saturation) * _grey(images)
    images = contrast * images + (1 - contrast) * mean
    return brightness * images


def _grey(images: jax.Array) -> jax.Array:
    """Return the grey image `[..., 1]` of `[..., 3]`."""
    # Channel by channel: as a sum over an axis it takes four times as long on the CPU, and as a
    # matrix product it may run in lower precision.
    red, green, blue = (weight * images[..., i : i + 1] for i, weight in enumerate(_GREY))
    return red + green + blue


def vary_lighting(images: jax.Array, amounts: jax.Array) -> jax.Array:
    """Add noise along the principal components of ImageNet's colours (Krizhevsky et al. 2012).

    Args:
      images: `[N, H, W, 3]`, RGB on the scale 0..255.
      amounts: `[N, 3]`, of each component.

    Returns:
      `[N, H, W, 3]`; each image has one colour added to all of its pixels.
    """
    # Written out, not as a matrix product: those may run in lower precision.
    components = jnp.asarray(_EIGENVECTORS, images.dtype) * jnp.asarray(_EIGENVALUES, images.dtype)
    added = 255.0 * (amounts[:, None, :] * components).sum(axis=2)
    return images + added[:, None, None, :]


def shift(images: jax.Array, random: jax.Array, max_shift: int) -> jax.Array:
    """Move each image by up to `max_shift` pixels each way, zeros coming in at the border.

    Args:
      images: `[N, H, W, C]`.
      random: `[N, 2]`, uniform in [0, 1): vertical and horizontal.
      max_shift: largest shift, in pixels.
    """
    offsets = _choice(random, 2 * max_shift + 1)
    border = (max_shift, max_shift)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*offset, jnp.zeros_like(offset[0])), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def _choice(random: jax.Array, count: int) -> jax.Array:
    """Turn uniform numbers in [0, 1) into whole numbers below `count`, equally likely."""
    return jnp.minimum((random * count).astype(jnp.int32), count - 1)
