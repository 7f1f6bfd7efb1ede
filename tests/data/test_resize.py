"""Every rule of resizing against its formula, in float64."""

import io

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data.resize import INTERPOLATIONS, resize
from tests.data.images import noise, photograph, photograph_file
from tests.data.oracles import point_sampled, resized, torch7_matrix

SIZES = [((8, 8), (16, 16)), ((8, 8), (12, 12)), ((5, 9), (7, 7)), ((40, 31), (13, 17))]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_without_antialiasing_points_are_sampled(
    interpolation: str, old: tuple[int, int], new: tuple[int, int]
) -> None:
    image = noise(*old)
    expected = resized(image, new, point_sampled(interpolation))
    actual = resize(image, *new, interpolation=interpolation, antialias=False)
    assert (actual.shape, actual.dtype.name) == ((*new, 3), "uint8")
    # OpenCV's weights have 11 bits; then the result is rounded.
    assert np.abs(actual - np.clip(expected, 0, 255)).max() <= 1.0


@pytest.mark.parametrize(("old", "new"), [*SIZES, ((1, 1), (3, 3)), ((1, 7), (2, 3))])
@pytest.mark.parametrize("antialias", [False, True])
def test_torch7(old: tuple[int, int], new: tuple[int, int], antialias: bool) -> None:
    image = noise(*old)
    expected = np.clip(resized(image, new, torch7_matrix), 0, 255)
    actual = resize(image, *new, interpolation="torch7", antialias=antialias)
    assert (actual.shape, actual.dtype.name) == ((*new, 3), "uint8")
    assert np.abs(actual - expected).max() <= 0.5 + 1e-3


def test_torch7_keeps_the_corners() -> None:
    image = noise(9, 11)
    actual = resize(image, 5, 30, interpolation="torch7", antialias=False)
    for row in (0, -1):
        for column in (0, -1):
            np.testing.assert_array_equal(actual[row, column], image[row, column])


@pytest.mark.parametrize(
    ("interpolation", "filter_"),
    [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)],
)
def test_antialiased_as_pillow_does_it(interpolation: str, filter_: Image.Resampling) -> None:
    picture = Image.open(io.BytesIO(photograph_file("china")))
    expected = np.asarray(picture.resize((100, 67), filter_))
    image = np.asarray(picture)
    actual = resize(image, 67, 100, interpolation=interpolation, antialias=True)
    np.testing.assert_array_equal(actual, expected)
    # Also of a part of an image, which is not one piece of memory.
    part = np.asarray(picture.crop((3, 5, 103, 205)).resize((50, 50), filter_))
    view = image[5:205, 3:103]
    np.testing.assert_array_equal(
        resize(view, 50, 50, interpolation=interpolation, antialias=True), part
    )


def test_antialiasing_matters_when_shrinking() -> None:
    """A fine pattern turns to even grey; points sampled from it do not."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    smooth = resize(stripes, 16, 16, interpolation="bicubic", antialias=True)
    sampled = resize(stripes, 17, 17, interpolation="bicubic", antialias=False)
    assert smooth[:, 2:-2].std() < 2
    assert sampled.std() > 20


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_an_image_of_the_right_size_is_left_as_it_is(interpolation: str, antialias: bool) -> None:
    image = np.asarray(photograph("flower", 20, 30))
    actual = resize(image, 30, 20, interpolation=interpolation, antialias=antialias)
    np.testing.assert_array_equal(actual, image)
