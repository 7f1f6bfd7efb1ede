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
        (480, 640, (600, 800)),
        (640, 480, (800, 600)),
        (375, 500, (600, 800)),
        (500, 500, (600, 600)),
        (300, 1000, (300, 1000)),
        (240, 640, (375, 1000)),
        # 1000.5 rounds to the even 1000: still short enough.
        (400, 667, (600, 1000)),
        (2, 5000, (1, 1000)),
    ],
)
def test_sizes_by_hand(height: int, width: int, expected: tuple[int, int]) -> None:
    assert resized_shape(height, width, PAPER) == expected


def test_sizes_are_opencv_s_for_py_faster_rcnn_s_scale() -> None:
    """Its rule, with OpenCV told the scale and left to find the size."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(40, 1300, (60, 2)).tolist():
        scale = 600 / min(height, width)
        if np.round(scale * max(height, width)) > 1000:
            scale = 1000 / max(height, width)
        blank = np.zeros((height, width), np.uint8)
        theirs = cv2.resize(blank, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR).shape
        assert resized_shape(height, width, PAPER) == theirs


def test_every_image_fits_its_canvas() -> None:
    assert PAPER.canvases == ((608, 1008), (1008, 608))
    rng = np.random.default_rng(1)
    shapes = rng.integers(1, 3000, (2000, 2)).tolist()
    for height, width in [*shapes, (427, 640), (640, 427), (1, 1)]:
        canvas = PAPER.canvases[PAPER.canvas_of(height, width)]
        resized = resized_shape(height, width, PAPER)
        assert resized[0] <= canvas[0]
        assert resized[1] <= canvas[1]
    assert PAPER.canvas_of(500, 500) == 0
    # Where short and long are one size, orientation does not matter.
    square = ImageSpec(short_side=128, long_side=128)
    assert square.canvases == ((128, 128),)
    assert square.canvas_of(128, 64) == square.canvas_of(64, 128) == 0


def test_an_image_is_resized_and_padded_with_zeros() -> None:
    original = pixels(0, 48, 64)
    padded, size = prepare_image(original, SMALL)
    assert padded.shape == (64, 112, 3)
    assert padded.dtype == np.uint8
    assert size.tolist() == [60, 80]
    expected = cv2.resize(original, (80, 60), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(padded[:60, :80], expected)
    assert not padded[60:].any()
    assert not padded[:, 80:].any()


def test_boxes_come_back_to_the_image_as_it_is_stored() -> None:
    boxes = np.array([[1, 2, 30, 40], [0, 0, 64, 48]], np.float32)
    sizes = np.array([60, 80]), np.array([48, 64])
    np.testing.assert_allclose(original_boxes(boxes * 1.25, *sizes), boxes, atol=1e-4)
    over = original_boxes(np.array([-5, -5, 90, 90]), *sizes)
    assert over.tolist() == [0, 0, 64, 48]
    assert over.dtype == np.float32


def test_boxes_go_with_the_image_and_its_mirror_image() -> None:
    boxes = np.array([[1, 2, 30, 40], [0, 0, 64, 48]], np.float32)
    sizes = np.array([48, 64]), np.array([60, 80])
    there = resized_boxes(boxes, *sizes, mirrored=False)
    np.testing.assert_allclose(there, boxes * 1.25)
    mirrored = resized_boxes(boxes, *sizes, mirrored=True)
    np.testing.assert_allclose(mirrored, [[42.5, 2.5, 78.75, 50.0], [0.0, 0.0, 80.0, 60.0]])
    assert there.dtype == mirrored.dtype == np.float32
    assert resized_boxes(boxes[:0], *sizes, mirrored=True).shape == (0, 4)


@pytest.mark.parametrize(
    ("height", "width"), [(2160, 3840), (3840, 2160), (427, 640), (1199, 801), (333, 1000)]
)
def test_a_spot_is_where_its_box_is(height: int, width: int) -> None:
    """To 0.05 pixels of the stored image, far from the corner that both images share."""
    x, y, spread = 0.9 * width, 0.9 * height, 0.02 * min(height, width)
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    profile = [np.exp(-(((line - at) / spread) ** 2)) for line, at in ((rows, y), (columns, x))]
    picture = np.rint(255 * np.outer(*profile)).astype(np.uint8)[..., None].repeat(3, axis=2)
    padded, size = prepare_image(picture, PAPER)
    brightness = padded[..., 0].astype(float)
    spot = [
        (np.arange(length) + 0.5) @ brightness.sum(axis=1 - axis) / brightness.sum()
        for axis, length in enumerate(brightness.shape)
    ]
    original_size = np.array([height, width])
    there = resized_boxes(np.array([[x, y, x, y]]), original_size, size, mirrored=False)[0]
    tolerance = 0.05 * size.min() / min(height, width)
    np.testing.assert_allclose(there[[1, 0]], spot, atol=tolerance)
    back = original_boxes(np.array([*spot[::-1], *spot[::-1]]), size, original_size)
    np.testing.assert_allclose(back, [x, y, x, y], atol=0.05)
