"""Give arrays the device-varying types that hand-written gradients need."""

import jax
import jax.numpy as jnp
from jax import lax


def varying_like(x: jax.Array, array: jax.Array) -> jax.Array:
    """Give `array` the device-varying type of `x`, whatever it was before.

    Under `shard_map`, adding a zero taken from `x` makes a replicated parameter
    vary over the devices as x does; the gradient of that is the sum over them.
    Nothing remains of it after compilation. Elsewhere there are no such types.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return array
    zero = jnp.where(False, lax.stop_gradient(x)[(0,) * x.ndim], 0)
    return array + zero.astype(array.dtype)
