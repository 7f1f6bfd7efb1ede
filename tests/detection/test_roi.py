"""Features of regions against onnxruntime's operators, and their gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from resnext_jax.detection.roi import roi_align, roi_pool
from tests.detection.onnx_graph import run_operator
from tests.numerics import relative_difference

pool = jax.jit(roi_pool, static_argnames=("output_size", "scale"))
align = jax.jit(roi_align, static_argnames=("output_size", "scale", "sampling_ratio", "aligned"))


def draw_map(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((height, width, channels), np.float32)


def draw_boxes(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Boxes of all sizes, in an image of so many pixels."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, (width, height), (count, 2))
    sizes = np.exp(rng.normal(4.5, 1.2, (count, 2)))
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    return corners.clip(0, (width, height, width, height)).astype(np.float32)


def corner_boxes(height: int, width: int) -> np.ndarray:
    """Boxes of one pixel, of half a position, of nearly the whole image, and all of it."""
    found = []
    for side in (1, 8, 9, min(height, width) - 1):
        for y in (0, height - side):
            for x in (0, width - side):
                found.append([x, y, x + side, y + side])
    return np.array([*found, [0, 0, width, height]], np.float32)


def onnx_pool(features: np.ndarray, boxes: np.ndarray, output_size: int) -> np.ndarray:
    """Pool inclusive boxes of the first and only image."""
    regions = np.pad(boxes - np.array([0, 0, 1, 1], np.float32), ((0, 0), (1, 0)))
    inputs = {"maps": features.transpose(2, 0, 1)[None], "regions": regions}
    pooled = run_operator(
        "MaxRoiPool", inputs, pooled_shape=[output_size, output_size], spatial_scale=1 / 16
    )
    return pooled.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("output_size", "height", "width"), [(14, 38, 63), (7, 63, 38)])
def test_pooling_is_onnxruntimes(output_size: int, height: int, width: int) -> None:
    """No difference, also where corners are rounded from the middle."""
    features = draw_map(height, width, 3)
    boxes = draw_boxes(300, 16 * height, 16 * width)
    halves = np.round(boxes / 8) * 8 + np.array([0, 0, 1, 1])
    at_corners = corner_boxes(16 * height, 16 * width)
    boxes = np.concatenate([boxes, halves, at_corners]).astype(np.float32)
    boxes = boxes.clip(0, np.array([16 * width, 16 * height] * 2, np.float32))
    expected = onnx_pool(features, boxes, output_size)
    np.testing.assert_array_equal(pool(features, boxes, output_size=output_size), expected)
    assert (expected == 0).any()  # the bins of regions that start behind the map


@pytest.mark.parametrize("output_size", [14, 3])
def test_regions_of_every_size_have_caffes_bins(output_size: int) -> None:
    """Some of these bins are one wider than exact division would make them."""
    height, width = 20, 70
    features = draw_map(height, width, 1)
    sizes = 16.0 * np.arange(1, width + 1)
    edges = np.stack([0 * sizes, 0 * sizes, sizes, np.minimum(sizes, 16 * height)], axis=1)
    boxes = edges.astype(np.float32)
    actual = pool(features, boxes, output_size=output_size)
    np.testing.assert_array_equal(actual, onnx_pool(features, boxes, output_size))


def test_a_box_that_sticks_out_is_pooled_up_to_the_border() -> None:
    features = draw_map(6, 8, 2)
    boxes = np.array([[-90, -40, 60, 50], [50, 30, 500, 600], [200, 0, 300, 20]], np.float32)
    clipped = boxes.clip(0, [128, 96, 128, 96]).astype(np.float32)
    actual = pool(features, boxes, output_size=3)
    np.testing.assert_array_equal(actual[:2], pool(features, clipped, output_size=3)[:2])
    np.testing.assert_array_equal(actual[2], 0)


def test_a_box_that_is_no_number_does_no_harm() -> None:
    features = draw_map(6, 8, 2)
    infinite = [np.inf, -np.inf, np.inf, -np.inf]
    boxes = np.array([[np.nan] * 4, infinite, infinite[::-1]], np.float32)
    assert np.isfinite(pool(features, boxes, output_size=3)).all()


def test_bfloat16_is_pooled_exactly() -> None:
    features = jnp.asarray(draw_map(12, 9, 4), jnp.bfloat16)
    boxes = draw_boxes(20, 192, 144)
    actual = pool(features, boxes, output_size=3)
    assert actual.dtype == jnp.bfloat16
    expected = pool(features.astype(jnp.float32), boxes, output_size=3)
    np.testing.assert_array_equal(actual.astype(jnp.float32), expected)
    assert align(features, boxes, output_size=3).dtype == jnp.bfloat16


def test_nan_reaches_the_result() -> None:
    features = draw_map(6, 8, 2)
    features[2, 3, 0] = np.nan
    boxes = np.tile(np.array([0, 0, 128, 96], np.float32), (3, 1))
    found = np.isnan(pool(features, boxes, output_size=3))
    # It is in one row of the bins, and where two overlap.
    assert (found.sum(axis=(1, 2)) == [[2, 0]] * 3).all()


def pullback(operator: Callable[..., jax.Array]) -> Any:
    """Compile an operator's gradients, for features, boxes and the result's gradient."""
    return jax.jit(lambda features, boxes, given: jax.vjp(operator, features, boxes)[1](given))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("operator", [roi_pool, roi_align])
def test_gradients_are_finite_differences(operator: Callable[..., jax.Array]) -> None:
    """In random directions, with all elements of the map different (0.01 apart)."""
    rng = np.random.default_rng(1)
    features = rng.permutation(6 * 8 * 3).reshape(6, 8, 3) / 100.0
    boxes = np.concatenate([draw_boxes(12, 96, 128), corner_boxes(96, 128)]).astype(np.float64)
    run = jax.jit(functools.partial(operator, output_size=4))
    given = rng.standard_normal((len(boxes), 4, 4, 3))
    gradient, of_boxes = pullback(run)(features, boxes, given)
    assert gradient.dtype == np.float64
    for _ in range(5):
        step = 1e-3 * rng.uniform(-1, 1, features.shape)
        difference = np.vdot(run(features + step, boxes) - run(features - step, boxes), given) / 2
        np.testing.assert_allclose(np.vdot(gradient, step), difference, rtol=1e-9)
    np.testing.assert_array_equal(of_boxes, 0)


def pool_gradient_in_loops(
    features: np.ndarray, starts: np.ndarray, ends: np.ndarray, given: np.ndarray
) -> np.ndarray:
    """Give each bin's gradient to its first largest element, by rows.

    Args:
      features: `[H, W, C]`.
      starts: row and column of the bins, `[bins, 2]`.
      ends: exclusive.
      given: `[bins, C]`.
    """
    gradient = np.zeros_like(features)
    for (top, left), (bottom, right), row in zip(starts, ends, given, strict=True):
        window = features[top:bottom, left:right]
        for channel, value in enumerate(row):
            place = np.unravel_index(np.argmax(window[..., channel]), window.shape[:2])
            gradient[top + place[0], left + place[1], channel] += value
    return gradient


def test_first_of_equal_elements_gets_the_gradient() -> None:
    """Regions of 1 to 12 positions each way, in bins that divide them; few different values."""
    rng = np.random.default_rng(2)
    features = rng.integers(0, 3, (14, 15, 4)).astype(np.float32)
    boxes, starts, ends = [], [], []
    for size in (1, 2, 3, 4, 5, 6):
        top, left = rng.integers(0, 3, 2)
        boxes.append([left, top, left + 2 * size, top + 2 * size])
        for row in (0, size):
            for column in (0, size):
                starts.append([top + row, left + column])
                ends.append([top + row + size, left + column + size])
    given = rng.integers(1, 100, (len(boxes), 2, 2, 4)).astype(np.float32)
    expected = pool_gradient_in_loops(
        features, np.array(starts), np.array(ends), given.reshape(-1, 4)
    )
    run = pullback(functools.partial(roi_pool, output_size=2, scale=1.0))
    actual, _ = run(features, np.array(boxes, np.float32), given)
    np.testing.assert_array_equal(actual, expected)


def test_gradient_is_summed_in_float32() -> None:
    """A thousand ones, of which bfloat16 would count 256."""
    features = jnp.zeros((2, 2, 1), jnp.bfloat16).at[0, 1].set(1)
    boxes = np.tile(np.array([0, 0, 32, 32], np.float32), (1000, 1))
    run = pullback(functools.partial(roi_pool, output_size=1))
    gradient, _ = run(features, boxes, jnp.ones((1000, 1, 1, 1), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[..., 0].astype(jnp.float32), [[0, 1000], [0, 0]])


@pytest.mark.parametrize(("operator", "maps"), [(roi_pool, 20), (roi_align, 20)])
def test_memory_is_bounded(operator: Callable[..., jax.Array], maps: int) -> None:
    """A gradient for 64 regions needs a fraction of a map for each."""
    features = jax.ShapeDtypeStruct((38, 63, 32), jnp.float32)
    boxes = jax.ShapeDtypeStruct((64, 4), jnp.float32)
    given = jax.ShapeDtypeStruct((64, 14, 14, 32), jnp.float32)
    memory = pullback(operator).lower(features, boxes, given).compile().memory_analysis()
    assert memory.temp_size_in_bytes / (4 * features.size) < maps


def test_regions_are_mapped_over_images_and_spread_over_devices() -> None:
    """Values and gradients of both, for two images on each of two devices."""
    features = np.stack([draw_map(6, 8, 2, seed) for seed in range(4)])
    boxes = np.stack([draw_boxes(5, 96, 128, seed) for seed in range(4)])

    def run(features: jax.Array, boxes: jax.Array) -> list[jax.Array]:
        results = []
        for operator in (roi_pool, roi_align):
            pooled, pull = jax.vjp(functools.partial(operator, output_size=3), features, boxes)
            results += [pooled, pull(jnp.cos(pooled))[0]]
        return results

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_data = PartitionSpec("data")
    spread = jax.shard_map(jax.vmap(run), mesh=mesh, in_specs=over_data, out_specs=over_data)
    alone, together = jax.jit(run), jax.jit(spread)(features, boxes)
    for index in range(4):
        expected = alone(features[index], boxes[index])
        for actual, wanted in zip(together, expected, strict=True):
            assert relative_difference(actual[index], wanted) < 1e-6


def onnx_align(
    features: np.ndarray, boxes: np.ndarray, output_size: int, samples: int, aligned: bool
) -> np.ndarray:
    inputs = {
        "maps": features.transpose(2, 0, 1)[None],
        "regions": boxes,
        "images": np.zeros(len(boxes), np.int64),
    }
    pooled = run_operator(
        "RoiAlign",
        inputs,
        output_height=output_size,
        output_width=output_size,
        sampling_ratio=samples,
        spatial_scale=1 / 16,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )
    return pooled.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("output_size", "samples", "aligned"),
    [(14, 2, True), (14, 2, False), (7, 3, True), (2, 1, True)],
)
def test_alignment_is_onnxruntimes(output_size: int, samples: int, aligned: bool) -> None:
    """Also of boxes that stick out, and of more regions than are computed at once."""
    height, width = 38, 63
    features = draw_map(height, width, 3)
    outside = np.array([[-90, -40, 60, 50], [900, 500, 1100, 700], [2000, 0, 2100, 9]], np.float32)
    boxes = np.concatenate(
        [draw_boxes(256, 16 * height, 16 * width), corner_boxes(16 * height, 16 * width), outside]
    )
    expected = onnx_align(features, boxes, output_size, samples, aligned)
    actual = align(
        features, boxes, output_size=output_size, sampling_ratio=samples, aligned=aligned
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("operator", [pool, align])
def test_no_regions_give_none(operator: Callable[..., jax.Array]) -> None:
    assert operator(jnp.zeros((3, 4, 5)), jnp.zeros((0, 4)), output_size=2).shape == (0, 2, 2, 5)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("operator", [roi_pool, roi_align])
def test_what_does_not_fit_is_refused(operator: Callable[..., jax.Array]) -> None:
    with pytest.raises(ValueError, match=r"must be \[H, W, C\] and \[R, 4\]; got \(1, 3, 4, 5\)"):
        operator(jnp.zeros((1, 3, 4, 5)), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="output_size must be at least 1; got 0"):
        operator(jnp.zeros((3, 4, 5)), jnp.zeros((2, 4)), output_size=0)
    with pytest.raises(ValueError, match="sampling_ratio must be at least 1; got 0"):
        roi_align(jnp.zeros((3, 4, 5)), jnp.zeros((2, 4)), sampling_ratio=0)
