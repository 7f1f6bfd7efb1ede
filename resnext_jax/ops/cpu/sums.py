"""Sums over the rows of large arrays, written such that XLA compiles them to fast CPU code."""

from typing import Any

import jax
import jax.numpy as jnp

from resnext_jax.ops.target import target_platform

# Numbers of parts that rows are split into, and the number of rows left to a plain sum. The sizes
# of feature maps of 224-pixel images are multiples of 7.
_PARTS = (7, 8, 5, 3, 2)
_ROWS_LEFT_TO_SUM = 256


def sum_rows(x: jax.Array) -> jax.Array:
    """Sum `[G, M, C]` over M, to `[G, 1, C]`.

    On the CPU distant rows are added first, in elementwise loops that XLA fuses with whatever
    computes x. XLA's reductions would write x to memory first, or delegate the sum to a library
    that, for a sum of products, is about thirty times slower than memory bandwidth allows
    (docs/performance.md).
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
    """Global L2 norm of all arrays of a tree, at least float32."""
    total = jnp.zeros((), jnp.float32)
    for x in jax.tree.leaves(tree):
        if x.size == 0:
            continue
        wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        rows = wide.reshape(1, -1, x.shape[-1] if x.ndim else 1)
        total = total + sum_rows(jnp.square(rows)).sum()
    return jnp.sqrt(total)
