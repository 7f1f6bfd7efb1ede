"""Every operation of TrivialAugment at every strength, against plain NumPy."""

import collections
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from resnext_jax.data.trivial_augment import OPERATIONS, STRONGEST, apply, draw
from tests.data.images import noise, photograph

SIGNED = {
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
}
PLAIN = {"identity", "autocontrast", "equalise"}  # without strengths

Placed = tuple[np.ndarray, np.ndarray]  # an image, and where rounding may decide about black


def levels(operation: str) -> range:
    return range(-STRONGEST, STRONGEST + 1) if operation in SIGNED else range(STRONGEST + 1)


def small_photograph() -> np.ndarray:
    return np.asarray(photograph("china", 45, 38))


IMAGES = {"photograph": small_photograph, "noise": lambda: noise(21, 16)}


def sampled(image: np.ndarray, matrix: np.ndarray) -> Placed:
    """Bilinear, black beyond the border; pixel centres are at halves."""
    height, width = image.shape[:2]
    ys, xs = np.mgrid[:height, :width] + 0.5
    from_x, from_y = np.einsum("ij,jhw->ihw", matrix, np.stack([xs, ys, np.ones_like(xs)]))
    there = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    borders = [from_x, width - from_x, from_y, height - from_y]
    unsure = np.min(np.abs(borders), axis=0) < 1e-6
    x, y = from_x - 0.5, from_y - 0.5
    result = np.zeros(image.shape)
    for row, row_weight in ((np.floor(y), 1 - y % 1), (np.floor(y) + 1, y % 1)):
        for column, column_weight in ((np.floor(x), 1 - x % 1), (np.floor(x) + 1, x % 1)):
            pixels = image[
                row.clip(0, height - 1).astype(int), column.clip(0, width - 1).astype(int)
            ]
            result += (row_weight * column_weight)[..., None] * pixels
    return np.where(there[..., None], result, 0), unsure


def affine(image: np.ndarray, level: int, operation: str) -> Placed:
    height, width = image.shape[:2]
    matrix = np.eye(2, 3)
    if operation.startswith("shear"):
        axis = operation == "shear_y"
        matrix[int(axis), 1 - int(axis)] = 0.99 * level / 30
    elif operation.startswith("translate"):
        # Content moves right or down by whole pixels.
        matrix[int(operation == "translate_y"), 2] = -np.trunc(32 * level / 30)
    else:
        # What is seen at an angle came from the angle before: counter-clockwise, y downwards.
        angle = np.radians(4.5 * level)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array([width / 2, height / 2])
        matrix = np.column_stack([turn, centre - turn @ centre])
    return sampled(image, matrix)


def grey(image: np.ndarray) -> np.ndarray:
    """Luma (BT.601) in whole numbers, its weights in parts of 65536, `[H, W]`."""
    return (image.astype(int) @ np.array([19595, 38470, 7471]) + 32768) // 65536


def smoothed(image: np.ndarray) -> np.ndarray:
    """Mean of the 3x3 neighbours, the pixel itself five times; the border as it is."""
    result = image.astype(float)
    shifts = itertools.product((-1, 0, 1), repeat=2)
    total = sum((np.roll(result, shift, (0, 1)) for shift in shifts), 4 * result)
    result[1:-1, 1:-1] = np.floor(total / 13 + 0.5)[1:-1, 1:-1]
    return result


def blended(image: np.ndarray, level: int, operation: str) -> np.ndarray:
    others: dict[str, Callable[[], np.ndarray]] = {
        "brightness": lambda: np.zeros(image.shape),
        "colour": lambda: np.broadcast_to(grey(image)[..., None], image.shape),
        "contrast": lambda: np.full(image.shape, np.floor(grey(image).mean() + 0.5)),
        "sharpness": lambda: smoothed(image),
    }
    factor = 1 + 0.99 * level / 30
    return np.clip(factor * image + (1 - factor) * others[operation](), 0, 255)


def by_table(image: np.ndarray, level: int, operation: str) -> np.ndarray:
    """Operations that map values one by one, channel by channel."""
    if operation == "posterise":
        dropped = 2 ** round(level / 5)  # 1 to 64
        return image // dropped * dropped
    if operation == "solarise":
        return np.where(image < 255 - 8.5 * level, image, 255 - image)
    result = np.empty(image.shape)
    for channel in range(3):
        values = image[..., channel].astype(float)
        if operation == "autocontrast":
            low, high = values.min(), values.max()
            result[..., channel] = (values - low) * 255 / (high - low)
        else:
            counts = np.bincount(values.astype(int).ravel(), minlength=256)
            # The last value's pixels are left out of the step, and half a step is added.
            step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
            below = np.cumsum(counts) - counts
            table = (below + step // 2) // step if step else np.arange(256)
            result[..., channel] = np.minimum(table, 255)[values.astype(int)]
    return result


def expected(image: np.ndarray, operation: str, level: int) -> Placed:
    nowhere = np.zeros(image.shape[:2], bool)
    if operation == "identity":
        return image, nowhere
    if operation in ("brightness", "colour", "contrast", "sharpness"):
        return blended(image, level, operation), nowhere
    if operation in SIGNED:
        return affine(image, level, operation)
    return by_table(image, level, operation), nowhere


def test_operations_are_those_of_the_wide_space() -> None:
    others = {"posterise", "solarise"}
    assert set(OPERATIONS) == SIGNED | PLAIN | others
    assert len(OPERATIONS) == 14
    assert STRONGEST + 1 == 31


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_strength_against_numpy(operation: str, name: str) -> None:
    image = IMAGES[name]()
    untouched = image.copy()
    for level in levels(operation):
        actual = apply(image, operation, level)
        assert (actual.shape, actual.dtype.name) == (image.shape, "uint8")
        wanted, unsure = expected(image, operation, level)
        difference = np.abs(actual - wanted)[~unsure]
        exact = operation in PLAIN - {"autocontrast"} | {"posterise", "solarise"}
        # Pillow cuts fractions off.
        assert difference.max() <= (0 if exact else 1.001), level
    np.testing.assert_array_equal(image, untouched)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_strengths_differ_and_grow(operation: str) -> None:
    """The strongest changes most, so that the oracle's tolerance hides nothing."""
    image = small_photograph()
    changes = [
        np.abs(apply(image, operation, level) - image.astype(float)).mean()
        for level in range(STRONGEST + 1)
    ]
    if operation in PLAIN:
        assert len(set(changes)) == 1
    else:
        # Solarising with strength 0 still turns 255 into 0.
        assert changes[0] == 0 or operation == "solarise"
        assert max(changes) > 4
        assert max(changes[:10]) < max(changes)
    if operation in SIGNED:
        assert (apply(image, operation, STRONGEST) != apply(image, operation, -STRONGEST)).any()
    else:
        np.testing.assert_array_equal(apply(image, operation, 30), apply(image, operation, -30))


def marked(height: int, width: int, row: int, column: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[row, column] = (200, 100, 50)
    return image


def place(image: np.ndarray) -> tuple[int, int]:
    rows, columns = np.nonzero(image[..., 0])
    assert len(rows) == 1
    return int(rows[0]), int(columns[0])


def test_directions_by_hand() -> None:
    """Translations to the right and down, rotation counter-clockwise, shears from the top left."""
    image = marked(81, 81, 40, 10)
    assert place(apply(image, "translate_x", 30)) == (40, 42)
    assert place(apply(image, "translate_y", -30)) == (8, 10)
    assert place(apply(image, "translate_x", 15)) == (40, 26)  # 16 pixels
    assert place(apply(image, "translate_x", 1)) == (40, 11)  # 1.07, cut off
    # 90 degrees: from the left to the bottom.
    assert place(apply(image, "rotate", 20)) == (70, 40)
    assert place(apply(image, "rotate", -20)) == (10, 40)
    corner = np.full((9, 9, 3), 90, np.uint8)
    for operation in ("shear_x", "shear_y"):
        sheared = apply(corner, operation, 30)[..., 0]
        assert sheared[0, 0] == 90
        assert sheared[-1, -1] == 0  # taken from beyond the far border
    np.testing.assert_array_equal(
        apply(corner, "shear_y", 30), apply(corner, "shear_x", 30).transpose(1, 0, 2)
    )


def test_values_by_hand() -> None:
    image = np.array([[[0, 77, 255], [128, 200, 3]]], np.uint8)
    assert apply(image, "brightness", 30).tolist() == [[[0, 153, 255], [254, 255, 5]]]
    assert apply(image, "brightness", -30).tolist() == [[[0, 0, 2], [1, 2, 0]]]
    assert apply(image, "posterise", 30).tolist() == [[[0, 64, 192], [128, 192, 0]]]
    assert apply(image, "solarise", 30).tolist() == (255 - image).tolist()
    # Level 15: from 127.5 on.
    assert apply(image, "solarise", 15).tolist() == [[[0, 77, 0], [127, 55, 3]]]
    assert apply(image, "autocontrast", 0).tolist() == [[[0, 0, 255], [255, 255, 0]]]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_single_pixel_and_one_colour_are_no_trouble(operation: str) -> None:
    for image in (np.zeros((1, 1, 3), np.uint8), np.full((5, 3, 3), 255, np.uint8)):
        for level in (-30, 0, 30):
            assert apply(image, operation, level).shape == image.shape


def test_draws_are_even_and_independent() -> None:
    rng = np.random.default_rng(0)
    count = 30_000
    drawn = [draw(rng) for _ in range(count)]
    operations = collections.Counter(operation for operation, _ in drawn)
    assert operations.keys() == set(OPERATIONS)
    signs = collections.Counter(np.sign(level) for _, level in drawn if level)
    pairs = collections.Counter((operation, abs(level)) for operation, level in drawn)
    cells = len(OPERATIONS) * (STRONGEST + 1)
    for counts, cells in ((operations, 14), (signs, 2), (pairs, 14 * 31)):
        values = np.array(list(counts.values()))
        assert len(values) == cells
        even = values.sum() / cells
        # Chi-square: cells - 1 on average, with a variance of twice that.
        square = ((values - even) ** 2 / even).sum()
        assert abs(square - (cells - 1)) < 4 * np.sqrt(2 * (cells - 1))


def test_three_numbers_are_drawn_each_time() -> None:
    for seed in range(20):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        operation, level = draw(rng)
        assert operation == OPERATIONS[other.integers(14)]
        assert abs(level) == other.integers(31)
        negative = other.integers(2) == 0
        assert level <= 0 if negative else level >= 0
        assert rng.bit_generator.state == other.bit_generator.state
