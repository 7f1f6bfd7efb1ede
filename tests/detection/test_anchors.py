"""Anchors against the numbers of py-faster-rcnn, and against loops in inclusive corners."""

import math

import numpy as np
import pytest

from resnext_jax.detection.anchors import AnchorSpec, are_reached, base_anchors, make_anchors
from tests.detection import plain

# From inclusive corners to continuous ones.
CONTINUOUS = np.array([0, 0, 1, 1])


def loop_anchors(spec: AnchorSpec) -> list[list[float]]:
    """The anchors of a position in inclusive corners, step by step as py-faster-rcnn has them."""
    x = y = (spec.base - 1) / 2
    anchors = []
    for ratio in spec.ratios:
        wide = round(math.sqrt(spec.base * spec.base / ratio))
        high = round(wide * ratio)
        for scale in spec.scales:
            half_wide, half_high = (wide * scale - 1) / 2, (high * scale - 1) / 2
            anchors.append([x - half_wide, y - half_high, x + half_wide, y + half_high])
    return anchors


def test_anchors_at_scale_4_are_those_of_py_faster_rcnn() -> None:
    inclusive = base_anchors() - CONTINUOUS
    expected = [[-38, -16, 53, 31], [-24, -24, 39, 39], [-14, -36, 29, 51]]
    np.testing.assert_array_equal(inclusive[::4], expected)


@pytest.mark.parametrize(
    "spec",
    [
        AnchorSpec(),
        AnchorSpec(scales=(8.0, 16.0, 32.0)),
        AnchorSpec(stride=8, base=8, ratios=(1.0,), scales=(1.0, 3.5)),
        AnchorSpec(stride=4, base=10, ratios=(0.3, 3.0), scales=(2.0,)),
    ],
)
def test_anchors_are_those_of_a_loop(spec: AnchorSpec) -> None:
    expected = np.array(loop_anchors(spec)) + CONTINUOUS
    actual = base_anchors(spec)
    assert actual.shape == (spec.per_position, 4)
    np.testing.assert_array_equal(actual, expected)


def test_a_whole_feature_map() -> None:
    spec = AnchorSpec()
    anchors = make_anchors(38, 63)
    assert (anchors.shape, anchors.dtype.name) == ((28_728, 4), "float32")
    first = np.array(loop_anchors(spec)) + CONTINUOUS
    index = 0
    for row in range(38):
        for column in range(63):
            shift = [16 * column, 16 * row, 16 * column, 16 * row]
            np.testing.assert_array_equal(anchors[index : index + 12], first + shift)
            index += 12


def test_another_feature_map() -> None:
    spec = AnchorSpec(stride=8, ratios=(1.0,), scales=(2.0, 4.0))
    anchors = make_anchors(2, 3, spec).reshape(2, 3, 2, 4)
    np.testing.assert_array_equal(anchors[0, 0], [[-8, -8, 24, 24], [-24, -24, 40, 40]])
    np.testing.assert_array_equal(anchors[1, 2] - anchors[0, 0], [[16, 8, 16, 8]] * 2)


@pytest.mark.parametrize(
    "spec",
    [
        AnchorSpec(),
        # Smaller than the stride, so that there are gaps between them.
        AnchorSpec(stride=16, base=16, ratios=(0.5, 2.0), scales=(0.5,)),
        AnchorSpec(stride=32, base=32, ratios=(1.0,), scales=(3.0,)),
    ],
)
def test_boxes_that_an_anchor_inside_the_image_overlaps(spec: AnchorSpec) -> None:
    """One anchor after the other."""
    rng = np.random.default_rng(0)
    sizes = rng.integers((20, 20), (160, 160), (200, 2))
    sizes[:20] = 33, 160  # too low for the paper's anchors
    starts = rng.uniform(0, 0.95, (200, 2)) * sizes[:, ::-1]
    ends = np.minimum(starts + rng.exponential(8, (200, 2)), sizes[:, ::-1])
    boxes = np.concatenate([starts, ends], axis=1)
    expected = []
    for box, (height, width) in zip(boxes, sizes, strict=True):
        anchors = make_anchors(10, 10, spec)
        x1, y1, x2, y2 = anchors.T
        inside = anchors[(x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)]
        expected.append(any(plain.iou(anchor, box) > 0 for anchor in inside.tolist()))
    assert are_reached(boxes, sizes, spec).tolist() == expected
    assert 20 < sum(expected) < 180
