"""Losses by hand and against plain loops, and what must not change them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.detection.losses import fast_rcnn_loss, rpn_loss, smooth_l1
from resnext_jax.detection.targets import RegionTargets, RpnTargets

RPN = jax.jit(rpn_loss)
FAST_RCNN = jax.jit(fast_rcnn_loss)


def loop_smooth_l1(x: float, sigma: float) -> float:
    return 0.5 * (sigma * x) ** 2 if abs(x) < 1 / sigma**2 else abs(x) - 0.5 / sigma**2


def loop_entropy(logits: np.ndarray, label: int) -> float:
    return math.log(sum(math.exp(x) for x in logits.tolist())) - float(logits[label])


def random_rpn(count: int = 30) -> tuple[np.ndarray, np.ndarray, RpnTargets]:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, count).astype(np.int32)
    goal = rng.normal(size=(count, 4)) * (labels == 1)[:, None]
    deltas = goal + rng.choice([0.02, 1], (count, 4)) * rng.normal(size=(count, 4))
    logits = rng.normal(size=(count, 2))
    targets = RpnTargets(jnp.asarray(labels), jnp.asarray(goal, jnp.float32))
    return logits.astype(np.float32), deltas.astype(np.float32), targets


def random_regions(
    count: int = 12, classes: int = 5
) -> tuple[np.ndarray, np.ndarray, RegionTargets]:
    """Three foregrounds first, and the last two places not filled."""
    rng = np.random.default_rng(1)
    index = np.arange(count)
    labels = np.where(index < 3, rng.integers(1, classes, count), 0)
    goal = rng.normal(size=(count, 4)) * (labels > 0)[:, None]
    targets = RegionTargets(
        boxes=jnp.zeros((count, 4)),
        labels=jnp.asarray(labels, jnp.int32),
        deltas=jnp.asarray(goal, jnp.float32),
        weights=jnp.asarray(index < count - 2, jnp.float32),
    )
    logits, deltas = rng.normal(size=(count, classes)), rng.normal(size=(count, classes, 4))
    return logits.astype(np.float32), deltas.astype(np.float32), targets


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_smooth_l1_and_its_gradient_are_those_of_the_formula(sigma: float) -> None:
    bound = 1 / sigma**2
    x = np.array([-9, -1, -bound, -0.9 * bound, -0.01, 0, 0.05, bound, 1.1 * bound, 4, 1e20])
    slope = jax.value_and_grad(lambda x: smooth_l1(x, sigma))
    values, actual_slopes = jax.jit(jax.vmap(slope))(x.astype(np.float32))
    expected = [loop_smooth_l1(each, sigma) for each in x.tolist()]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    slopes = np.clip(sigma**2 * x, -1, 1)
    np.testing.assert_allclose(actual_slopes, slopes, rtol=1e-5)


def test_rpn_loss_by_hand() -> None:
    """One positive, two negatives and one unused: all sums are divided by 3."""
    logits = jnp.array([[0.0, math.log(3)], [math.log(4), 0], [0, 0], [50, -50]])
    targets = RpnTargets(
        labels=jnp.array([1, 0, 0, -1], jnp.int32),
        deltas=jnp.array([[1.0, 2, 3, 4], [0] * 4, [0] * 4, [0] * 4]),
    )
    # Off by 0.1, where sigma 3 squares, by 1, by 2 and by nothing.
    deltas = jnp.array([[1.1, 1, 5, 4], [9] * 4, [9] * 4, [9] * 4])
    class_loss, box_loss = RPN(logits, deltas, targets)
    assert class_loss == pytest.approx((math.log(4 / 3) + math.log(5 / 4) + math.log(2)) / 3)
    assert box_loss == pytest.approx((0.5 * 9 * 0.01 + (1 - 1 / 18) + (2 - 1 / 18)) / 3)


def test_fast_rcnn_loss_by_hand() -> None:
    """One foreground of class 2 and two backgrounds: all sums are divided by 3."""
    targets = RegionTargets(
        boxes=jnp.zeros((4, 4)),
        labels=jnp.array([2, 0, 0, 0], jnp.int32),
        deltas=jnp.array([[1.0, 2, 3, 4], [0] * 4, [0] * 4, [0] * 4]),
        weights=jnp.array([1.0, 1, 1, 0]),
    )
    logits = jnp.array([[0, 0, math.log(2)], [0, 0, 0], [math.log(6), 0, 0], [-50, 50, 50.0]])
    deltas = jnp.full((4, 3, 4), 9.0).at[0, 2].set(jnp.array([1.5, 3, 5, 4]))
    class_loss, box_loss = FAST_RCNN(logits, deltas, targets)
    assert class_loss == pytest.approx((math.log(2) + math.log(3) + math.log(8 / 6)) / 3)
    assert box_loss == pytest.approx((0.125 + 0.5 + 1.5) / 3)


def test_rpn_loss_is_that_of_a_loop() -> None:
    logits, deltas, targets = random_rpn()
    labels, goal = np.asarray(targets.labels), np.asarray(targets.deltas)
    entropy, distance, count = 0.0, 0.0, 0
    for i, label in enumerate(labels.tolist()):
        if label >= 0:
            count += 1
            entropy += loop_entropy(logits[i], label)
        if label == 1:
            distance += sum(loop_smooth_l1(x, 3) for x in (deltas[i] - goal[i]).tolist())
    assert 0 < count < len(labels)
    expected = [entropy / count, distance / count]
    np.testing.assert_allclose(RPN(logits, deltas, targets), expected, rtol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_fast_rcnn_loss_is_that_of_a_loop(flat: bool) -> None:
    logits, deltas, targets = random_regions()
    entropy = distance = 0.0
    for i, label in enumerate(np.asarray(targets.labels).tolist()[:10]):
        entropy += loop_entropy(logits[i], label)
        if label > 0:
            misses = deltas[i, label] - np.asarray(targets.deltas)[i]
            distance += sum(loop_smooth_l1(x, 1) for x in misses.tolist())
    given = deltas.reshape(12, 20) if flat else deltas
    expected = [entropy / 10, distance / 10]
    np.testing.assert_allclose(FAST_RCNN(logits, given, targets), expected, rtol=1e-5)


def gradients(loss: Callable[..., Any], logits: Any, deltas: Any, targets: Any) -> Any:
    def total(logits: jax.Array, deltas: jax.Array) -> jax.Array:
        return sum(loss(logits, deltas, targets), start=jnp.zeros(()))

    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(logits, deltas)
    return jax.tree.map(np.asarray, both)


def test_only_what_is_sampled_gets_a_gradient() -> None:
    logits, deltas, targets = random_rpn()
    labels = np.asarray(targets.labels)
    _, (by_logits, by_deltas) = gradients(rpn_loss, logits, deltas, targets)
    np.testing.assert_array_equal((by_logits != 0).any(axis=1), labels >= 0)
    np.testing.assert_array_equal((by_deltas != 0).any(axis=1), labels == 1)

    logits, deltas, regions = random_regions()
    _, (by_logits, by_deltas) = gradients(fast_rcnn_loss, logits, deltas, regions)
    labels = np.asarray(regions.labels)
    np.testing.assert_array_equal((by_logits != 0).any(axis=1), np.asarray(regions.weights) > 0)
    own = (np.arange(5) == labels[:, None]) & (labels > 0)[:, None]
    np.testing.assert_array_equal((by_deltas != 0).any(axis=2), own)


def test_nothing_sampled_is_no_loss_and_no_gradient() -> None:
    logits, deltas, targets = random_rpn()
    nothing: Any = dataclasses.replace(targets, labels=jnp.full(30, -1, jnp.int32))
    for part in jax.tree.leaves(gradients(rpn_loss, logits, deltas, nothing)):
        np.testing.assert_array_equal(part, 0)
    logits, deltas, regions = random_regions()
    nothing = dataclasses.replace(regions, weights=jnp.zeros(12))
    for part in jax.tree.leaves(gradients(fast_rcnn_loss, logits, deltas, nothing)):
        np.testing.assert_array_equal(part, 0)


def test_low_precision_is_widened_before_anything_is_computed() -> None:
    for loss, (logits, deltas, targets) in (
        (RPN, random_rpn()),
        (FAST_RCNN, random_regions()),
    ):
        low = [jnp.asarray(x, jnp.bfloat16) for x in (logits, deltas)]
        losses = loss(*low, targets)
        assert [part.dtype.name for part in losses] == ["float32", "float32"]
        wide = loss(*(x.astype(jnp.float32) for x in low), targets)
        np.testing.assert_allclose(losses, wide, rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_double_precision_stays() -> None:
    logits, deltas, targets = random_rpn()
    losses = RPN(np.float64(logits), np.float64(deltas), targets)
    assert [part.dtype.name for part in losses] == ["float64", "float64"]
    losses = FAST_RCNN(*(np.float64(x) for x in random_regions()[:2]), random_regions()[2])
    assert [part.dtype.name for part in losses] == ["float64", "float64"]


def test_padding_does_not_change_losses() -> None:
    """Neither anchors beyond the image nor places without a region, whatever is said of them."""
    logits, deltas, targets = random_rpn()
    padded = RpnTargets(
        labels=jnp.concatenate([targets.labels, jnp.full(9, -1, jnp.int32)]),
        deltas=jnp.concatenate([targets.deltas, jnp.zeros((9, 4))]),
    )
    more = [np.concatenate([x, np.full_like(x[:9], np.nan)]) for x in (logits, deltas)]
    expected = RPN(logits, deltas, targets)
    np.testing.assert_allclose(RPN(*more, padded), expected, rtol=1e-6)

    logits, deltas, regions = random_regions()
    padded_regions = jax.tree.map(lambda part: np.concatenate([part, part[:9] * 0]), regions)
    more = [np.concatenate([x, np.full_like(x[:9], np.nan)]) for x in (logits, deltas)]
    expected = FAST_RCNN(logits, deltas, regions)
    np.testing.assert_allclose(FAST_RCNN(*more, padded_regions), expected, rtol=1e-6)


def test_images_are_batched_with_vmap() -> None:
    for loss, (logits, deltas, targets) in (
        (RPN, random_rpn()),
        (FAST_RCNN, random_regions()),
    ):
        given = jax.tree.map(np.asarray, (logits, deltas, targets))
        batch = jax.tree.map(lambda part: np.stack([part, part[::-1]]), given)
        together = jax.vmap(loss)(*batch)
        alone = loss(logits, deltas, targets)
        for part, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(part, [expected] * 2, rtol=1e-6)
