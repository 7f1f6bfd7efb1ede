"""Evaluation is exact on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.data.augment import Batch
from resnext_jax.evaluation.evaluator import EvalResult, evaluate, make_eval_step
from resnext_jax.models.variables import merge, split
from resnext_jax.training.mesh import batch_sharding, make_mesh, replicated_sharding
from tests.training.tiny import CLASSES, TRANSFORM, tiny_batch, tiny_model

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


def score(devices: int, batch_size: int) -> EvalResult:
    mesh = make_mesh(64, None, jax.devices()[:devices])
    graphdef, *weights = split(tiny_model("float32", None))
    params, batch_stats = jax.device_put(weights, replicated_sharding(mesh))
    step = make_eval_step(graphdef, TRANSFORM.test, mesh)
    return evaluate(step, params, batch_stats, batches(batch_size, batch_sharding(mesh)), IMAGES)


def test_result_is_the_average_over_each_image_once() -> None:
    graphdef, params, batch_stats = split(tiny_model("float32", None))
    model = merge(graphdef, params, batch_stats)
    model.eval()
    images = tiny_batch(IMAGES)
    normalised = TRANSFORM.test(jax.tree.map(jnp.asarray, images))
    logits = np.asarray(model(normalised), "float64")
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
    graphdef, params, batch_stats = split(tiny_model("float32", None))
    step = make_eval_step(graphdef, TRANSFORM.test, mesh)
    lost = batches(27, batch_sharding(mesh))[:1]
    with pytest.raises(RuntimeError, match="saw 27 images of a data set of 53"):
        evaluate(step, params, batch_stats, lost, IMAGES)


def test_there_are_classes_to_confuse() -> None:
    assert set(tiny_batch(IMAGES)["label"]) == set(range(CLASSES))
