"""Losses of the RPN and of Fast R-CNN, each of one image, in float32 at least."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnext_jax.detection.targets import BACKGROUND, NEGATIVE, POSITIVE, RegionTargets, RpnTargets
from resnext_jax.evaluation.metrics import cross_entropy


def smooth_l1(x: Float[Array, "*shape"], sigma: float) -> Float[Array, "*shape"]:
    """Absolute value, but a parabola near 0 (Girshick 2015, Eqn. 3; sigma of py-faster-rcnn).

    Args:
      x: differences, of any shape.
      sigma: the parabola reaches to 1 / sigma^2.

    Returns:
      Of x's shape: `0.5 * (sigma * x)^2` where `|x| < 1 / sigma^2`, else `|x| - 0.5 / sigma^2`.
    """
    size = jnp.abs(x)
    bounded = jnp.minimum(size, 1 / sigma**2)
    return sigma**2 * bounded * (size - bounded / 2)


def rpn_loss(
    logits: Float[Array, "n 2"],
    deltas: Float[Array, "n 4"],
    targets: RpnTargets,
    *,
    sigma: float = 3.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compare what the RPN says of an image with what it should (Ren et al. 2015, Eqn. 1).

    Both losses are divided by the number of sampled anchors, positive and negative, and weigh
    the same. An image without any has losses of 0.

    Args:
      logits: `[N, 2]`, of no object and of an object.
      deltas: `[N, 4]`, not normalised.
      targets: of `targets.rpn_targets`.
      sigma: of the boxes' smooth L1.

    Returns:
      The mean cross-entropy of the sampled anchors, and the smooth L1 of the positive ones'
      deltas; scalars, float32 or wider.
    """
    logits, deltas = _widen(logits), _widen(deltas)
    positive = targets.labels == POSITIVE
    sampled = positive | (targets.labels == NEGATIVE)
    count = jnp.maximum(sampled.sum(), 1)
    entropies = cross_entropy(logits, jnp.where(sampled, targets.labels, NEGATIVE))
    distances = smooth_l1(deltas - targets.deltas, sigma).sum(axis=1)
    return _sum(entropies, sampled) / count, _sum(distances, positive) / count


def fast_rcnn_loss(
    logits: Float[Array, "r k"],
    deltas: Float[Array, "r k 4"] | Float[Array, "r four_k"],
    targets: RegionTargets,
    *,
    sigma: float = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compare what Fast R-CNN says of an image's regions with what it should (Girshick 2015).

    Both losses are divided by the number of regions, with those of the background, without
    places that are not filled, and weigh the same. An image without any has losses of 0.

    Args:
      logits: `[R, K]`, of the background and of each class.
      deltas: `[R, K, 4]` or `[R, K * 4]`, normalised; those of the true class count.
      targets: of `targets.region_targets`.
      sigma: of the boxes' smooth L1.

    Returns:
      The mean cross-entropy of the regions, and the smooth L1 of the foregrounds' deltas;
      scalars, float32 or wider.
    """
    logits, deltas = _widen(logits), _widen(deltas)
    labels, filled = targets.labels, targets.weights > 0
    count = jnp.maximum(filled.sum(), 1)
    deltas = deltas.reshape(*logits.shape, 4)
    own = jnp.take_along_axis(deltas, labels[:, None, None], axis=1)[:, 0]
    distances = smooth_l1(own - targets.deltas, sigma).sum(axis=1)
    foreground = filled & (labels != BACKGROUND)
    return (
        _sum(cross_entropy(logits, labels), filled) / count,
        _sum(distances, foreground) / count,
    )


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sum(values: jax.Array, which: jax.Array) -> jax.Array:
    """Add up some values; what the others are does not matter."""
    return jnp.sum(values, where=which)
