"""Sums over the rows of large arrays, as XLA runs them fast on the CPU."""

from typing import Any

import jax
import jax.numpy as jnp

from resnext_jax.ops.target import target_platform

# In how many parts rows are added up, and how few are left to a plain sum. Maps of
# 224-pixel images have rows in sevens.
_PARTS = (7, 8, 5, 3, 2)
_ROWS_LEFT_TO_SUM = 256


def sum_rows(x: jax.Array) -> jax.Array:
    """Sum `[G, M, C]` over M, to `[G, 1, C]`.

    On the CPU distant rows are added first, in ordinary loops, which take in what x is
    computed from. XLA's sums would have it written to memory first, or leave it to a library
    that is some thirty times slower than memory at a sum of products (docs/performance.md).
    """
    if target_platform() == "cpu":
        while x.shape[1] > _ROWS_LEFT_TO_SUM:
            parts = next((n for n in _PARTS if x.shape[1] % n == 0), None)
            if parts is None:
                break
            first, *others = jnp.split(x, parts, axis=1)
            x = sum(others, start=first)
    return x.sum(axis=1, keepdims=True)


def norm(tree: Any) -> jax.Array:
    """L2 norm of all arrays of a tree together, float32 at least."""
    total = jnp.zeros((), jnp.float32)
    for x in jax.tree.leaves(tree):
        if x.size == 0:
            continue
        wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        rows = wide.reshape(1, -1, x.shape[-1] if x.ndim else 1)
        total = total + sum_rows(jnp.square(rows)).sum()
    return jnp.sqrt(total)
