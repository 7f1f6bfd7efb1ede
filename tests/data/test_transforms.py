"""The host's half of augmentation."""

from typing import Any

import numpy as np
import pytest

from resnext_jax.data.transforms import NUM_RANDOM, EvalTransform, TrainTransform, square_rgb


def image(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def example(size: int = 6, channels: int = 3) -> dict[str, Any]:
    return {"image": image(size, size, channels), "label": 7}


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Weights `[new, old]` of cubic convolution (Keys, a = -0.75, as OpenCV has it)."""
    a = -0.75

    def keys(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    weights = np.zeros((new, old))
    for place in range(new):
        centre = (place + 0.5) * old / new - 0.5  # of a pixel, not its corner
        left = int(np.floor(centre))
        for source in range(left - 1, left + 3):
            # Beyond the border the outermost pixel is repeated.
            weights[place, min(max(source, 0), old - 1)] += keys(centre - source)
    return weights


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 16), (8, 8, 12), (5, 9, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_bicubic(height: int, width: int, size: int, channels: int) -> None:
    old = image(height, width, channels)
    exact = np.einsum(
        "sh,hwc,tw->stc",
        bicubic_matrix(height, size),
        old.astype(float),
        bicubic_matrix(width, size),
    )
    expected = np.clip(exact, 0, 255)
    actual = square_rgb(old, size)
    assert actual.shape == (size, size, 3)
    assert actual.dtype == np.uint8
    # OpenCV's weights have 11 bits; then the result is rounded.
    assert np.abs(actual - np.broadcast_to(expected, actual.shape)).max() <= 1.0


def test_image_of_the_right_size_is_left_as_it_is() -> None:
    rgb = image(6, 6, 3)
    np.testing.assert_array_equal(square_rgb(rgb, 6), rgb)


def test_grey_becomes_three_equal_channels() -> None:
    grey = image(6, 6, 1)
    np.testing.assert_array_equal(square_rgb(grey, 6), np.concatenate([grey] * 3, axis=2))
    enlarged = square_rgb(grey, 9)
    for channel in (1, 2):
        np.testing.assert_array_equal(enlarged[..., channel], enlarged[..., 0])


def test_eval_transform_only_resizes() -> None:
    original = example(6, channels=1)
    result = EvalTransform(12)(original)
    assert result.keys() == {"image", "label"}
    np.testing.assert_array_equal(result["image"], square_rgb(original["image"], 12))
    assert result["label"] == 7
    assert result["label"].dtype == np.int32


def test_train_transform_without_flip_leaves_the_image() -> None:
    original = example()
    transform = TrainTransform(image_size=6, flip=False)
    for seed in range(20):
        result = transform(original, np.random.default_rng(seed))
        assert result.keys() == {"image", "label", "random"}
        np.testing.assert_array_equal(result["image"], original["image"])
        assert result["label"] == 7
        assert result["label"].dtype == np.int32


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    original = example()
    transform = TrainTransform(image_size=6, flip=True)
    mirrored = 0
    for seed in range(1000):
        result = transform(original, np.random.default_rng(seed))["image"]
        flipped = np.array_equal(result, original["image"][:, ::-1])
        assert flipped or np.array_equal(result, original["image"])
        mirrored += flipped
    # Three standard deviations of 1000 coins are 47; the seeds are fixed.
    assert 450 < mirrored < 550


def test_random_numbers_are_uniform_and_do_not_depend_on_the_flip() -> None:
    with_flip, without = TrainTransform(6, flip=True), TrainTransform(6, flip=False)
    drawn = []
    for seed in range(1000):
        random = with_flip(example(), np.random.default_rng(seed))["random"]
        assert random.shape == (NUM_RANDOM,)
        assert random.dtype == np.float32
        np.testing.assert_array_equal(
            random, without(example(), np.random.default_rng(seed))["random"]
        )
        drawn.append(random)
    numbers = np.stack(drawn)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in numbers.T])
    assert (np.abs(counts - 100) < 40).all()
    # Vertical and horizontal shift are two draws, not one.
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 0.1


def test_the_same_generator_state_gives_the_same_result() -> None:
    transform = TrainTransform(image_size=9, flip=True)
    original = example()
    untouched = original["image"].copy()
    results = [transform(original, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])
    assert (results[0]["random"] != results[2]["random"]).all()
    np.testing.assert_array_equal(original["image"], untouched)
