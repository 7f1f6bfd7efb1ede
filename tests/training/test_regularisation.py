"""Binary cross-entropy, stochastic depth, repeated augmentation and sizes by epoch."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnext_jax.config import build
from resnext_jax.config.checks import validate
from resnext_jax.config.fields import base_config
from resnext_jax.data.augment import DEPTH
from resnext_jax.data.erasing import ERASE, draw_box
from resnext_jax.data.mixing import MIX, draw_mix
from resnext_jax.data.pipeline import _Repeated
from resnext_jax.errors import ConfigError
from resnext_jax.evaluation.metrics import binary_cross_entropy
from resnext_jax.models.execution import depth_scales
from resnext_jax.optim.ema import EmaSpec
from resnext_jax.training.guard import GuardSpec
from resnext_jax.training.step import StepSpec, _losses
from tests.optim import make_golden
from tests.training.tiny import TinyRun, tiny_batch, tiny_model


def test_binary_cross_entropy_of_a_cutmix_pair_by_hand() -> None:
    """Image 0 keeps 70 % of class 1, image 1 as much of class 2; the rest is the partner's."""
    logits = jnp.array([[0.5, 2.0, -1.0], [0.0, -0.5, 1.0]])
    labels, own = jnp.array([1, 2]), jnp.array([0.7, 0.7])

    def by_hand(row: int, targets: list[float]) -> float:
        ps = [1 / (1 + math.exp(-float(x))) for x in logits[row]]
        terms = [
            -t * math.log(p) - (1 - t) * math.log(1 - p) for t, p in zip(targets, ps, strict=True)
        ]
        return sum(terms) / 3

    shares = _losses(StepSpec(loss="bce"), logits, labels, own)
    expected = [by_hand(0, [0, 0.7, 0.3]), by_hand(1, [0, 0.3, 0.7])]
    assert shares.tolist() == pytest.approx(expected, rel=1e-5)
    thresholded = _losses(StepSpec(loss="bce", target_threshold=0.2), logits, labels, own)
    assert thresholded.tolist() == pytest.approx(
        [by_hand(0, [0, 1, 1]), by_hand(1, [0, 1, 1])], rel=1e-5
    )
    high = _losses(StepSpec(loss="bce", target_threshold=0.5), logits, labels, own)
    assert high.tolist() == pytest.approx([by_hand(0, [0, 1, 0]), by_hand(1, [0, 0, 1])], rel=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", make_golden.BCE_CASES)
def test_binary_cross_entropy_is_timms(case: str) -> None:
    """A linear classifier after each of 20 stored steps of gradient descent."""
    smoothing, threshold = make_golden.BCE_CASES[case]
    images, labels = map(jnp.asarray, make_golden.classified())
    targets = jax.nn.one_hot(labels, make_golden.CLASSES, dtype=jnp.float64)

    @jax.jit
    @jax.grad
    def gradient(weight: jax.Array) -> jax.Array:
        return binary_cross_entropy(images @ weight, targets, smoothing, threshold).mean()

    weight = jnp.zeros((images.shape[1], make_golden.CLASSES))
    with np.load(make_golden.GOLDEN) as golden:
        trajectory = golden[case]
    for expected in trajectory:
        weight = weight - gradient(weight)
        np.testing.assert_allclose(weight, expected, rtol=1e-10, atol=1e-10)


def test_stochastic_depth_keeps_the_expectation() -> None:
    random = np.random.default_rng(0).random((20_000, 5), np.float32)
    scales = np.asarray(depth_scales(jnp.asarray(random), 0.4))
    np.testing.assert_allclose((scales == 0).mean(axis=0), [0, 0.1, 0.2, 0.3, 0.4], atol=0.02)
    np.testing.assert_allclose(scales.mean(axis=0), np.ones(5), atol=0.03)
    assert (np.asarray(depth_scales(jnp.asarray(random), 0.0)) == 1).all()


def test_stochastic_depth_of_rate_0_is_bitwise_none() -> None:
    """And a dropped block is its shortcut."""
    model: Any = tiny_model("float32", None, bn_axis_name=None)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    blocks = sum(len(stage) for stage in model.stages.values())
    ones = depth_scales(jnp.zeros((4, blocks)), 0.0)
    model.eval()
    run = jax.jit(lambda *arguments: model(*arguments))
    assert np.array_equal(run(images), run(images, ones))
    block = model.stages["conv2"][0]
    x = jnp.ones((2, 8, 8, 8))
    dropped = block(x, jnp.array([0.0, 1.0]))
    shortcut = jax.nn.relu(block.shortcut(x))
    np.testing.assert_allclose(dropped[0], shortcut[0], rtol=1e-6)
    np.testing.assert_allclose(dropped[1], block(x)[1], rtol=1e-6)


@pytest.mark.parametrize(("batch_size", "repeats"), [(6, 3), (8, 3), (4, 2)])
def test_a_batch_has_copies_of_its_images_and_no_neighbours_are_equal(
    batch_size: int, repeats: int
) -> None:
    order = _Repeated(range(1000), batch_size, repeats)
    seen: set[int] = set()
    for step in range(5):
        batch = [order[step * batch_size + place] for place in range(batch_size)]
        images = -(-batch_size // repeats)
        assert len(set(batch)) == images
        assert max(map(batch.count, batch)) <= repeats
        assert all(a != b for a, b in itertools.pairwise(batch))
        assert not seen & set(batch)
        seen |= set(batch)


def test_sizes_change_at_their_epochs() -> None:
    config = base_config()
    config.model.name = "resnet50"
    config.batch_size, config.data.image_size = 100, 128
    config.data.size_epochs, config.data.sizes = (1.5, 3.0), (160, 192)
    validate(config)
    places = [(first, t.image_size) for first, t in build.train_transforms(config, 1000)]
    assert places == [(0, 128), (15, 160), (30, 192)]
    config.data.sizes = (160,)
    with pytest.raises(ConfigError, match=r"config.data.sizes=\(160,\) must be one whole number"):
        validate(config)


def test_options_without_effect_are_refused() -> None:
    config = base_config()
    config.model.name = "resnet50"
    config.optimizer.target_threshold = 0.2
    with pytest.raises(ConfigError, match=r"target_threshold=0\.2 has no effect"):
        validate(config)
    config.optimizer.loss = "bce"
    config.data.rand_augment, config.data.rand_augment_magnitude = "increasing", 11.0
    with pytest.raises(ConfigError, match="must be a number up to 10"):
        validate(config)
    config.data.rand_augment, config.data.rand_augment_magnitude = "torchvision", 9.5
    with pytest.raises(ConfigError, match="must be a whole number up to 30"):
        validate(config)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_devices_and_micro_batches_agree_with_everything_on() -> None:
    """20 steps: LAMB, BCE, stochastic depth, erasing, mixing, averaging; sizes change twice.

    Each size is compiled once.
    """
    config = base_config()
    config.optimizer.update({"name": "lamb", "decay_norm": False, "decay_bias": False})
    config.optimizer.clip_norm = 1.0
    results = []
    for devices, parts in itertools.product((1, 2, 8), (1, 2)):
        run = TinyRun(
            devices,
            8,
            spec=StepSpec(
                loss="bce",
                target_threshold=0.2,
                label_smoothing=0.1,
                drop_path=0.3,
                accumulate_steps=parts,
                guard=GuardSpec(skip_nonfinite=True),
                ema=EmaSpec(0.99, warmup=True),
            ),
            optimizer=build.build_optimizer(config, lambda step: jnp.float64(0.01)),
        )
        losses = []
        for step in range(20):
            size = 8 if step < 7 else 12 if step < 14 else 10
            rng = np.random.default_rng(1000 + step)
            batch = tiny_batch(64, step)
            batch["image"] = rng.integers(0, 256, (64, size, size, 3), dtype=np.uint8)
            batch[DEPTH] = rng.random((64, 3), np.float32)
            batch[ERASE] = np.stack([draw_box(rng, size, 0.5) for _ in range(64)])
            batch[MIX] = np.stack([draw_mix(rng, size, mixup=0.2, cutmix=1.0) for _ in range(64)])
            run.state, metrics = run.step(run.state, run.put(batch))
            losses.append(float(metrics["loss"]))
        assert run.step._cache_size() == 3  # type: ignore[attr-defined]
        results.append((losses, jax.device_get((run.state.params, run.state.ema))))
    (losses, weights), *others = results
    assert losses[-1] < losses[0]
    for other_losses, other in others:
        assert other_losses == pytest.approx(losses, rel=1e-9)
        worst = optax.tree_utils.tree_max(
            jax.tree.map(lambda a, b: np.abs(a - b).max(), other, weights)
        )
        assert worst < 1e-9
