"""The device's half of augmentation, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.data.augment import DeviceTransform, shift

MEAN, STD = (120.0, 110.5, 30.0), (60.0, 61.25, 7.0)


def batch(images: int = 4, size: int = 5, random: float = 0.0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8)),
        "random": jnp.full((images, 2), random, jnp.float32),
    }


def normalised(images: jax.Array) -> np.ndarray:
    exact = (np.asarray(images, "float64") - np.asarray(MEAN)) / np.asarray(STD)
    return exact.astype("float32")


@pytest.mark.parametrize("max_shift", [0, 2])
def test_test_images_are_normalised_only(max_shift: int) -> None:
    images = DeviceTransform(MEAN, STD, max_shift).test(batch())
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, normalised(batch()["image"]), rtol=3e-7, atol=1e-7)


def test_normalise_by_hand() -> None:
    image = jnp.asarray([[[[255, 0, 30]]]], jnp.uint8)
    actual = DeviceTransform(MEAN, STD, 0).test({"image": image})
    np.testing.assert_allclose(actual[0, 0, 0], [135 / 60, -110.5 / 61.25, 0.0], rtol=3e-7, atol=0)


def test_without_shift_training_images_are_the_test_images() -> None:
    transform = DeviceTransform(MEAN, STD, max_shift=0)
    np.testing.assert_array_equal(transform.train(batch()), transform.test(batch()))


@pytest.mark.usefixtures("float64")
def test_stays_float32_in_a_double_precision_session() -> None:
    transform = DeviceTransform(MEAN, STD, max_shift=1)
    assert transform.train(batch()).dtype == jnp.float32
    assert transform.test(batch()).dtype == jnp.float32


def test_zeros_come_in_after_normalising() -> None:
    """A black pixel is -mean / std; the border is the mean's own grey, 0."""
    black = {
        "image": jnp.zeros((1, 4, 4, 3), jnp.uint8),
        "random": jnp.zeros((1, 2), jnp.float32),
    }
    image = np.asarray(DeviceTransform(MEAN, STD, max_shift=1).train(black))[0]
    assert (image[0] == 0).all()
    assert (image[:, 0] == 0).all()
    np.testing.assert_allclose(
        image[1:, 1:], np.broadcast_to(normalised(jnp.zeros(3)), (3, 3, 3)), rtol=3e-7
    )


@pytest.mark.parametrize(
    ("random", "vertical", "horizontal"),
    [
        ((0.0, 0.0), 2, 2),  # the window starts in the border: the image moves down and right
        ((0.5, 0.5), 0, 0),
        ((0.0, 0.5), 2, 0),
        ((0.5, 0.0), 0, 2),
        ((0.999, 0.3), -2, 1),
        ((0.21, 0.79), 1, -1),
    ],
)
def test_shift_by_known_random_numbers(
    random: tuple[float, float], vertical: int, horizontal: int
) -> None:
    """With 5 places of 0.2 each, 0.5 is the middle one."""
    images = jnp.arange(1.0, 1 + 6 * 7 * 2).reshape(1, 6, 7, 2)
    actual = np.asarray(shift(images, jnp.asarray([random], jnp.float32), 2))
    expected = np.zeros(images.shape, "float32")
    for row in range(6):
        for column in range(7):
            old_row, old_column = row - vertical, column - horizontal
            if 0 <= old_row < 6 and 0 <= old_column < 7:
                expected[0, row, column] = images[0, old_row, old_column]
    np.testing.assert_array_equal(actual, expected)


def moved(random: np.ndarray, max_shift: int) -> np.ndarray:
    """Where `shift` moves the middle pixel of an image, for random numbers `[N, 2]`."""
    size = 2 * max_shift + 1
    images = jnp.zeros((len(random), size, size, 1))
    images = images.at[:, max_shift, max_shift].set(1.0)
    places = np.argwhere(np.asarray(shift(images, jnp.asarray(random), max_shift))[..., 0])
    assert places[:, 0].tolist() == list(range(len(random)))  # one pixel an image
    return places[:, 1:] - max_shift


@pytest.mark.parametrize("max_shift", [1, 2, 4])
def test_every_shift_is_as_likely(max_shift: int) -> None:
    places = 2 * max_shift + 1
    even = (np.arange(40 * places, dtype=np.float32) + 0.5) / (40 * places)
    vertical = moved(np.stack([even, np.zeros_like(even)], axis=1), max_shift)
    horizontal = moved(np.stack([np.zeros_like(even), even], axis=1), max_shift)
    for offsets in (vertical[:, 0], horizontal[:, 1]):
        values, counts = np.unique(offsets, return_counts=True)
        assert values.tolist() == list(range(-max_shift, max_shift + 1))
        assert counts.tolist() == [40] * places
    assert (vertical[:, 1] == max_shift).all()
    assert (horizontal[:, 0] == max_shift).all()


@pytest.mark.parametrize("max_shift", [1, 2, 4, 8, 16])
def test_the_largest_random_number_is_the_last_place(max_shift: int) -> None:
    """1 - 2**-24 times the number of places may round up to that number."""
    largest = np.nextafter(np.float32(1), np.float32(0))
    assert (moved(np.full((1, 2), largest, np.float32), max_shift) == -max_shift).all()


def test_each_image_is_moved_by_its_own_numbers() -> None:
    random = np.asarray([[0.0, 0.5], [0.5, 0.99], [0.99, 0.0]], np.float32)
    assert moved(random, 1).tolist() == [[1, 0], [0, -1], [-1, 1]]
