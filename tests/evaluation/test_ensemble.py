"""Several networks at once, and the mean of their probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.config import build
from resnext_jax.data.decode import decode_rgb
from resnext_jax.data.transforms import EvalTransform
from resnext_jax.evaluation import crops, dense
from resnext_jax.evaluation.images import EvalResult
from resnext_jax.evaluation.metrics import ensemble
from resnext_jax.evaluation.run import Evaluation
from resnext_jax.models.variables import Network, merge
from resnext_jax.parallel.mesh import make_mesh
from tests.evaluation.small_test_sets import (
    CLASSES,
    SIZES,
    images_of,
    small_config,
    small_networks,
)
from tests.evaluation.test_crops import same

IMAGES = 11  # divides nothing
LABELS = np.arange(IMAGES) % CLASSES
# Each alone, twice the same, and all.
ROWS = [(0,), (1,), (2,), (1, 1), (0, 1, 2)]


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return make_mesh(64, None, jax.devices()[:devices])


def same_records(result: EvalResult, expected: EvalResult) -> None:
    assert result.records is not None
    assert expected.records is not None
    for name in ("index", "label", "rank", "first_rank", "top5"):
        np.testing.assert_array_equal(
            getattr(result.records, name), getattr(expected.records, name)
        )
    np.testing.assert_allclose(result.records.loss, expected.records.loss, rtol=1e-4)


def soft_max(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def test_probabilities_are_averaged() -> None:
    rng = np.random.default_rng(0)
    # One network is much surer than the other, and a constant on its logits says nothing.
    one = rng.normal(size=(5, CLASSES)).astype(np.float32)
    other = (20 * rng.normal(size=(5, CLASSES)) + 100).astype(np.float32)
    mean = (soft_max(one.astype("float64")) + soft_max(other.astype("float64"))) / 2
    scores = ensemble([jnp.asarray(one), jnp.asarray(other)])
    np.testing.assert_allclose(scores, np.log(mean), rtol=1e-4, atol=1e-5)
    # Where the mean of the logits would decide otherwise.
    assert (((one + other) / 2).argmax(axis=1) == other.argmax(axis=1)).all()
    probabilities = np.array([[0.6, 0.4, 0.0], [0.0, 0.4, 0.6]]) + 1e-9
    (best,) = ensemble(list(jnp.log(probabilities)[:, None])).argmax(axis=1)
    assert best == 1


def test_an_ensemble_of_one_is_its_network() -> None:
    logits = jnp.asarray([[1.0, 2.0]])
    assert ensemble([logits]) is logits


def test_scores_that_are_not_numbers_stay_so() -> None:
    good, bad = jnp.zeros((1, 3)), jnp.asarray([[0.0, jnp.nan, 0.0]])
    assert jnp.isnan(ensemble([good, bad])).any()


@pytest.fixture(scope="module")
def scored() -> list[EvalResult]:
    """The rows on one device."""
    config = small_config(eval_first_classes=3)
    mesh = mesh_of(1)
    evaluation = Evaluation(config, images_of(SIZES, IMAGES), None, mesh)
    return evaluation.score(small_networks(config, 3, mesh), ROWS)


def test_networks_side_by_side_score_as_each_alone(scored: list[EvalResult]) -> None:
    config, mesh = small_config(eval_first_classes=3), mesh_of(1)
    for network, result in zip(small_networks(config, 3, mesh), scored, strict=False):
        evaluation = Evaluation(config, images_of(SIZES, IMAGES), network.graphdef, mesh)
        assert evaluation.run(network.params, network.batch_stats) == result
    assert len({result.loss for result in scored[:3]}) == 3


def test_an_ensemble_of_a_network_with_itself_is_that_network(scored: list[EvalResult]) -> None:
    same(scored[3], scored[1])


def test_an_ensemble_scores_by_mean_probabilities(scored: list[EvalResult]) -> None:
    config, mesh = small_config(), mesh_of(1)
    transform, source = EvalTransform(8, 9), images_of(SIZES, IMAGES)
    files = [decode_rgb(source.examples[i]["image"]) for i in range(IMAGES)]
    images = np.stack([transform({"image": file})["image"] for file in files])
    normalised = build.device_transform(config).test({"image": jnp.asarray(images)})

    @jax.jit
    def run(params: dict[str, jax.Array], batch_stats: dict[str, jax.Array]) -> jax.Array:
        model = merge(networks[0].graphdef, params, batch_stats)
        model.eval()
        return model(normalised)

    networks = small_networks(config, 3, mesh)
    logits = [np.asarray(run(n.params, n.batch_stats), "float64") for n in networks]
    mean = np.mean([soft_max(one) for one in logits], axis=0)
    # 1000-way evaluation takes each network's soft-max over the first classes only.
    first = np.mean([soft_max(one[:, :3]) for one in logits], axis=0)

    result = scored[-1]
    assert (result.images, result.skipped) == (IMAGES, 0)
    assert result.loss == pytest.approx(-np.log(mean[np.arange(IMAGES), LABELS]).mean(), rel=1e-5)
    assert result.top1_error == pytest.approx(100 * (mean.argmax(axis=1) != LABELS).mean())
    wrong = (LABELS >= 3) | (first.argmax(axis=1) != LABELS)
    assert result.among_first[3][0] == pytest.approx(100 * wrong.mean())
    assert result.records is not None
    np.testing.assert_array_equal(result.records.index, np.arange(IMAGES))
    np.testing.assert_array_equal(result.records.label, LABELS)
    np.testing.assert_array_equal(result.records.top5, np.argsort(-mean, axis=1)[:, :5])


def test_devices_do_not_matter(scored: list[EvalResult]) -> None:
    config, mesh = small_config(eval_first_classes=3), mesh_of(8)
    evaluation = Evaluation(config, images_of(SIZES, IMAGES), None, mesh)
    results = evaluation.score(small_networks(config, 3, mesh), ROWS)
    for result, expected in zip(results, scored, strict=True):
        same(result, expected)
        same_records(result, expected)


def test_dense_testing_of_an_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of square images at one scale it is the centre crop; with an image that is skipped."""
    monkeypatch.setattr(dense, "short_sides", lambda image_size: (8,))
    source, mesh = images_of([(8, 8)], IMAGES, {3: b"no image"}), mesh_of(1)
    rows = [(0,), (0, 1)]
    configs = [
        small_config(eval_crops="dense", on_error="skip", eval_first_classes=3),
        small_config(eval_short_side=8, on_error="skip", eval_first_classes=3),
    ]
    by_protocol = [
        Evaluation(config, source, None, mesh).score(small_networks(config, 2, mesh), rows)
        for config in configs
    ]
    for dense_result, crop_result in zip(*by_protocol, strict=True):
        assert dense_result.skipped == 1
        same(dense_result, crop_result)
        same_records(dense_result, crop_result)


def test_networks_may_differ_and_images_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(args)
        return make_batches(*args, **kwargs)

    make_batches = crops.eval_batches
    monkeypatch.setattr(crops, "eval_batches", counted)
    config, mesh = small_config(), mesh_of(1)
    other = config.copy_and_resolve_references()
    other.model.template_width = 24
    networks: list[Network] = small_networks(config, 1, mesh) + small_networks(other, 1, mesh)
    evaluation = Evaluation(config, images_of(SIZES, IMAGES), None, mesh)
    alone, wide, both = evaluation.score(networks, [(0,), (1,), (0, 1)])
    assert len(passes) == 1
    assert alone.loss != wide.loss
    # The mean probability of the true class is at least half of each one's.
    assert both.loss < min(alone.loss, wide.loss) + np.log(2)
