"""Loss and error of each image."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32, Integer

# The rank where the true class is among no number of best-scored ones.
LAST = 2**31 - 1


def cross_entropy(
    logits: Float[Array, "n k"], labels: Integer[Array, " n"], smoothing: float = 0.0
) -> Float[Array, " n"]:
    """Cross-entropy of each image, in nats.

    Args:
      logits: `[N, K]`, float.
      labels: `[N]`, integer.
      smoothing: share of the target spread evenly over all classes.

    Returns:
      `[N]`, dtype of `logits`.
    """
    if smoothing:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), smoothing)
        return optax.softmax_cross_entropy(logits, targets.astype(logits.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def binary_cross_entropy(
    logits: Float[Array, "n k"],
    targets: Float[Array, "n k"],
    smoothing: float = 0.0,
    threshold: float | None = None,
) -> Float[Array, " n"]:
    """Binary cross-entropy of each image, in nats, the mean over classes.

    The loss of "ResNet strikes back" (Wightman et al. 2021), as timm's `BinaryCrossEntropy`.

    Args:
      logits: `[N, K]`, float.
      targets: `[N, K]`, shares of the classes; several are positive where images are mixed.
      smoothing: share of the target spread evenly over all classes, before the threshold.
      threshold: targets above it become 1, all others 0; None: they stay as they are.

    Returns:
      `[N]`, dtype of `logits`.
    """
    targets = optax.smooth_labels(targets, smoothing)
    if threshold is not None:
        targets = targets > threshold
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    return losses.mean(axis=1)


def topk_wrong(
    logits: Float[Array, "n classes"], labels: Integer[Array, " n"], k: int
) -> Bool[Array, " n"]:
    """Whether the true class is missing from the k best-scored ones.

    Equal scores are ranked by class number. An image with a logit that is not
    a number is wrong.

    Args:
      logits: `[N, K]`.
      labels: `[N]`, integer.
      k: how many guesses; with K <= k every class is among them.

    Returns:
      `[N]`, bool.
    """
    return (_scored_better(logits, labels) >= k) | jnp.isnan(logits).any(axis=1)


def _scored_better(logits: jax.Array, labels: jax.Array) -> jax.Array:
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    return jnp.sum((logits > own) | ((logits == own) & earlier), axis=1)


def label_rank(logits: Float[Array, "n k"], labels: Integer[Array, " n"]) -> Int32[Array, " n"]:
    """How many classes are scored better than the true one, of equals those before it.

    Args:
      logits: `[N, K]`.
      labels: `[N]`, integer.

    Returns:
      `[N]`, int32; the largest int32 for an image with a logit that is not a number.
    """
    rank = _scored_better(logits, labels).astype(jnp.int32)
    return jnp.where(jnp.isnan(logits).any(axis=1), LAST, rank)


def rank_among_first(
    logits: Float[Array, "n k"], labels: Integer[Array, " n"], classes: int
) -> Int32[Array, " n"]:
    """How many of the first classes are scored better than the true one.

    A soft-max over the first classes alone ranks them as their logits do (paper
    Sec. 5.2: 1000-way evaluation of networks with 5000 classes).

    Args:
      logits: `[N, K]`.
      labels: `[N]`, integer.
      classes: how many classes to look at, at most K.

    Returns:
      `[N]`, int32, as of `label_rank`; the largest int32 for an image of another class.
    """
    inside = labels < classes
    rank = label_rank(logits[:, :classes], jnp.where(inside, labels, 0))
    return jnp.where(inside, rank, LAST)


def ensemble(logits: Sequence[Float[Array, "n k"]]) -> Float[Array, "n k"]:
    """Average the probabilities of several networks (paper Sec. 5.1's ensemble).

    Probabilities and not logits: those of one network may be many times larger than another's,
    and a constant added to all of them says nothing.

    Args:
      logits: `[N, K]` of each network; at least one.

    Returns:
      `[N, K]`, logarithms of the mean probabilities: logits of the ensemble, whose soft-max they
      are. Of one network its logits themselves.
    """
    if len(logits) == 1:
        return logits[0]
    logarithms = jnp.stack([jax.nn.log_softmax(one) for one in logits])
    return jax.nn.logsumexp(logarithms, axis=0) - math.log(len(logits))
