"""The host's half of augmentation."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data import trivial_augment
from resnext_jax.data.augment import NUM_RANDOM, DeviceTransform
from resnext_jax.data.decode import ImageFile, decode_rgb
from resnext_jax.data.erasing import draw_box
from resnext_jax.data.mixing import draw_mix
from resnext_jax.data.resize import resize
from resnext_jax.data.transforms import (
    CropWindow,
    DenseTransform,
    EvalTransform,
    TrainTransform,
    centre_window,
    random_window,
    ten_crops,
)
from tests.data import oracles
from tests.data.images import PHOTOGRAPHS, noise, photograph, photograph_file

WHOLE = TrainTransform(image_size=6, crop="whole", flip=True)


def example(size: int = 6) -> dict[str, Any]:
    return {"image": noise(size, size), "label": np.int32(7)}


def test_training_without_crop_and_flip_leaves_the_image() -> None:
    original = example()
    transform = TrainTransform(image_size=6, crop="whole", flip=False)
    for seed in range(20):
        result = transform(original, np.random.default_rng(seed))
        assert result.keys() == {"image", "label", "random"}
        np.testing.assert_array_equal(result["image"], original["image"])
        assert result["label"] == 7


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    original = example()
    mirrored = 0
    for seed in range(1000):
        result = WHOLE(original, np.random.default_rng(seed))["image"]
        flipped = np.array_equal(result, original["image"][:, ::-1])
        assert flipped or np.array_equal(result, original["image"])
        mirrored += flipped
    # Three standard deviations of 1000 coins are 47; the seeds are fixed.
    assert 450 < mirrored < 550


def test_random_numbers_do_not_depend_on_crop_and_flip() -> None:
    drawn = []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        random = WHOLE(example(), rng)["random"]
        assert (random.shape, random.dtype) == ((NUM_RANDOM,), np.float32)
        other = TrainTransform(image_size=3, crop="random_sized", flip=False)
        again = other(example(), np.random.default_rng(seed))["random"]
        np.testing.assert_array_equal(random, again)
        drawn.append(random)
    numbers = np.stack(drawn)
    uniform, normal = numbers[:, :5], numbers[:, 5:]
    assert uniform.min() >= 0
    assert uniform.max() < 1
    counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in uniform.T])
    assert (np.abs(counts - 100) < 40).all()
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(normal.std(axis=0), 1, atol=0.1)
    # Each of them is a draw of its own.
    assert (np.abs(np.corrcoef(numbers.T) - np.eye(NUM_RANDOM)) < 0.12).all()


@pytest.mark.parametrize("crop", ["whole", "random_sized"])
def test_the_same_generator_state_gives_the_same_result(crop: str) -> None:
    transform = TrainTransform(image_size=9, crop=crop, flip=True)
    original = example(20)
    untouched = original["image"].copy()
    results = [transform(original, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])
    assert (results[0]["random"] != results[2]["random"]).all()
    np.testing.assert_array_equal(original["image"], untouched)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_training_images_against_the_oracle(name: str, seed: int) -> None:
    """Host and device together, against plain float64 code with the same random numbers."""
    image = decode_rgb(photograph_file(name))
    host = TrainTransform(image_size=96, crop="random_sized", flip=True)
    shipped = host({"image": image}, np.random.default_rng(seed))
    assert (shipped["image"].shape, shipped["image"].dtype) == ((96, 96, 3), np.uint8)
    device = DeviceTransform((0, 0, 0), (1, 1, 1), colour=(0.4, 0.4, 0.4), lighting=0.1)
    batch = {key: value[None] for key, value in shipped.items()}
    actual = np.asarray(device.train(batch))[0]
    expected = oracles.train_image(
        image, np.random.default_rng(seed), size=96, colour=0.4, sigma=0.1
    )
    # What remains is rounding to whole grey levels on the way, and what bicubic overshoots.
    assert np.abs(actual - expected).mean() < 1.0
    # It tells: other random numbers give another image.
    other = oracles.train_image(image, np.random.default_rng(9), size=96, colour=0.4, sigma=0.1)
    assert np.abs(actual - other).mean() > 10


@pytest.mark.parametrize("crop", ["random_sized", "whole"])
def test_a_file_gives_what_its_pixels_give(crop: str) -> None:
    """Though of the file no more is decoded than the crop needs."""
    transform = TrainTransform(image_size=32, crop=crop, flip=True)
    for name in PHOTOGRAPHS:
        data = photograph_file(name)
        for seed in range(20):
            of_file, of_pixels = (
                transform({"image": image}, np.random.default_rng(seed))["image"]
                for image in (ImageFile(data), decode_rgb(data))
            )
            np.testing.assert_array_equal(of_file, of_pixels)


CROPPED = TrainTransform(image_size=12, crop="random_sized", flip=True)
# The keys that each brings along.
MODERN: list[tuple[dict[str, Any], set[str]]] = [
    ({"trivial_augment": True}, set()),
    ({"random_erase": 0.5}, {"erase"}),
    ({"mixup": 0.2}, {"mix"}),
    ({"cutmix": 1.0}, {"mix"}),
    (
        {"trivial_augment": True, "random_erase": 0.5, "mixup": 0.2, "cutmix": 1.0},
        {"erase", "mix"},
    ),
]


def test_a_plain_image_takes_no_other_random_numbers_than_ever() -> None:
    """Runs of before are repeated bit for bit."""
    original = example()
    for seed in range(50):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        result = WHOLE(original, rng)
        uniform, normal = other.random(5, np.float32), other.standard_normal(3, np.float32)
        np.testing.assert_array_equal(result["random"], np.concatenate([uniform, normal]))
        mirrored = other.random() < 0.5
        expected = original["image"][:, ::-1] if mirrored else original["image"]
        np.testing.assert_array_equal(result["image"], expected)
        assert result.keys() == {"image", "label", "random"}
        assert rng.bit_generator.state == other.bit_generator.state


@pytest.mark.parametrize(("options", "keys"), MODERN)
def test_what_is_turned_on_leaves_crop_flip_and_numbers_as_they_were(
    options: dict[str, Any], keys: set[str]
) -> None:
    """TrivialAugment, erasing and mixing draw in this order, after all else."""
    transform = dataclasses.replace(CROPPED, **options)
    original, untouched = example(20), example(20)["image"]
    varied = 0
    for seed in range(60):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        actual, plain = transform(original, rng), CROPPED(original, other)
        assert actual.keys() == plain.keys() | keys
        np.testing.assert_array_equal(actual["random"], plain["random"])
        expected = plain["image"]
        if transform.trivial_augment:
            expected = trivial_augment.apply(expected, *trivial_augment.draw(other))
        np.testing.assert_array_equal(actual["image"], expected)
        assert (actual["image"].shape, actual["image"].dtype) == ((12, 12, 3), np.uint8)
        varied += not np.array_equal(actual["image"], plain["image"])
        if "erase" in keys:
            assert actual["erase"].dtype == np.int32
            np.testing.assert_array_equal(actual["erase"], draw_box(other, 12, 0.5))
        if "mix" in keys:
            assert actual["mix"].dtype == np.float32
            alphas = {"mixup": transform.mixup, "cutmix": transform.cutmix}
            np.testing.assert_array_equal(actual["mix"], draw_mix(other, 12, **alphas))
        assert rng.bit_generator.state == other.bit_generator.state
    # Identity, and strengths near 0, leave an image as it is.
    assert 40 < varied < 60 if transform.trivial_augment else varied == 0
    np.testing.assert_array_equal(original["image"], untouched)


SHAPES = [(375, 500), (500, 375), (256, 256)]


def windows(height: int, width: int, count: int) -> list[CropWindow]:
    rng = np.random.default_rng(0)
    drawn = [random_window(height, width, rng) for _ in range(count)]
    # Ten draws that do not fit are rare in images of usual shape.
    found = [window for window in drawn if window is not None]
    assert len(found) > 0.999 * count
    return found


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_windows_lie_inside_the_image(height: int, width: int) -> None:
    for window in windows(height, width, 2000):
        assert 0 <= window.top <= height - window.height
        assert 0 <= window.left <= width - window.width
        assert window.cut(np.empty((height, width))).shape == (window.height, window.width)


def test_distribution_of_areas_and_aspects() -> None:
    """10,000 windows in a square so large that all but the largest always fit."""
    size = 4000
    found = windows(size, size, 10_000)
    area = np.array([w.height * w.width for w in found]) / size**2
    aspect = np.array([w.width / w.height for w in found])
    assert np.min(area) >= 0.0799
    # Up to 3/4 every aspect fits, so that there the density is even.
    inside = area[area < 0.75]
    counts, _ = np.histogram(inside, 10, (0.08, 0.75))
    assert np.abs(counts / len(inside) - 0.1).max() < 0.015
    assert aspect.min() >= 0.749
    assert aspect.max() <= 1.334
    # Ratios r and 1/r are as likely, so half are landscape; and r itself is uniform.
    small = aspect[area < 0.75]
    assert abs((small > 1).mean() - 0.5) < 0.02
    # By symmetry: the mean of r and 1/r, over r uniform in 3/4..4/3.
    expected = 0.5 * (25 / 24 + np.log(16 / 9) / (7 / 12))
    assert small.mean() == pytest.approx(expected, abs=0.005)
    assert (1 / small).mean() == pytest.approx(expected, abs=0.005)


def test_places_are_even() -> None:
    size = 1000
    found = [w for w in windows(size, size, 10_000) if w.height < size and w.width < size]
    for place in (
        np.array([w.top / (size - w.height) for w in found]),
        np.array([w.left / (size - w.width) for w in found]),
    ):
        counts, _ = np.histogram(place, 10, (0, 1))
        assert np.abs(counts / len(found) - 0.1).max() < 0.02


def test_both_borders_can_be_reached() -> None:
    found = [w for w in windows(12, 12, 2000) if w.height < 12]
    assert {0, 12} <= {w.top for w in found} | {w.top + w.height for w in found}


def test_an_image_into_which_no_window_fits() -> None:
    """Its short side is made S, and the centre cut out."""
    assert all(random_window(4, 400, np.random.default_rng(seed)) is None for seed in range(20))
    image = noise(4, 400)
    transform = TrainTransform(image_size=8, crop="random_sized", flip=False)
    actual = transform({"image": image}, np.random.default_rng(0))["image"]
    # 400 columns become 800, of which 396 to 404 are the middle, 198 to 202 before.
    expected = oracles.resized(image, (8, 800), oracles.point_sampled("bicubic"))[:, 396:404]
    assert np.abs(actual - np.clip(expected, 0, 255)).max() <= 1


def test_a_single_pixel_can_be_cropped() -> None:
    transform = TrainTransform(image_size=3, crop="random_sized", flip=True)
    image = np.full((1, 1, 3), 77, np.uint8)
    result = transform({"image": image}, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(result, np.full((3, 3, 3), 77))


@pytest.mark.parametrize(
    ("height", "width", "size", "top", "left"),
    [(256, 341, 224, 16, 59), (320, 320, 320, 0, 0), (5, 6, 4, 1, 1), (7, 4, 4, 2, 0)],
)
def test_centre(height: int, width: int, size: int, top: int, left: int) -> None:
    image = np.empty((height, width, 3))
    assert centre_window(image, size, size) == CropWindow(top, left, size, size)


@pytest.mark.parametrize(
    ("height", "width", "short_side", "top", "left"),
    [
        (375, 500, 256, 16, 58),
        (427, 640, 256, 16, 80),
        (500, 334, 232, 62, 4),
        (225, 227, 225, 0, 2),
    ],
)
def test_the_centre_as_torchvision_has_it(
    height: int, width: int, short_side: int, top: int, left: int
) -> None:
    """Numbers of its `CenterCrop`, which halves to the even number."""
    image = noise(height, width)
    rows, columns = (side * short_side // min(height, width) for side in (height, width))
    resized = resize(image, rows, columns, interpolation="bilinear", antialias=True)
    expected = resized[top : top + 224, left : left + 224]
    options: dict[str, Any] = {"interpolation": "bilinear", "centre": "torchvision"}
    one = EvalTransform(224, short_side, **options)({"image": image})["image"]
    np.testing.assert_array_equal(one, expected)
    ten = EvalTransform(224, short_side, crops="ten", **options)({"image": image})["image"]
    np.testing.assert_array_equal(ten[4], expected)


def test_the_centre_need_not_be_square() -> None:
    assert centre_window(np.empty((7, 9, 3)), 4, 8) == CropWindow(2, 1, 4, 8)


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(
    ("size", "short_side", "long_side"), [(224, 256, 383), (320, 320, 479), (200, 250, 374)]
)
def test_test_images_as_pillow_makes_them(
    size: int, short_side: int, long_side: int, upright: bool
) -> None:
    """Of 640x427 the long side is rounded down."""
    turn = Image.Transpose.TRANSPOSE
    picture, shape = photograph("china"), (long_side, short_side)
    if upright:
        picture, shape = picture.transpose(turn), shape[::-1]
    left, top = ((side - size + 1) // 2 for side in shape)
    expected = picture.resize(shape, Image.Resampling.BICUBIC).crop(
        (left, top, left + size, top + size)
    )
    actual = EvalTransform(size, short_side)({"image": np.asarray(picture), "label": 3})
    assert actual["label"] == 3
    np.testing.assert_array_equal(actual["image"], np.asarray(expected))


def test_torch7_test_images_are_not_antialiased() -> None:
    image = decode_rgb(photograph_file("flower"))
    actual = EvalTransform(224, 256, interpolation="torch7")({"image": image})["image"]
    expected = oracles.resized(image, (256, 383), oracles.torch7_matrix)[16:240, 80:304]
    assert np.abs(actual - np.clip(expected, 0, 255)).max() < 0.6
    smooth = EvalTransform(224, 256)({"image": image})["image"]
    assert np.abs(smooth.astype(int) - actual).mean() > 1


def test_whole_images_are_made_square() -> None:
    image = noise(4, 8)
    actual = EvalTransform(6, short_side=None, antialias=False)({"image": image})["image"]
    expected = oracles.resized(image, (6, 6), oracles.point_sampled("bicubic"))
    assert np.abs(actual - np.clip(expected, 0, 255)).max() <= 1


@pytest.mark.parametrize("upright", [False, True])
def test_ten_crops_as_pillow_makes_them(upright: bool) -> None:
    picture, shape = photograph("china"), (383, 256)
    if upright:
        picture, shape = picture.transpose(Image.Transpose.TRANSPOSE), (256, 383)
    right, bottom = (side - 224 for side in shape)
    centre = ((right + 1) // 2, (bottom + 1) // 2)
    resized = picture.resize(shape, Image.Resampling.BICUBIC)
    expected = [
        resized.crop((left, top, left + 224, top + 224))
        for left, top in ((0, 0), (right, 0), (0, bottom), (right, bottom), centre)
    ]
    expected += [crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for crop in expected]
    transform = EvalTransform(224, 256, crops="ten")
    actual = transform({"image": np.asarray(picture), "label": 3})
    assert (actual["image"].dtype, actual["label"]) == (np.uint8, 3)
    np.testing.assert_array_equal(actual["image"], np.stack([np.asarray(c) for c in expected]))
    # The fifth is the one that is scored alone.
    alone = EvalTransform(224, 256)({"image": np.asarray(picture)})["image"]
    np.testing.assert_array_equal(actual["image"][4], alone)


def test_ten_crops_of_an_image_of_their_size_are_the_image_and_its_mirror() -> None:
    image = noise(5, 5)
    crops = ten_crops(image, 5)
    np.testing.assert_array_equal(crops[:5], np.stack([image] * 5))
    np.testing.assert_array_equal(crops[5:], np.stack([image[:, ::-1]] * 5))


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (427, 640, 224, (224, 320)),  # 335 is cut to 10 * 32
        (640, 427, 224, (320, 224)),
        (375, 500, 480, (480, 640)),  # 640 as it is
        (500, 500, 384, (384, 384)),
        (100, 101, 256, (256, 256)),
        (50, 60, 73, (73, 73)),  # 87 would be cut to 64, less than the short side
        (50, 70, 73, (73, 96)),
        (1, 1, 40, (40, 40)),
    ],
)
def test_shapes_for_dense_testing(
    height: int, width: int, short_side: int, expected: tuple[int, int]
) -> None:
    transform = DenseTransform(stride=32)
    assert transform.shape(height, width, short_side) == expected
    image = np.zeros((height, width, 3), np.uint8)
    assert transform(image, short_side).shape == (*expected, 3)


@pytest.mark.parametrize("upright", [False, True])
def test_images_for_dense_testing_as_pillow_makes_them(upright: bool) -> None:
    picture, shape, box = photograph("flower"), (575, 384), (16, 0, 560, 384)
    if upright:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
        shape, box = (384, 575), (0, 16, 384, 560)
    expected = picture.resize(shape, Image.Resampling.BICUBIC).crop(box)
    actual = DenseTransform(stride=32)(np.asarray(picture), 384)
    np.testing.assert_array_equal(actual, np.asarray(expected))
