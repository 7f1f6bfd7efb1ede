"""The device's half of augmentation, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.data.augment import (
    NUM_RANDOM,
    DeviceTransform,
    shift,
    vary_colour,
    vary_lighting,
)
from tests.data import oracles

MEAN, STD = (120.0, 110.5, 30.0), (60.0, 61.25, 7.0)


def batch(images: int = 4, size: int = 5, random: float = 0.0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8)),
        "random": jnp.full((images, NUM_RANDOM), random, jnp.float32),
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
        "random": jnp.zeros((1, NUM_RANDOM), jnp.float32),
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


# Amounts that leave an operation out: the factor is 1.
NEUTRAL = 0.5


def colours(images: int = 6, size: int = 5) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (images, size, size, 3))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("operation", [0, 1, 2])
def test_each_colour_operation_by_its_formula(operation: int) -> None:
    """The factor goes from 1 - 0.4 to 1 + 0.4."""
    images = colours()
    drawn = np.array([0.0, 0.25, 0.5, 0.75, 0.9, 0.999])
    amounts = np.full((6, 3), NEUTRAL)
    amounts[:, operation] = drawn
    actual = vary_colour(jnp.asarray(images), jnp.asarray(amounts), (0.4, 0.4, 0.4))
    expected = [
        oracles.OPERATIONS[operation](image, factor)
        for image, factor in zip(images, 0.6 + 0.8 * drawn, strict=True)
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("order", oracles.ORDERS)
def test_every_order_of_the_colour_operations_is_the_same(order: tuple[int, ...]) -> None:
    images = colours()
    amounts = np.random.default_rng(3).random((6, 3))
    largest = (0.5, 0.4, 0.3)
    actual = np.asarray(vary_colour(jnp.asarray(images), jnp.asarray(amounts), largest))
    expected = []
    factors_of_images = 1 + np.asarray(largest) * (2 * amounts - 1)
    for image, factors in zip(images, factors_of_images, strict=True):
        for operation in order:
            image = oracles.OPERATIONS[operation](image, factors[operation])
        expected.append(image)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-10)
    # Nothing was clipped on the way, on which it rests.
    assert actual.max() > 255


@pytest.mark.usefixtures("float64")
def test_lighting_by_its_formula() -> None:
    images = colours()
    amounts = 0.1 * np.random.default_rng(2).standard_normal((6, 3))
    actual = vary_lighting(jnp.asarray(images), jnp.asarray(amounts))
    expected = [oracles.lighting(*pair) for pair in zip(images, amounts, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-10)


def test_columns_of_the_random_numbers() -> None:
    """Each does what it is there for, and nothing else."""
    transform = DeviceTransform((0, 0, 0), (1, 1, 1), colour=(0.4, 0.4, 0.4), lighting=0.1)
    neutral = np.full((1, NUM_RANDOM), NEUTRAL, np.float32)
    neutral[:, 5:] = 0
    image = jnp.asarray(colours(1), jnp.uint8)
    plain = np.asarray(image, float)[0]

    def vary(**columns: float) -> np.ndarray:
        random = neutral.copy()
        for name, value in columns.items():
            random[:, int(name[1:])] = value
        return np.asarray(transform.train({"image": image, "random": jnp.asarray(random)}))[0]

    def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-3)

    assert_close(vary(), plain)
    assert_close(vary(c0=0.1, c1=0.9), plain)  # no shift here
    for column, operation in enumerate(oracles.OPERATIONS, start=2):
        assert_close(vary(**{f"c{column}": 0.75}), operation(plain, 1.2))
    assert_close(
        vary(c5=1.0, c6=-2.0, c7=0.5),
        oracles.lighting(plain, 0.1 * np.array([1.0, -2.0, 0.5])),
    )


def test_test_images_are_not_varied() -> None:
    transform = DeviceTransform(MEAN, STD, max_shift=2, colour=(0.4, 0.4, 0.4), lighting=0.1)
    plain = DeviceTransform(MEAN, STD)
    np.testing.assert_array_equal(transform.test(batch()), plain.test(batch()))


def test_each_image_is_varied_by_its_own_numbers() -> None:
    """So it does not matter which images share a device."""
    transform = DeviceTransform(MEAN, STD, max_shift=1, colour=(0.4, 0.4, 0.4), lighting=0.1)
    together = batch(8)
    together["random"] = jnp.asarray(
        np.random.default_rng(0).random((8, NUM_RANDOM), dtype=np.float32)
    )
    all_at_once = transform.train(together)
    alone = [
        transform.train({name: array[i : i + 1] for name, array in together.items()})[0]
        for i in range(8)
    ]
    np.testing.assert_allclose(all_at_once, jnp.stack(alone), rtol=1e-5, atol=1e-5)


def test_boxes_are_erased_after_all_else() -> None:
    """What else is done is done as without them; the box is of the image as it ends up."""
    transform = DeviceTransform(MEAN, STD, max_shift=1, colour=(0.4, 0.4, 0.4), lighting=0.1)
    plain = batch(3, size=6) | {
        "random": jnp.asarray(np.random.default_rng(0).random((3, NUM_RANDOM), dtype=np.float32))
    }
    boxes = np.array([[0, 0, 0, 0], [1, 2, 4, 6], [5, 0, 6, 1]], np.int32)
    expected = np.asarray(transform.train(plain)).copy()
    assert (expected != 0).any(axis=(1, 2, 3)).all()
    expected[1, 1:4, 2:6] = 0
    expected[2, 5, 0] = 0
    actual = transform.train(plain | {"erase": jnp.asarray(boxes)})
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, expected)
    # Test images are not erased.
    tested = transform.test(plain | {"erase": jnp.asarray(boxes)})
    np.testing.assert_array_equal(tested, transform.test(plain))
