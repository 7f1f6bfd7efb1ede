"""Features of regions: Fast R-CNN's quantised max-pooling, and RoIAlign.

Both take one feature map and the boxes of many regions, and cut the same number of bins out of
each.

Max-pooling has bins of any size. The maximum over a bin is that over four windows, which overlap
and whose sides are powers of two; the maxima over all such windows of the map are few, and the
regions share them. So a bin costs four rows of a table, however large it is. The gradient goes
to the elements that were the largest: which one that was in a bin is a byte.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Of RoIAlign: a region's sums over rows or columns are several times larger than its bins.
_REGIONS_AT_ONCE = 32


def roi_pool(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "r 4"],
    *,
    output_size: int = 14,
    scale: float = 1 / 16,
) -> Float[Array, "r {output_size} {output_size} c"]:
    """Take the maximum of each bin of each region (Girshick 2015, Sec. 2.1).

    Exactly Caffe's layer: inclusive corners times `scale`, rounded half away from zero, span
    at least one position of the map; bins are as wide as the region divided by their number, from
    the floor of their start to the ceiling of their end, so that neighbours may overlap; bins
    outside the map are 0. But a corner outside the map is moved to its border first, which
    changes nothing for boxes inside the image.

    The gradient goes to the largest element of each bin, of equal ones to the first, by rows, as
    in Caffe (reverse mode only); it is summed in float32 at least. Boxes have none.

    Args:
      features: `[H, W, C]`, floating point.
      boxes: `[R, 4]`, continuous, in pixels of the image.
      output_size: P, bins a side.
      scale: of pixels to positions of the map.

    Returns:
      `[R, P, P, C]`, dtype of `features`.

    Raises:
      ValueError: shapes do not fit, or `output_size` is below 1.
    """
    _check(features, boxes, output_size)
    return _roi_pool(features, boxes, output_size, scale)


def roi_align(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "r 4"],
    *,
    output_size: int = 14,
    scale: float = 1 / 16,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "r {output_size} {output_size} c"]:
    """Average bilinear samples in each bin of each region (He et al. 2017, Sec. 3).

    Nothing is rounded. A sample's weights are a product of one that depends on its row and one
    that depends on its column, and so are the means over a bin: two matrix products. They are
    computed in float32 at least. Samples farther than one position outside the map are 0.
    Boxes have no gradient.

    Args:
      features: `[H, W, C]`, floating point.
      boxes: `[R, 4]`, continuous, in pixels of the image.
      output_size: P, bins a side.
      scale: of pixels to positions of the map.
      sampling_ratio: samples a bin, each way.
      aligned: whether the centre of the map's first element is at 0.5, as that of a pixel is
        (ONNX's `half_pixel`); otherwise it is at 0, and regions have sides of at least 1.

    Returns:
      `[R, P, P, C]`, dtype of `features`.

    Raises:
      ValueError: shapes do not fit, or `output_size` or `sampling_ratio` is below 1.
    """
    _check(features, boxes, output_size)
    if sampling_ratio < 1:
        raise ValueError(f"sampling_ratio must be at least 1; got {sampling_ratio}.")
    dtype = jnp.promote_types(jnp.float32, features.dtype)
    corners = lax.stop_gradient(boxes).astype(dtype) * scale
    corners = corners - 0.5 if aligned else corners
    wide = features.astype(dtype)

    def weights(axis: int) -> jax.Array:
        low, high = corners[:, 1 - axis], corners[:, 3 - axis]
        side = high - low if aligned else jnp.maximum(high - low, 1)
        return _sample_weights(low, side, features.shape[axis], output_size, sampling_ratio)

    def pool(weights: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, columns = weights
        pooled = jnp.einsum(
            "ph,hwc,qw->pqc",
            rows,
            wide,
            columns,
            precision=lax.Precision.HIGHEST,
            optimize="optimal",
        )
        return pooled.astype(features.dtype)

    return lax.map(pool, (weights(0), weights(1)), batch_size=_REGIONS_AT_ONCE)


def _check(features: jax.Array, boxes: jax.Array, output_size: int) -> None:
    if features.ndim != 3 or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            "features and boxes must be [H, W, C] and [R, 4]; got "
            f"{features.shape} and {boxes.shape}."
        )
    if output_size < 1:
        raise ValueError(f"output_size must be at least 1; got {output_size}.")


def _sample_weights(
    low: jax.Array, side: jax.Array, length: int, bins: int, samples: int
) -> jax.Array:
    """Weights of the elements along one axis of the map in each bin, `[R, bins, length]`."""
    steps = (jnp.arange(bins * samples) + 0.5) / samples
    places = low[:, None] + steps.astype(side.dtype) * (side[:, None] / bins)
    near = (places >= -1) & (places <= length)
    distances = jnp.abs(jnp.clip(places, 0, length - 1)[..., None] - jnp.arange(length))
    weights = jnp.where(near[..., None], jnp.maximum(1 - distances, 0), 0)
    return weights.reshape(-1, bins, samples, length).mean(axis=2).astype(side.dtype)


class _Axis(NamedTuple):
    """The bins of all regions along one axis of the map.

    Attributes:
      level: int32 `[R, P]`: windows of `2**level` elements, two of which cover the bin.
      first: int32 `[R, P]`, where the first of them starts; so does the bin.
      last: int32 `[R, P]`, where the second starts.
      empty: bool `[R, P]`.
    """

    level: jax.Array
    first: jax.Array
    last: jax.Array
    empty: jax.Array


@functools.cache
def _bin_table(length: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the bins, from the region's start, for regions of 0 to `length + 1` elements.

    In NumPy and in float32, because a compiler may multiply by the inverse instead of
    dividing, which gives other bins than Caffe's.

    Returns:
      Starts and ends (exclusive), int32 `[length + 2, bins]` each.
    """
    width = np.arange(length + 2, dtype=np.float32)[:, None] / np.float32(bins)
    place = np.arange(bins, dtype=np.float32)
    starts, ends = np.floor(place * width), np.ceil((place + 1) * width)
    return starts.astype(np.int32), ends.astype(np.int32)


def _level(elements: int) -> int:
    """Return the smallest k for which two windows of `2**k` cover `elements` elements."""
    return max(elements - 1, 1).bit_length() - 1


def _levels(length: int, bins: int) -> int:
    """Count the levels that the bins along a side of the map need."""
    starts, ends = _bin_table(length, bins)
    return _level(min(int((ends - starts).max()), length)) + 1


def _find_bins(boxes: jax.Array, axis: int, length: int, bins: int, scale: float) -> _Axis:
    start = _round(boxes[:, 1 - axis] * scale, length)
    end = _round((boxes[:, 3 - axis] - 1) * scale, length)  # of the inclusive corner
    size = jnp.maximum(end - start + 1, 1)
    starts, ends = (jnp.asarray(edges)[size] for edges in _bin_table(length, bins))
    first = jnp.minimum(start[:, None] + starts, length)
    beyond = jnp.minimum(start[:, None] + ends, length)
    levels = jnp.asarray([_level(elements) for elements in range(length + 1)], jnp.int32)
    level = levels[beyond - first]
    return _Axis(
        level=level,
        first=jnp.minimum(first, length - 1),
        last=jnp.maximum(beyond - (1 << level), 0),
        empty=beyond <= first,
    )


def _round(edges: jax.Array, length: int) -> jax.Array:
    """Round as C's round() does, to positions of the map or its end; NaN gives 0."""
    rounded = lax.round(edges, lax.RoundingMethod.AWAY_FROM_ZERO)
    return jnp.where(rounded > 0, jnp.minimum(rounded, length), 0).astype(jnp.int32)


class _Windows(NamedTuple):
    """Where in the table of windows the four of each bin are.

    Attributes:
      rows: four of int32 `[R, P, P]`: upper left, upper right, lower left, lower right.
      shifts: four of int32 `[R, P, P]`: what to add to a window's code for the bin's.
      start: int32 `[R, P, P]`, the bin's first element in the map.
      empty: bool `[R, P, P]`.
    """

    rows: tuple[jax.Array, ...]
    shifts: tuple[jax.Array, ...]
    start: jax.Array
    empty: jax.Array


def _find_windows(
    shape: Sequence[int], boxes: jax.Array, output_size: int, scale: float
) -> _Windows:
    height, width, _ = shape
    y, x = (
        _find_bins(boxes, axis, length, output_size, scale)
        for axis, length in ((0, height), (1, width))
    )
    y = _Axis(*(value[:, :, None] for value in y))
    x = _Axis(*(value[:, None, :] for value in x))
    stride = _code_stride(shape, output_size)
    table = (y.level * _levels(width, output_size) + x.level) * height
    corners = [(row, column) for row in (y.first, y.last) for column in (x.first, x.last)]
    return _Windows(
        rows=tuple((table + row) * width + column for row, column in corners),
        shifts=tuple((row - y.first) * stride + (column - x.first) for row, column in corners),
        start=y.first * width + x.first,
        empty=y.empty | x.empty,
    )


def _code_stride(shape: Sequence[int], output_size: int) -> int:
    """Elements from row to row of a bin, by which an element's place in it becomes one number."""
    return 2 ** _levels(shape[1], output_size)


def _code_type(shape: Sequence[int], output_size: int) -> np.dtype:
    rows = 2 ** _levels(shape[0], output_size)
    return np.min_scalar_type(rows * _code_stride(shape, output_size) - 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _roi_pool(features: jax.Array, boxes: jax.Array, output_size: int, scale: float) -> jax.Array:
    return _forward(features, boxes, output_size, scale)[0]


def _forward(
    features: jax.Array, boxes: jax.Array, output_size: int, scale: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, tuple[int, ...]]]:
    windows = _find_windows(features.shape, boxes, output_size, scale)
    table, codes = _window_maxima(features, output_size)
    largest = functools.reduce(jnp.maximum, _look_up(table, windows.rows))
    pooled = jnp.where(windows.empty[..., None], 0, largest)
    # The maxima are looked up once more: shared, each step of this search would be written to
    # memory, which takes longer.
    table, rows = lax.optimization_barrier((table, windows.rows))
    found = zip(_look_up(table, rows), _look_up(codes, rows), windows.shifts, strict=True)
    largest, chosen, _ = next(found)
    for values, places, shift in found:
        places = places + shift[..., None].astype(places.dtype)
        better = (values > largest) | ((values == largest) & (places < chosen))
        largest, chosen = jnp.maximum(largest, values), jnp.where(better, places, chosen)
    return pooled, (chosen, boxes, features.shape)


def _look_up(table: jax.Array, rows: Sequence[jax.Array]) -> Iterator[jax.Array]:
    return (table.at[row].get(mode="promise_in_bounds") for row in rows)


def _backward(
    output_size: int,
    scale: float,
    residuals: tuple[jax.Array, jax.Array, tuple[int, ...]],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    chosen, boxes, shape = residuals
    height, width, channels = shape
    windows = _find_windows(shape, boxes, output_size, scale)
    rows, columns = jnp.divmod(chosen, _code_stride(shape, output_size))
    places = windows.start[..., None] + rows.astype(jnp.int32) * width + columns
    # One place after the map takes the gradients of empty windows.
    places = jnp.where(windows.empty[..., None], height * width, places)
    elements = places * channels + jnp.arange(channels, dtype=jnp.int32)
    given = dy.astype(jnp.promote_types(jnp.float32, dy.dtype))
    total = jnp.zeros((height * width + 1) * channels, given.dtype)
    total = total.at[elements.ravel()].add(given.ravel(), mode="promise_in_bounds")
    total = total[: height * width * channels].reshape(shape)
    return total.astype(dy.dtype), jnp.zeros_like(boxes)


_roi_pool.defvjp(_forward, _backward)


def _window_maxima(features: jax.Array, output_size: int) -> tuple[jax.Array, jax.Array]:
    """Take the maxima over all windows of the map.

    Args:
      features: `[H, W, C]`.
      output_size: P, which says how large the windows need to be.

    Returns:
      `[L * H * W, C]`, for each of L pairs of a vertical and a horizontal level and for each
      place in the map; and in the same places where in its window each maximum is (the first, by
      rows), as a code. Windows that pass the map's border are never looked at.
    """
    stride = _code_stride(features.shape, output_size)
    codes = jnp.zeros(features.shape, _code_type(features.shape, output_size))
    row = [(features, codes)]
    for level in range(_levels(features.shape[1], output_size) - 1):
        row.append(_extend(*row[-1], axis=1, distance=2**level, step=2**level))
    table = list(row)
    for level in range(_levels(features.shape[0], output_size) - 1):
        step = 2**level * stride
        row = [_extend(*window, axis=0, distance=2**level, step=step) for window in row]
        table += row
    maxima, places = (jnp.stack(maps) for maps in zip(*table, strict=True))
    return maxima.reshape(-1, features.shape[2]), places.reshape(-1, features.shape[2])


def _extend(
    maxima: jax.Array, codes: jax.Array, *, axis: int, distance: int, step: int
) -> tuple[jax.Array, jax.Array]:
    """Join each window with the one at a distance along an axis, where codes are higher by step."""
    length = maxima.shape[axis]
    there = np.minimum(np.arange(length) + distance, length - 1)
    others = jnp.take(maxima, there, axis=axis, mode="clip")
    other_codes = jnp.take(codes, there, axis=axis, mode="clip") + jnp.asarray(step, codes.dtype)
    return jnp.maximum(maxima, others), jnp.where(others > maxima, other_codes, codes)
