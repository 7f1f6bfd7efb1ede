"""Drawing a few of many candidates, each as likely, without replacement, in static shapes.

Every candidate gets a random score, and the best ones are taken. A candidate's score depends
on the key and on its index alone: padding behind it does not change what is drawn.
"""

import jax
import jax.numpy as jnp
from jax import lax


def scores(key: jax.Array, mask: jax.Array) -> jax.Array:
    """Draw a random score for each candidate.

    Args:
      key: a `jax.random` key.
      mask: bool `[N]`, which are candidates.

    Returns:
      float32 `[N]`, in 0..1, and -1 where there is no candidate.
    """
    # float32 also in double precision, which would draw others. Its 2^23 values are enough: that
    # the last one taken ties with the next is a matter of N in 8 million.
    return jnp.where(mask, jax.random.uniform(key, mask.shape, jnp.float32), -1)


def best(scores: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Take the candidates with the highest scores.

    Args:
      scores: `[N]`, of `scores`; negative ones are never taken.
      size: how many, at most.

    Returns:
      int32 `[size]`, indices, each of them once, by falling score; and bool `[size]`, which of
      them are candidates: the first ones, and all if there are enough. The others' index is 0.
    """
    values, indices = lax.top_k(scores, min(size, scores.shape[0]))
    missing = (0, size - values.shape[0])
    valid = jnp.pad(values >= 0, missing)
    return jnp.where(valid, jnp.pad(indices, missing), 0).astype(jnp.int32), valid


def choose(key: jax.Array, mask: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Draw at most `size` candidates into as many places.

    Args:
      key: a `jax.random` key.
      mask: bool `[N]`, which are candidates.
      size: how many, at most.

    Returns:
      Indices and which of them count, see `best`; in random order.
    """
    return best(scores(key, mask), size)


def sample(
    key: jax.Array, mask: jax.Array, quota: int | jax.Array, most: int | None = None
) -> jax.Array:
    """Keep a random subset of at most `quota` candidates.

    Args:
      key: a `jax.random` key.
      mask: bool `[N]`, which are candidates.
      quota: how many, at most; may be traced.
      most: a static bound on the quota, which saves ranking all N; None is the quota itself, or
        N where that is traced.

    Returns:
      bool `[N]`, with `min(quota, mask.sum())` of the entries of `mask` (and no more than
      `most`).
    """
    if most is None:
        most = quota if isinstance(quota, int) else mask.shape[0]
    indices, valid = choose(key, mask, most)
    kept = valid & (jnp.arange(most) < quota)
    # Places that are not kept write nowhere.
    where = jnp.where(kept, indices, mask.shape[0])
    return jnp.zeros_like(mask).at[where].set(True, mode="drop")
