"""Mixing against a plain double loop, its draws, and that devices and hosts do not matter."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.config.build import device_transform, train_transform
from resnext_jax.configs import imagenet
from resnext_jax.data.augment import Batch
from resnext_jax.data.mixing import MIX, NUM_MIX, draw_mix, mix, partners
from resnext_jax.data.pipeline import HostBatch, host_positions, train_batches
from resnext_jax.parallel.mesh import BATCH as SHARDED
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from tests.data.images import photograph_source

# Alphas of mixup and CutMix.
BOTH = (0.2, 1.0)


def drawn(
    count: int, size: int, *, mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([draw_mix(rng, size, mixup=mixup, cutmix=cutmix) for _ in range(count)])


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def double_loop(images: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mix by the definition, pixel by pixel, in float64."""
    count, height, width, _ = images.shape
    mixed, shares = images.astype(float), np.zeros(count)
    for image in range(count):
        pair = image // 2 * 2
        other = pair + 1 if image == pair else pair
        _, weight, *box = numbers[pair].tolist()
        top, left, bottom, right = map(int, box)
        pasted = 0
        for row in range(height):
            for column in range(width):
                if top <= row < bottom and left <= column < right:
                    pasted += 1
                    own, foreign = (images[i, row, column].astype(float) for i in (image, other))
                    mixed[image, row, column] = weight * own + (1 - weight) * foreign
        shares[image] = 1 - (1 - weight) * pasted / (height * width)
    return mixed, shares


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0), (0, 1.0), BOTH])
def test_against_a_double_loop(mixup: float, cutmix: float) -> None:
    images, numbers = normal(12, 9, 9, 3), drawn(12, 9, mixup=mixup, cutmix=cutmix)
    mixed, shares = mix(jnp.asarray(images), jnp.asarray(numbers))
    assert [array.dtype.name for array in (mixed, shares)] == ["float32", "float32"]
    expected, expected_shares = double_loop(images, numbers)
    np.testing.assert_allclose(mixed, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(shares, expected_shares, rtol=1e-6, atol=1e-7)
    # Both of a pair keep as much, and pairs differ.
    assert (shares[::2] == shares[1::2]).all()
    assert len(np.unique(shares)) > 3


def test_images_that_are_not_square() -> None:
    images = normal(4, 4, 7, 1)
    numbers = np.zeros((4, NUM_MIX), "float32")
    numbers[0] = [1 - 8 / 28, 0, 1, 2, 3, 6]
    numbers[2] = [0.5, 0.5, 0, 0, 4, 7]
    mixed, shares = mix(jnp.asarray(images), jnp.asarray(numbers))
    expected, expected_shares = double_loop(images, numbers)
    np.testing.assert_array_equal(mixed, expected.astype("float32"))
    np.testing.assert_allclose(shares, expected_shares, rtol=1e-6)


def test_the_share_is_what_is_left_of_an_image() -> None:
    """Counted where one image is all 1 and its partner all 0."""
    count, size = 400, 16
    images = np.zeros((count, size, size, 1), "float32")
    images[::2] = 1
    numbers = drawn(count, size, mixup=0.2, cutmix=1.0)
    mixed, shares = mix(jnp.asarray(images), jnp.asarray(numbers))
    left = np.asarray(mixed).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(left[::2], shares[::2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(1 - left[1::2], shares[1::2], rtol=0, atol=1e-6)
    assert shares.min() >= 0
    assert shares.max() <= 1


def test_the_second_images_numbers_are_not_used() -> None:
    images = jnp.asarray(normal(4, 6, 6, 3))
    numbers = drawn(4, 6, mixup=0.2, cutmix=1.0)
    other = numbers.copy()
    other[1::2] = drawn(2, 6, mixup=0.2, cutmix=1.0, seed=7)
    assert (other != numbers).any()
    results = [mix(images, jnp.asarray(array)) for array in (numbers, other)]
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_partners_are_neighbours() -> None:
    assert partners(jnp.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]
    array = normal(8, 2, 3)
    np.testing.assert_array_equal(partners(jnp.asarray(array)), array[[1, 0, 3, 2, 5, 4, 7, 6]])
    np.testing.assert_array_equal(partners(partners(jnp.asarray(array))), array)
    assert partners(jnp.zeros((0, 2))).shape == (0, 2)


def test_an_odd_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="3 images are no pairs"):
        partners(jnp.arange(3))
    with pytest.raises(ValueError, match="5 images are no pairs"):
        mix(jnp.zeros((5, 2, 2, 3)), jnp.zeros((5, NUM_MIX)))


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="both 0"):
        draw_mix(np.random.default_rng(0), 8, mixup=0, cutmix=0)


def test_each_kind_is_as_likely() -> None:
    count, size = 4000, 20
    numbers = drawn(count, size, mixup=0.2, cutmix=1.0)
    assert (numbers.shape, numbers.dtype.name) == ((count, NUM_MIX), "float32")
    whole = (numbers[:, 2:] == [0, 0, size, size]).all(axis=1)
    # A CutMix box may cover the image too, once in a hundred; its weight is 0.
    blends = whole & (numbers[:, 1] > 0)
    assert abs(blends.mean() - 0.5) < 0.04
    assert (numbers[~blends, 1] == 0).all()
    assert (drawn(200, size, mixup=1.0)[:, 1] > 0).all()
    assert (drawn(200, size, cutmix=1.0)[:, 1] == 0).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_weights_are_of_the_beta_distribution(alpha: float) -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)), and symmetrical."""
    shares, weights = drawn(20_000, 8, mixup=alpha)[:, :2].T
    np.testing.assert_array_equal(shares, weights)
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert weights.mean() == pytest.approx(0.5, abs=0.015)
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert (weights < 0.1).mean() == pytest.approx((weights > 0.9).mean(), abs=0.015)


def test_cutmix_boxes() -> None:
    """At alpha 1 the box's area before it is cut is uniform, and its centre is anywhere."""
    size, count = 400, 20_000
    top, left, bottom, right = drawn(count, size, cutmix=1.0)[:, 2:].T
    for low, high in ((top, bottom), (left, right)):
        assert (low >= 0).all()
        assert (low <= high).all()
        assert (high <= size).all()
    inner = (top > 0) & (left > 0) & (bottom < size) & (right < size)
    assert (bottom - top == right - left)[inner].all()  # squares, where nothing is cut
    assert ((bottom - top)[inner] % 2 == 0).all()
    # The whole side where either end is inside is 2 (centre - low) or 2 (high - centre); its
    # centre is uniform, which small boxes show.
    small = inner & (bottom - top < 40)
    assert small.sum() > 100
    for low, high in ((top, bottom), (left, right)):
        counts, _ = np.histogram((low + high)[small] / 2, 4, (20, size - 20))
        assert np.abs(counts / counts.sum() - 0.25).max() < 0.12
    # With side s and centre uniform, s - s^2 / 4 of the width is inside on average; s is the
    # square root of a uniform number, so the mean of (s - s^2 / 4)^2 is the mean pasted area.
    pasted = (bottom - top) * (right - left) / size**2
    sides = np.sqrt((np.arange(10_000) + 0.5) / 10_000)
    assert pasted.mean() == pytest.approx(((sides - sides**2 / 4) ** 2).mean(), rel=0.03)


# Everything at once, through the pipeline.

SIZE, IMAGES = 12, 16


def everything() -> Any:
    config = imagenet.get_config()
    config.batch_size, config.bn_group_size = IMAGES, IMAGES
    config.data.image_size = SIZE
    config.data.max_shift = 2
    config.data.trivial_augment = True
    config.data.random_erase = 0.5
    config.data.mixup, config.data.cutmix = 0.2, 1.0
    return config


def read(positions: np.ndarray | None = None, num_workers: int = 0) -> list[HostBatch]:
    batches = train_batches(
        photograph_source(25),
        train_transform(everything()),
        seed=0,
        batch_size=IMAGES,
        positions=np.arange(IMAGES) if positions is None else positions,
        start_step=0,
        num_steps=3,
        num_workers=num_workers,
    )
    return [{name: np.array(array) for name, array in batch.items()} for batch in batches]


def prepared(batch: Batch) -> dict[str, jax.Array]:
    images = device_transform(everything()).train(batch)
    mixed, own = mix(images, batch[MIX])
    labels = batch["label"]
    return {"images": mixed, "own": own, "labels": labels, "partners": partners(labels)}


def test_everything_at_once_gives_finite_float32() -> None:
    for batch in read():
        result = jax.jit(prepared)(batch)
        assert result["images"].shape == (IMAGES, SIZE, SIZE, 3)
        assert (result["images"].dtype, result["own"].dtype) == (jnp.float32, jnp.float32)
        assert np.isfinite(result["images"]).all()
        assert ((result["own"] >= 0) & (result["own"] <= 1)).all()
        assert batch["erase"].any()
        assert (batch["mix"][:, 1] > 0).any()
        assert (batch["mix"][:, 1] == 0).any()


def test_hosts_and_workers_do_not_matter() -> None:
    whole = read()
    for hosts, num_workers in ((2, 0), (1, 2)):
        parts = [read(p, num_workers) for p in np.arange(IMAGES).reshape(hosts, -1)]
        for step, expected in enumerate(whole):
            assert expected.keys() == {"image", "label", "random", "erase", "mix"}
            for name, array in expected.items():
                together = np.concatenate([part[step][name] for part in parts])
                assert together.dtype == array.dtype
                np.testing.assert_array_equal(together, array)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_do_not_matter(devices: int) -> None:
    """Bit for bit, with two images on each of eight devices.

    But for rounding where the tests have programs made in a way that users' programs are not.
    """
    rtol = 1e-6 if "fusion_emitters=false" in os.environ["XLA_FLAGS"] else 0.0
    mesh = make_mesh(IMAGES, None, jax.devices()[:devices])
    sharding = batch_sharding(mesh)
    assert len(host_positions(sharding, IMAGES)) == IMAGES
    split = jax.jit(jax.shard_map(prepared, mesh=mesh, in_specs=SHARDED, out_specs=SHARDED))
    for batch in read():
        expected = jax.jit(prepared)(batch)
        actual = split(jax.device_put(batch, sharding))
        for name, array in expected.items():
            np.testing.assert_allclose(actual[name], array, rtol=rtol, atol=rtol)


def test_micro_batches_do_not_matter() -> None:
    """Parts of a batch that hold whole pairs give the parts of its result."""
    (batch, *_) = read()
    whole = jax.jit(prepared)(batch)
    parts = [
        jax.jit(prepared)({name: array[first : first + 4] for name, array in batch.items()})
        for first in range(0, IMAGES, 4)
    ]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
