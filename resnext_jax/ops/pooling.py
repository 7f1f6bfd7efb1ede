"""Max-pooling, with a custom gradient on CPUs and GPUs.

XLA's gradient is `select-and-scatter`, which is slow on the CPU and not supported in the
deterministic mode on GPUs. Here the forward pass stores the index of the largest element of each
window, and the backward pass sums, for each input element, the gradients of the windows that
selected it, without a scatter. TPUs have hardware for windows; by XLA's estimate their own gradient
is four times as fast as this one (docs/performance.md).
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from resnext_jax.ops.target import target_platform


@jax.named_scope("max_pool")
def max_pool(
    x: Float[Array, "n h w c"], *, window: int = 3, strides: int = 2, padding: int = 1
) -> Float[Array, "n h_out w_out c"]:
    """Take the maximum of square windows (the pooling after the stem, paper Table 1).

    Among equal elements, the first in row-major order receives the gradient, as in Torch (reverse
    mode only).

    Args:
      x: `[N, H, W, C]`, floating point.
      window: height and width of a window.
      strides: vertical and horizontal stride.
      padding: elements added before and after, in both directions, which are never the maximum.

    Returns:
      `[N, H', W', C]` with `H' = (H + 2 * padding - window) // strides + 1`.

    Raises:
      ValueError: the padding is as wide as the window, or the window does not fit.
    """
    if padding >= window:
        raise ValueError(f"a padding of {padding} must be less than the window of {window}.")
    if min(x.shape[1:3]) + 2 * padding < window:
        raise ValueError(
            f"a window of {window} does not fit into x of shape {x.shape} with padding {padding}."
        )
    if target_platform() == "tpu":
        border = (padding, padding)
        return lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            window_dimensions=(1, window, window, 1),
            window_strides=(1, strides, strides, 1),
            padding=((0, 0), border, border, (0, 0)),
        )
    return _max_pool(x, window, strides, padding)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, window: int, strides: int, padding: int) -> jax.Array:
    return _forward(x, window, strides, padding)[0]


def _forward(
    x: jax.Array, window: int, strides: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, tuple[int, ...]]]:
    taps = _taps(x, window, strides, padding)
    _, largest = next(taps)
    chosen = jnp.zeros(largest.shape, np.min_scalar_type(window * window))
    for tap, values in taps:
        chosen = jnp.where(values > largest, jnp.asarray(tap, chosen.dtype), chosen)
        largest = jnp.maximum(largest, values)
    return largest, (chosen, x.shape)


def _backward(
    window: int,
    strides: int,
    padding: int,
    residuals: tuple[jax.Array, tuple[int, ...]],
    dy: jax.Array,
) -> tuple[jax.Array]:
    chosen, shape = residuals
    images, height, width, channels = shape
    # Position `strides * i + a` of the padded input is the element a, a + strides, ... of the
    # windows i, i - 1, ...: each of these distances contributes a shifted copy of dy, zero where
    # the window selected another element. The offsets a have their own axis, so that everything is
    # broadcasting, which XLA compiles to one loop.
    sizes = [-(-(size + 2 * padding) // strides) for size in (height, width)]
    distances = range(-(-window // strides))

    def shifted(x: jax.Array, rows: int, columns: int) -> jax.Array:
        """`x[n, i - rows, j - columns, c]`, `[N, i, 1, j, 1, C]`, zero outside of x."""
        pads = [
            (distance, size - distance - length)
            for distance, size, length in zip((rows, columns), sizes, x.shape[1:3], strict=True)
        ]
        return jnp.pad(x, ((0, 0), *pads, (0, 0)))[:, :, None, :, None]

    total = jnp.zeros((images, sizes[0], strides, sizes[1], strides, channels), dy.dtype)
    none = window * window  # the index of no element
    for rows in distances:
        for columns in distances:
            places = np.full((strides, strides), none, chosen.dtype)
            for a in range(min(strides, window - strides * rows)):
                for b in range(min(strides, window - strides * columns)):
                    places[a, b] = (a + strides * rows) * window + b + strides * columns
            # Outside of the windows, the first element counts as selected, with dy = 0.
            given, taken = (shifted(x, rows, columns) for x in (dy, chosen))
            total = total + jnp.where(taken == places[:, None, :, None], given, 0)
    padded = total.reshape(images, sizes[0] * strides, sizes[1] * strides, channels)
    return (padded[:, padding : padding + height, padding : padding + width],)


_max_pool.defvjp(_forward, _backward)


def _taps(x: jax.Array, window: int, strides: int, padding: int) -> Iterator[tuple[int, jax.Array]]:
    """Yield each element of the windows, `[N, H', W', C]`, with its index in row-major order."""
    border = (padding, padding)
    padded = jnp.pad(x, ((0, 0), border, border, (0, 0)), constant_values=-jnp.inf)
    last_row, last_column = ((size - window) // strides * strides + 1 for size in padded.shape[1:3])
    for row in range(window):
        for column in range(window):
            yield (
                row * window + column,
                padded[:, row : row + last_row : strides, column : column + last_column : strides],
            )
