"""Boxes are drawn as they should be, and only they are erased."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.data.erasing import draw_box, erase, inside


def boxes(size: int, probability: float, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([draw_box(rng, size, probability) for _ in range(count)])


def test_only_the_boxes_pixels_become_zero() -> None:
    images = np.random.default_rng(1).normal(size=(5, 6, 7, 3)).astype("float32")
    drawn = np.array([[0, 0, 0, 0], [1, 2, 4, 7], [0, 0, 6, 7], [5, 6, 6, 7], [2, 3, 2, 5]])
    actual = np.asarray(erase(jnp.asarray(images), jnp.asarray(drawn, jnp.int32)))
    expected = images.copy()
    for image, (top, left, bottom, right) in zip(expected, drawn, strict=True):
        for row in range(top, bottom):
            for column in range(left, right):
                image[row, column] = 0
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)
    assert (expected == 0).sum() == 3 * (0 + 15 + 42 + 1 + 0)


def test_boxes_are_counted_in_whole_pixels() -> None:
    drawn = boxes(24, 1.0, 200)
    assert (drawn.shape, drawn.dtype.name) == ((200, 4), "int32")
    counts = np.asarray(inside(jnp.asarray(drawn), 24, 24)).sum(axis=(1, 2, 3))
    areas = (drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1])
    np.testing.assert_array_equal(counts, areas)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_so_many_images_are_erased(probability: float) -> None:
    count = 4000
    erased = boxes(64, probability, count).any(axis=1)
    deviation = np.sqrt(probability * (1 - probability) / count)
    # Of a hundred thousand boxes not one is ten times too long.
    assert abs(erased.mean() - probability) <= 4 * deviation


def test_areas_aspects_and_places_are_even() -> None:
    size = 1000
    top, left, bottom, right = boxes(size, 1.0, 20_000).T
    high, wide = bottom - top, right - left
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= size).all()
    assert (right <= size).all()
    assert (high < size).all()
    assert (wide < size).all()
    area, aspect = high * wide / size**2, high / wide
    # Rounding to whole pixels moves the bounds a little.
    assert (area.min(), area.max()) == pytest.approx((0.02, 0.33), abs=0.001)
    assert (aspect.min(), aspect.max()) == pytest.approx((0.3, 3.3), rel=0.005)
    # Up to 30 % every shape fits (0.3 * 3.3 < 1), and there both are even.
    fits = area < 0.30
    for values, low, high_end in (
        (area[fits], 0.02, 0.30),
        (np.log(aspect[fits]), np.log(0.3), np.log(3.3)),
    ):
        counts, _ = np.histogram(values, 10, (low, high_end))
        assert np.abs(counts / counts.sum() - 0.1).max() < 0.01
    for place in (top / (size - high), left / (size - wide)):
        counts, _ = np.histogram(place, 10, (0, 1))
        assert np.abs(counts / counts.sum() - 0.1).max() < 0.01


def test_boxes_reach_every_border() -> None:
    top, left, bottom, right = boxes(10, 1.0, 500).T
    assert (top.min(), left.min(), bottom.max(), right.max()) == (0, 0, 10, 10)


def test_an_image_of_one_pixel_is_left_as_it_is() -> None:
    """Nothing shorter than a pixel but nothing itself fits."""
    drawn = boxes(1, 1.0, 50)
    assert ((drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1]) == 0).all()


def test_the_same_generator_state_gives_the_same_box() -> None:
    np.testing.assert_array_equal(boxes(32, 0.5, 20), boxes(32, 0.5, 20))
