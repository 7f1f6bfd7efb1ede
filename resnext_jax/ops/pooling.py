"""Max-pooling, on CPUs and GPUs with a gradient of its own.

XLA derives `select-and-scatter` for it, which is slow on the CPU and which its
deterministic mode on GPUs refuses to compile. Here the forward pass notes which
element of each window was the largest, and the backward pass adds up, for each
input element, the windows that chose it: no scatter anywhere. TPUs have hardware for
windows, and by XLA's estimate they are four times as fast as that (docs/performance.md).
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
    """Take the maximum of square windows (the pool behind the stem, paper Table 1).

    Of equal elements the first one, by rows, gets the gradient, as in Torch.
    (Reverse mode only.)

    Args:
      x: `[N, H, W, C]`, floating point.
      window: height and width of a window.
      strides: step from window to window, both ways.
      padding: elements before and after, both ways, that never are the maximum.

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
    # Place `strides * i + a` of the padded input is seen by the windows i, i - 1, ... as
    # their place a, a + strides, ...: each such distance gives a copy of dy, shifted, and
    # zero where the window chose another. The places a are an axis of their own, so that
    # all is broadcasting, which XLA runs as one loop.
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
    none = window * window  # no window has such a place
    for rows in distances:
        for columns in distances:
            places = np.full((strides, strides), none, chosen.dtype)
            for a in range(min(strides, window - strides * rows)):
                for b in range(min(strides, window - strides * columns)):
                    places[a, b] = (a + strides * rows) * window + b + strides * columns
            # Where there is no window, the first of its places counts as chosen, and gets 0.
            given, taken = (shifted(x, rows, columns) for x in (dy, chosen))
            total = total + jnp.where(taken == places[:, None, :, None], given, 0)
    padded = total.reshape(images, sizes[0] * strides, sizes[1] * strides, channels)
    return (padded[:, padding : padding + height, padding : padding + width],)


_max_pool.defvjp(_forward, _backward)


def _taps(x: jax.Array, window: int, strides: int, padding: int) -> Iterator[tuple[int, jax.Array]]:
    """Yield the elements at each place of the windows, `[N, H', W', C]`, by rows."""
    border = (padding, padding)
    padded = jnp.pad(x, ((0, 0), border, border, (0, 0)), constant_values=-jnp.inf)
    last_row, last_column = ((size - window) // strides * strides + 1 for size in padded.shape[1:3])
    for row in range(window):
        for column in range(window):
            yield (
                row * window + column,
                padded[:, row : row + last_row : strides, column : column + last_column : strides],
            )
