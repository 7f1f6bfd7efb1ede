"""Ten crops are ten evaluations, averaged before the soft-max."""

from typing import Any

import jax
import numpy as np
import pytest

from resnext_jax.config import build
from resnext_jax.data.decode import decode_rgb
from resnext_jax.data.transforms import EvalTransform
from resnext_jax.errors import DataError
from resnext_jax.evaluation import crops as crops_module
from resnext_jax.evaluation.images import EvalResult
from resnext_jax.models.variables import merge
from resnext_jax.parallel.mesh import make_mesh
from tests.evaluation.small_test_sets import SIZES, images_of, score, small_config, small_weights

IMAGES = 11  # divides nothing
BAD = {3: b"no image"}


def same(actual: EvalResult, expected: EvalResult) -> None:
    """Assert that two results differ by rounding only."""
    assert (actual.images, actual.skipped) == (expected.images, expected.skipped)
    assert (actual.top1_error, actual.top5_error) == (expected.top1_error, expected.top5_error)
    assert actual.among_first == expected.among_first
    assert actual.loss == pytest.approx(expected.loss, rel=1e-5)


def test_ten_crops_are_ten_evaluations_averaged() -> None:
    config = small_config(eval_crops="ten", eval_first_classes=3)
    source = images_of(SIZES, IMAGES)
    graphdef, params, batch_stats = small_weights(config)
    model = merge(graphdef, params, batch_stats)
    model.eval()
    apply = jax.jit(lambda images: model(build.device_transform(config).test({"image": images})))
    transform = EvalTransform(8, 9, crops="ten")
    files = [decode_rgb(source.examples[i]["image"]) for i in range(IMAGES)]
    crops = np.stack([transform({"image": image})["image"] for image in files])
    logits = np.mean([apply(crops[:, i]) for i in range(10)], axis=0, dtype="float64")
    labels = np.arange(IMAGES) % 7
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(IMAGES), labels]

    result = score(config, source)
    assert result.images == IMAGES
    assert result.top1_error == pytest.approx(100 * (logits.argmax(axis=1) != labels).mean())
    wrong = (labels >= 3) | (logits[:, :3].argmax(axis=1) != labels)
    assert result.among_first[3][0] == pytest.approx(100 * wrong.mean())
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)
    # It tells: the centre alone scores otherwise.
    alone = score(small_config(), source)
    assert abs(alone.loss - result.loss) > 0.01


def test_devices_and_bad_images() -> None:
    config = small_config(eval_crops="ten", on_error="skip")
    source = images_of(SIZES, IMAGES, BAD)
    expected = score(config, source)
    assert (expected.images, expected.skipped) == (10, 1)
    same(score(config, source, devices=8), expected)
    with pytest.raises(DataError, match="image 3 of 'noise', split 'test', cannot be decoded"):
        score(small_config(eval_crops="ten"), source)


@pytest.mark.parametrize(
    ("crops", "devices", "eval_batch_size", "images"),
    [
        ("centre", 1, 4, 4),
        ("centre", 8, 4, 8),
        ("ten", 1, 20, 2),
        ("ten", 1, 29, 2),
        ("ten", 1, 4, 1),
        ("ten", 8, 4, 8),
        ("ten", 8, 90, 16),
    ],
)
def test_the_batch_size_counts_crops(
    crops: str, devices: int, eval_batch_size: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: set[tuple[int, ...]] = set()

    def batches_only(
        scorer: Any, networks: Any, rows: Any, batches: Any, *_: Any, **__: Any
    ) -> None:
        shapes.update(batch["image"].shape for batch in batches)

    monkeypatch.setattr(crops_module, "score_batches", batches_only)
    config = small_config(eval_crops=crops)
    config.eval_batch_size = eval_batch_size
    mesh = make_mesh(64, None, jax.devices()[:devices])
    source = images_of(SIZES, IMAGES)
    crops_module.CropEvaluation(config, source, mesh).score([], [])
    assert shapes == {(images, 10, 8, 8, 3) if crops == "ten" else (images, 8, 8, 3)}
