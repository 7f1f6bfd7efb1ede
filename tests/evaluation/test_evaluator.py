"""Evaluation is exact on any number of devices."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.data.augment import SKIPPED, Batch
from resnext_jax.errors import DataError
from resnext_jax.evaluation.evaluator import Scorer, score_batches
from resnext_jax.evaluation.images import EvalResult
from resnext_jax.models.variables import merge
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from tests.evaluation.small_test_sets import CLASSES, small_config, small_networks, small_weights
from tests.training.tiny import TRANSFORM, tiny_batch

IMAGES = 53  # divides nothing


def batches(batch_size: int, sharding: jax.sharding.Sharding) -> list[Batch]:
    images = tiny_batch(IMAGES)
    steps = -(-IMAGES // batch_size)
    padding = steps * batch_size - IMAGES
    # Blanks that would score NaN or be counted, if they were not masked.
    padded = {
        name: np.concatenate([array, np.repeat(array[:1], padding, axis=0)])
        for name, array in images.items()
    }
    padded["mask"] = np.arange(steps * batch_size) < IMAGES
    return [
        jax.device_put(
            {n: a[s * batch_size : (s + 1) * batch_size] for n, a in padded.items()}, sharding
        )
        for s in range(steps)
    ]


@functools.cache
def scorer_on(mesh: jax.sharding.Mesh, first_classes: int | None) -> Scorer:
    """Keep what has been compiled for further tests."""
    return Scorer(TRANSFORM.test, mesh, first_classes=first_classes)


def score(
    devices: int,
    batch_size: int,
    first_classes: int | None = None,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> EvalResult:
    mesh = make_mesh(64, None, jax.devices()[:devices])
    (network,) = small_networks(small_config(), 1, mesh)
    changed = map(change, batches(batch_size, batch_sharding(mesh)))
    (result,) = score_batches(scorer_on(mesh, first_classes), [network], [(0,)], changed, IMAGES)
    return result


@jax.jit
def _logits(images: jax.Array) -> jax.Array:
    model = merge(*small_weights(small_config()))
    model.eval()
    found: jax.Array = model(TRANSFORM.test({"image": images}))
    return found


def logits_of(images: np.ndarray) -> np.ndarray:
    """Run the network that `score` scores; float64 `[N, K]`."""
    return np.asarray(_logits(images), "float64")


def test_result_is_the_average_over_each_image_once() -> None:
    images = tiny_batch(IMAGES)
    logits = logits_of(images["image"])
    labels = images["label"]
    order = np.argsort(-logits, axis=1)
    wrong1 = (order[:, 0] != labels).sum()
    wrong5 = (order[:, :5] != labels[:, None]).all(axis=1).sum()
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(IMAGES), labels]

    result = score(devices=1, batch_size=24)
    assert result.images == IMAGES
    assert result.top1_error == pytest.approx(100 * wrong1 / IMAGES)
    assert result.top5_error == pytest.approx(100 * wrong5 / IMAGES)
    assert 0 < result.top5_error < result.top1_error
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)


def test_devices_and_batch_size_do_not_matter() -> None:
    expected = score(devices=1, batch_size=24)
    for devices, batch_size in ((8, 8), (2, 64)):
        result = score(devices, batch_size)
        assert (result.images, result.top1_error, result.top5_error) == (
            expected.images,
            expected.top1_error,
            expected.top5_error,
        )
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)


def test_a_lost_image_is_an_error() -> None:
    mesh = make_mesh(64, None, jax.devices()[:1])
    (network,) = small_networks(small_config(), 1, mesh)
    lost = batches(27, batch_sharding(mesh))[:1]
    with pytest.raises(RuntimeError, match="saw 27 images and skipped 0 of a data set of 53"):
        score_batches(Scorer(TRANSFORM.test, mesh), [network], [(0,)], lost, IMAGES)


def test_scores_among_the_first_classes_are_added() -> None:
    plain = score(devices=1, batch_size=24)
    result = score(devices=8, batch_size=24, first_classes=3)
    assert dataclasses.replace(result, among_first={}, loss=0.0) == dataclasses.replace(
        plain, loss=0.0
    )
    ((classes, (top1_error, top5_error)),) = result.among_first.items()
    assert classes == 3
    # Of three classes, five guesses take all: wrong are the images of the others.
    share = 100 * float((tiny_batch(IMAGES)["label"] >= 3).mean())
    assert top5_error == pytest.approx(share)
    assert share < top1_error < 100
    assert result.as_record()["top1_error_3way"] == top1_error
    assert result.as_record()["top5_error_3way"] == top5_error
    assert "skipped_images" not in result.as_record()
    # Among all classes it is the plain score.
    everything = score(devices=1, batch_size=24, first_classes=CLASSES)
    assert everything.among_first == {CLASSES: (plain.top1_error, plain.top5_error)}


def test_logits_of_several_crops_are_averaged() -> None:
    """Three crops an image: as if each was scored by itself, before the soft-max."""
    crops = 3
    rng = np.random.default_rng(1)
    shape = (IMAGES, crops, 8, 8, 3)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    logits = np.mean([logits_of(pixels[:, crop]) for crop in range(crops)], axis=0)
    labels = tiny_batch(IMAGES)["label"]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(IMAGES), labels]

    places = itertools.count()

    def give_crops(batch: Batch) -> Batch:
        start = next(places) * len(batch["label"])
        shipped = np.zeros((len(batch["label"]), *shape[1:]), np.uint8)
        real = pixels[start : start + len(shipped)]
        shipped[: len(real)] = real
        return batch | {"image": jax.device_put(shipped, batch["image"].sharding)}

    result = score(devices=8, batch_size=24, change=give_crops)
    assert result.images == IMAGES
    assert result.top1_error == pytest.approx(100 * (logits.argmax(axis=1) != labels).mean())
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)


def skip_every_third(batch: Batch) -> Batch:
    skipped = batch["mask"] & (jnp.arange(len(batch["mask"])) % 3 == 0)
    return batch | {"mask": batch["mask"] & ~skipped, SKIPPED: skipped}


def test_skipped_images_are_counted_and_not_scored() -> None:
    result = score(devices=1, batch_size=24, change=skip_every_third)
    assert (result.images, result.skipped) == (35, 18)
    assert result.as_record()["skipped_images"] == 18
    again = score(devices=8, batch_size=24, change=skip_every_third)
    assert (again.images, again.skipped, again.top1_error) == (35, 18, result.top1_error)


def test_nothing_but_skipped_images_is_an_error() -> None:
    def skip_all(batch: Batch) -> Batch:
        return batch | {"mask": jnp.zeros_like(batch["mask"]), SKIPPED: batch["mask"]}

    with pytest.raises(DataError, match="no test image can be decoded"):
        score(devices=1, batch_size=24, change=skip_all)


def test_there_are_classes_to_confuse() -> None:
    assert set(tiny_batch(IMAGES)["label"]) == set(range(CLASSES))
