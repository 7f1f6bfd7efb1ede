"""The feature pyramid's parts against plain NumPy, and RoIAlign of one level."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.detection.config import faster_rcnn_config
from resnext_jax.detection.pyramid import (
    STRIDES,
    FeaturePyramid,
    align_at_levels,
    assign_levels,
    enlarge,
    level_anchors,
)
from resnext_jax.detection.roi import roi_align
from resnext_jax.detection.setup import anchor_specs
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.variables import merge, skeleton, split

# Odd sizes, each half of the one before, rounded up.
SIZES = ((10, 13), (5, 7), (3, 4), (2, 2))


def random_maps(channels: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((*size, width)).astype(np.float32)
        for size, width in zip(SIZES, channels, strict=True)
    ]


def smoothed(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolve `[H, W, C]` with a 3x3 kernel, padded with zeros."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    result = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            window = padded[row : row + 3, column : column + 3]
            result[row, column] = np.einsum("ijc,ijcd->d", window, kernel) + bias
    return result


def test_levels_are_sums_from_the_coarsest_down() -> None:
    graphdef, params, _ = split(
        skeleton(lambda rngs: FeaturePyramid((3, 4, 5, 6), 2, LayerOptions(), rngs=rngs))
    )
    rng = np.random.default_rng(1)
    fpn = merge(
        graphdef,
        {name: jnp.asarray(rng.standard_normal(x.shape), x.dtype) for name, x in params.items()},
        {},
    )
    maps = random_maps((3, 4, 5, 6))
    found = jax.jit(fpn)([jnp.asarray(each)[None] for each in maps])
    above = None
    for level in reversed(range(4)):
        lateral, smooth = fpn.lateral[level], fpn.smooth[level]
        merged = maps[level] @ np.asarray(lateral.kernel)[0, 0] + np.asarray(lateral.bias)
        if above is not None:
            for row in range(merged.shape[0]):
                for column in range(merged.shape[1]):
                    merged[row, column] += above[row // 2, column // 2]
        expected = smoothed(merged, np.asarray(smooth.kernel), np.asarray(smooth.bias))
        np.testing.assert_allclose(found[level][0], expected, rtol=1e-4, atol=1e-4)
        above = merged


@pytest.mark.parametrize("shape", [(6, 9), (4, 8), (5, 10)])
def test_maps_that_are_not_twice_as_large_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"a map of \(3, 4\) positions is not half of"):
        enlarge(jnp.zeros((1, 3, 4, 1)), shape)


def test_regions_belong_to_the_level_of_their_size() -> None:
    """The paper's formula, and just at its bounds the coarser level."""
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform(0, 300, (500, 2)), np.exp(rng.uniform(1, 7, (500, 2)))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    width, height = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).T
    expected = [
        min(max(math.floor(4 + math.log2(math.sqrt(area) / 224)), 2), 5) - 2
        for area in (width * height).tolist()
    ]
    assert set(expected) == {0, 1, 2, 3}
    assert assign_levels(jnp.asarray(boxes)).tolist() == expected
    bounds = jnp.array([[0, 0, side, side] for side in (111, 112, 223, 224, 447, 448, 0)], float)
    assert assign_levels(bounds).tolist() == [0, 1, 1, 2, 2, 3, 0]
    assert assign_levels(bounds, 112.0).tolist() == [1, 2, 2, 3, 3, 3, 0]


def test_each_level_has_anchors_of_one_scale() -> None:
    """32 to 512 pixels (Lin et al. 2017, Sec. 4.1), at a position for every stride begun."""
    specs = anchor_specs(faster_rcnn_config(pyramid=True))
    levels = level_anchors(608, 1008, specs)
    positions = [(152, 252), (76, 126), (38, 63), (19, 32), (10, 16)]
    assert [len(each) for each in levels] == [3 * rows * columns for rows, columns in positions]
    for anchors, stride, (_, columns) in zip(levels, (*STRIDES, 64), positions, strict=True):
        width, height = (anchors[:3, 2:] - anchors[:3, :2]).T
        np.testing.assert_allclose(height / width, (0.5, 1, 2), rtol=0.1)
        np.testing.assert_allclose(np.sqrt(width * height), 8 * stride, rtol=0.1)
        assert (width[1], height[1]) == (8 * stride, 8 * stride)
        np.testing.assert_array_equal((anchors[:3, 2:] + anchors[:3, :2]) / 2, stride / 2)
        # The next row, and in it the second position.
        shift = anchors[3 * (columns + 1)] - anchors[0]
        np.testing.assert_array_equal(shift, [stride] * 4)


@pytest.fixture(scope="module")
def regions() -> tuple[np.ndarray, np.ndarray]:
    """Boxes in an image of 40x52, some reaching beyond it, and levels that they need not have."""
    rng = np.random.default_rng(2)
    corners = rng.uniform(-10, 45, (70, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 40, (70, 2))], axis=1)
    return boxes.astype(np.float32), rng.integers(0, 4, 70).astype(np.int32)


def aligned_one_by_one(maps: list[jax.Array], boxes: jax.Array, levels: np.ndarray) -> jax.Array:
    parts = [
        roi_align(each, boxes[levels == level], output_size=3, scale=1 / stride)
        for level, (each, stride) in enumerate(zip(maps, STRIDES, strict=True))
    ]
    places = np.concatenate([np.flatnonzero(levels == level) for level in range(4)])
    return jnp.concatenate(parts)[np.argsort(places)]


def test_regions_are_aligned_on_their_own_level(regions: tuple[np.ndarray, np.ndarray]) -> None:
    """Values and gradients are those of RoIAlign on that level's map."""
    boxes, levels = regions
    maps = [jnp.asarray(each) for each in random_maps((6, 6, 6, 6), seed=3)]
    weights = np.random.default_rng(4).standard_normal((70, 3, 3, 6)).astype(np.float32)

    def total(maps: list[jax.Array], boxes: jax.Array, *, own: bool) -> tuple[jax.Array, jax.Array]:
        if own:
            pooled = align_at_levels(maps, boxes, jnp.asarray(levels), output_size=3)
        else:
            pooled = aligned_one_by_one(maps, boxes, levels)
        return (pooled * weights).sum(), pooled

    def both(own: bool) -> tuple[jax.Array, list[jax.Array], jax.Array]:
        gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
        (of_maps, of_boxes), pooled = jax.jit(gradient, static_argnames="own")(
            maps, jnp.asarray(boxes), own=own
        )
        return pooled, of_maps, of_boxes

    pooled, of_maps, of_boxes = both(own=True)
    expected, expected_of_maps, _ = both(own=False)
    assert np.count_nonzero(expected) > expected.size / 2
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    for found, wanted in zip(of_maps, expected_of_maps, strict=True):
        assert np.any(wanted)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert not np.any(of_boxes)


def test_what_is_no_box_reads_nothing() -> None:
    """An empty place and numbers that are none, in the maps' own precision."""
    maps = [jnp.asarray(each, jnp.bfloat16) for each in random_maps((6, 6, 6, 6))]
    boxes = jnp.array([[jnp.nan] * 4, [jnp.inf] * 4, [-1e30, -1e30, 1e30, 1e30], [0, 0, 8, 8]])
    levels = jnp.array([3, 3, 0, 0], jnp.int32)
    pooled = jax.jit(align_at_levels, static_argnames="output_size")(
        maps, boxes, levels, output_size=2
    )
    assert pooled.dtype == jnp.bfloat16
    assert not np.any(np.asarray(pooled[:3], np.float32))
    assert np.all(np.asarray(pooled[3], np.float32))
