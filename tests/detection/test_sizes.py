"""Images are resized and padded as they should be, and boxes go with them, there and back."""

import cv2
import numpy as np
import pytest

from resnext_jax.detection.sizes import (
    ImageSpec,
    original_boxes,
    prepare_image,
    resized_boxes,
    resized_shape,
)
from tests.detection.coco_files import pixels

PAPER = ImageSpec()
# Images of 48x64 become 60x80.
SMALL = ImageSpec(short_side=60, long_side=100)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (600, 800, 1.25)),
        (640, 480, (800, 600, 1.25)),
        (375, 500, (600, 800, 1.6)),
        (500, 500, (600, 600, 1.2)),
        (300, 1000, (300, 1000, 1.0)),
        (240, 640, (375, 1000, 1.5625)),
        # 1000.5 rounds to the even 1000: still short enough.
        (400, 667, (600, 1000, 1.5)),
        (2, 5000, (1, 1000, 0.2)),
    ],
)
def test_sizes_by_hand(height: int, width: int, expected: tuple[int, int, float]) -> None:
    assert resized_shape(height, width, PAPER) == pytest.approx(expected)


def test_sizes_are_opencv_s_for_py_faster_rcnn_s_scale() -> None:
    """Its rule, with OpenCV told the scale and left to find the size."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(40, 1300, (60, 2)).tolist():
        scale = 600 / min(height, width)
        if np.round(scale * max(height, width)) > 1000:
            scale = 1000 / max(height, width)
        blank = np.zeros((height, width), np.uint8)
        theirs = cv2.resize(blank, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR).shape
        assert resized_shape(height, width, PAPER) == (*theirs, scale)


def test_every_image_fits_its_canvas() -> None:
    assert PAPER.canvases == ((608, 1008), (1008, 608))
    rng = np.random.default_rng(1)
    shapes = rng.integers(1, 3000, (2000, 2)).tolist()
    for height, width in [*shapes, (427, 640), (640, 427), (1, 1)]:
        canvas = PAPER.canvases[PAPER.canvas_of(height, width)]
        resized = resized_shape(height, width, PAPER)[:2]
        assert resized[0] <= canvas[0]
        assert resized[1] <= canvas[1]
    assert PAPER.canvas_of(500, 500) == 0
    # Where short and long are one size, orientation does not matter.
    square = ImageSpec(short_side=128, long_side=128)
    assert square.canvases == ((128, 128),)
    assert square.canvas_of(128, 64) == square.canvas_of(64, 128) == 0


def test_an_image_is_resized_and_padded_with_zeros() -> None:
    original = pixels(0, 48, 64)
    padded, size, scale = prepare_image(original, SMALL)
    assert padded.shape == (64, 112, 3)
    assert padded.dtype == np.uint8
    assert (size.tolist(), scale) == ([60, 80], 1.25)
    expected = cv2.resize(original, (80, 60), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(padded[:60, :80], expected)
    assert not padded[60:].any()
    assert not padded[:, 80:].any()


def test_boxes_come_back_to_the_image_as_it_is_stored() -> None:
    boxes = np.array([[1, 2, 30, 40], [0, 0, 64, 48]], np.float32)
    back = original_boxes(boxes * 1.25, 1.25, np.array([48, 64]))
    np.testing.assert_allclose(back, boxes, atol=1e-4)
    over = original_boxes(np.array([-5, -5, 90, 90]), 1.25, np.array([48, 64]))
    assert over.tolist() == [0, 0, 64, 48]
    assert over.dtype == np.float32


def test_boxes_go_with_the_image_and_its_mirror_image() -> None:
    boxes = np.array([[1, 2, 30, 40], [0, 0, 64, 48]], np.float32)
    there = resized_boxes(boxes, 64, 1.25, mirrored=False)
    np.testing.assert_allclose(there, boxes * 1.25)
    mirrored = resized_boxes(boxes, 64, 1.25, mirrored=True)
    np.testing.assert_allclose(mirrored, [[42.5, 2.5, 78.75, 50.0], [0.0, 0.0, 80.0, 60.0]])
    assert there.dtype == mirrored.dtype == np.float32
    assert resized_boxes(boxes[:0], 64, 1.25, mirrored=True).shape == (0, 4)
