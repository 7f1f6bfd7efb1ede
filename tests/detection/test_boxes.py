"""Boxes against plain loops, and where they have no area."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.detection.boxes import (
    MAX_LOG_SCALE,
    area,
    clip,
    coverage,
    decode,
    encode,
    flip,
    iou,
)

# From inclusive corners to continuous ones.
CONTINUOUS = np.array([0, 0, 1, 1], np.float32)

# Without area in every way: a point, lines, corners in the wrong order, and hardly any area.
DEGENERATE = np.array(
    [
        [5, 5, 5, 5],
        [5, 5, 9, 5],
        [5, 5, 5, 9],
        [9, 5, 5, 9],
        [9, 9, 5, 5],
        [0, 0, 1e-30, 1e-30],
        [0, 0, 0, 0],
        [3, 4, 10, 12],
        [3, 4, 10, 12],
        [1e4, 1e4, 1e4, 1e4],
    ],
    np.float32,
)


def random_boxes(count: int, seed: int = 0, shortest: float = 4.0) -> np.ndarray:
    """Boxes anywhere in an image of 600 x 1000."""
    rng = np.random.default_rng(seed)
    room = np.array([1000.0, 600.0]) - shortest
    low = rng.uniform(0, room, (count, 2))
    high = low + shortest + rng.uniform(0, 1, (count, 2)) * (room - low)
    return np.concatenate([low, high], axis=1).astype(np.float32)


def loop_overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Shared area and both areas of two boxes."""
    ax1, ay1, ax2, ay2 = map(float, a)
    bx1, by1, bx2, by2 = map(float, b)
    wide, high = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    shared = wide * high if wide > 0 and high > 0 else 0.0
    return shared, (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)


def test_areas_are_those_of_continuous_boxes_on_host_and_device() -> None:
    boxes = np.array(
        [
            [[1, 2, 4, 8], [0, 0, 0.5, 0.5], [3, 3, 3, 9]],
            [[4, 4, 2, 2], [4, 2, 2, 9], [2, 9, 4, 2]],
        ],
        np.float32,
    )
    expected = np.array([[18, 0.25, 0], [0, 0, 0]], np.float32)
    on_host, on_device = area(boxes), area(jnp.asarray(boxes))
    assert isinstance(on_host, np.ndarray)
    assert isinstance(on_device, jax.Array)
    np.testing.assert_array_equal(on_host, expected)
    np.testing.assert_array_equal(on_device, expected)


def test_iou_and_coverage_are_those_of_a_loop() -> None:
    a, b = random_boxes(20), random_boxes(15, seed=1)
    b[:5] = a[:5] + np.array([2, 1, -3, 4])
    ious, covered = np.asarray(jax.jit(iou)(a, b)), np.asarray(jax.jit(coverage)(a, b))
    assert ious.dtype == np.float32
    for i in range(20):
        for j in range(15):
            shared, own, other = loop_overlap(a[i], b[j])
            assert ious[i, j] == pytest.approx(shared / (own + other - shared), abs=1e-6)
            assert covered[i, j] == pytest.approx(shared / own, abs=1e-6)
    assert (ious > 0.5).sum() > 3


def test_iou_is_py_faster_rcnns_without_plus_one() -> None:
    """On inclusive corners, which there are counted as pixels."""
    rng = np.random.default_rng(2)
    low = rng.integers(0, 30, (2, 12, 2))
    inclusive = np.concatenate([low, low + rng.integers(0, 30, (2, 12, 2))], axis=-1)
    continuous = (inclusive + CONTINUOUS).astype(np.float32)
    actual = np.asarray(jax.jit(iou)(*continuous))
    for i, a in enumerate(inclusive[0].tolist()):
        for j, b in enumerate(inclusive[1].tolist()):
            pixels = [
                {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}
                for x1, y1, x2, y2 in (a, b)
            ]
            expected = len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])
            assert actual[i, j] == np.float32(expected)


def test_iou_with_padding_is_minus_one() -> None:
    boxes = random_boxes(4)
    valid = np.array([True, False, True, False])
    actual = np.asarray(jax.jit(iou)(boxes, boxes, valid))
    np.testing.assert_array_equal(actual[:, ~valid], -1)
    np.testing.assert_array_equal(actual[:, valid], jax.jit(iou)(boxes, boxes)[:, valid])
    assert (actual[:, valid] >= 0).all()


def test_encoding_by_hand() -> None:
    reference = jnp.array([[10.0, 20.0, 30.0, 60.0]])  # 20 x 40 around (20, 40)
    box = jnp.array([[15.0, 10.0, 55.0, 50.0]])  # 40 x 40 around (35, 30)
    expected = [[15 / 20, -10 / 40, math.log(2), 0]]
    np.testing.assert_allclose(encode(box, reference), expected, rtol=1e-6)
    np.testing.assert_allclose(decode(jnp.array(expected), reference), box, rtol=1e-6)


def test_encoding_is_py_faster_rcnns_without_plus_one() -> None:
    """There on inclusive corners: sides with + 1, centres at half a side."""
    boxes, references = np.floor(random_boxes(50)), np.floor(random_boxes(50, seed=1))
    actual = np.asarray(jax.jit(encode)(boxes + CONTINUOUS, references + CONTINUOUS))
    for delta, box, reference in zip(actual, boxes.tolist(), references.tolist(), strict=True):
        (x, y, wide, high), (rx, ry, rwide, rhigh) = (
            (x1 + (x2 - x1 + 1) / 2, y1 + (y2 - y1 + 1) / 2, x2 - x1 + 1, y2 - y1 + 1)
            for x1, y1, x2, y2 in (box, reference)
        )
        expected = [
            (x - rx) / rwide,
            (y - ry) / rhigh,
            math.log(wide / rwide),
            math.log(high / rhigh),
        ]
        np.testing.assert_allclose(delta, expected, rtol=1e-5, atol=1e-6)


def round_trip(boxes: jax.Array, reference: jax.Array) -> jax.Array:
    return decode(encode(boxes, reference), reference)


def test_decoding_undoes_encoding() -> None:
    """Of boxes and references as they meet: overlapping, up to 1000 pixels from the origin."""
    boxes = random_boxes(5000)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moves = np.random.default_rng(1).uniform(-0.25, 0.25, boxes.shape)
    reference = (boxes + moves * sides).astype(np.float32)
    error = np.abs(jax.jit(round_trip)(boxes, reference) - boxes)
    assert error.max() <= 1e-4
    # Any pair at all: float32 itself counts in 6e-5 there, and a far move is no better.
    other = np.flip(boxes, 0)
    fits = ((boxes[:, 2:] - boxes[:, :2]) / (other[:, 2:] - other[:, :2]) < 1000 / 16).all(axis=1)
    error = np.abs(jax.jit(round_trip)(boxes, other) - boxes)[fits]
    assert error.max() <= 2e-4


@pytest.mark.usefixtures("float64")
def test_decoding_undoes_encoding_exactly_in_double_precision() -> None:
    boxes, reference = (
        np.float64(random_boxes(500)),
        np.float64(random_boxes(500, seed=1, shortest=20)),
    )
    np.testing.assert_allclose(jax.jit(round_trip)(boxes, reference), boxes, atol=1e-9)


def test_no_deltas_leave_the_reference_as_it_is() -> None:
    reference = random_boxes(1000)
    np.testing.assert_array_equal(decode(jnp.zeros((1000, 4)), jnp.asarray(reference)), reference)


def test_growth_is_clamped() -> None:
    reference = jnp.array([[100.0, 100, 116, 116]])
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(1000 / 16)
    for delta in (MAX_LOG_SCALE, 5.0, 1e6):
        actual = decode(jnp.array([[0, 0, delta, 0]]), reference)
        np.testing.assert_allclose(actual, [[-392, 100, 608, 116]], rtol=1e-5)
    # Shrinking is not.
    actual = decode(jnp.array([[0, 0, -1e6, 0]]), reference)
    np.testing.assert_allclose(actual, [[108, 100, 108, 116]])


def test_boxes_are_cut_at_the_border() -> None:
    boxes = np.array(
        [[-5, -6, 30, 40], [10, 2, 70, 80], [-9, 90, -1, 99], [1, 2, 3, 4]], np.float32
    )
    expected = [[0, 0, 30, 40], [10, 2, 60, 50], [0, 50, 0, 50], [1, 2, 3, 4]]
    on_host = clip(boxes, (50, 60))
    assert isinstance(on_host, np.ndarray)
    assert on_host.dtype == np.float32
    np.testing.assert_array_equal(on_host, expected)
    np.testing.assert_array_equal(jax.jit(clip)(boxes, jnp.array([50, 60], jnp.int32)), expected)


def test_boxes_are_mirrored_as_their_image_is() -> None:
    boxes = np.array([[1, 2, 4, 5], [0, 0, 7, 1], [6, 3, 7, 6]], np.float32)
    mirrored = flip(boxes, np.int64(7))
    assert isinstance(mirrored, np.ndarray)
    assert mirrored.dtype == np.float32
    for box, other in zip(boxes.astype(int), mirrored.astype(int), strict=True):
        image, expected = np.zeros((6, 7)), np.zeros((6, 7))
        image[box[1] : box[3], box[0] : box[2]] = 1
        expected[other[1] : other[3], other[0] : other[2]] = 1
        np.testing.assert_array_equal(np.flip(image, axis=1), expected)
    np.testing.assert_array_equal(flip(mirrored, 7), boxes)
    np.testing.assert_array_equal(jax.jit(flip)(boxes, 7), mirrored)
    assert flip(np.zeros((0, 4), np.float32), 7).shape == (0, 4)


@pytest.mark.parametrize(
    "function",
    [
        area,
        lambda boxes: iou(boxes, jnp.asarray(DEGENERATE)),
        lambda boxes: iou(boxes, boxes),
        lambda boxes: coverage(jnp.asarray(DEGENERATE), boxes),
        lambda boxes: coverage(boxes, jnp.asarray(DEGENERATE)),
        lambda boxes: encode(boxes[:, None], jnp.asarray(DEGENERATE)),
        lambda boxes: encode(jnp.asarray(DEGENERATE)[:, None], boxes),
        lambda boxes: decode(jnp.array([0.1, 0.2, 100, -1000]), boxes),
        lambda boxes: decode(boxes, jnp.asarray(DEGENERATE)),
        lambda boxes: clip(boxes, (8, 8)),
        lambda boxes: flip(boxes, 8),
    ],
)
def test_boxes_without_area_give_finite_values_and_gradients(
    function: Callable[[Any], jax.Array],
) -> None:
    @jax.jit
    def both(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, pull = jax.vjp(function, boxes)
        return values, pull(jnp.ones_like(values))[0]

    values, gradient = both(DEGENERATE)
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()


def test_boxes_without_area_overlap_nothing() -> None:
    empty = area(DEGENERATE) < 1e-8
    assert empty.sum() == 8
    overlaps = jax.jit(iou)(DEGENERATE, DEGENERATE)
    np.testing.assert_array_equal(overlaps[empty], 0)
    np.testing.assert_array_equal(overlaps[7:9, 7:9], 1)
    np.testing.assert_array_equal(jax.jit(coverage)(DEGENERATE, DEGENERATE)[empty], 0)


def test_images_are_batched_with_vmap() -> None:
    a, b = random_boxes(12).reshape(3, 4, 4), random_boxes(6, seed=1).reshape(3, 2, 4)
    valid = np.array([[True, True], [True, False], [False, False]])
    actual = jax.jit(jax.vmap(iou))(a, b, valid)
    for i in range(3):
        np.testing.assert_allclose(actual[i], jax.jit(iou)(a[i], b[i], valid[i]), rtol=1e-6)
    sizes = np.array([[300, 400], [100, 900], [600, 1]])
    cut = jax.jit(jax.vmap(clip))(a, sizes)
    for i in range(3):
        np.testing.assert_array_equal(cut[i], clip(a[i], sizes[i].tolist()))
