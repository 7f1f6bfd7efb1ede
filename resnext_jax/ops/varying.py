"""Device-varying types of arrays, as needed by custom gradients."""

import jax
import jax.numpy as jnp
from jax import lax


def varying_like(x: jax.Array, array: jax.Array) -> jax.Array:
    """Return `array` with the device-varying type of `x`.

    Under `shard_map`, adding a zero computed from `x` makes a replicated parameter vary over the
    same devices as x; the gradient of that is the sum over them. Compilation removes the addition.
    Outside of `shard_map` there are no such types.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return array
    zero = jnp.where(False, lax.stop_gradient(x)[(0,) * x.ndim], 0)
    return array + zero.astype(array.dtype)
