"""Loss and error of each image, by hand and against a sort."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.evaluation.metrics import (
    LAST,
    cross_entropy,
    label_rank,
    rank_among_first,
    topk_wrong,
)
from tests.numerics import relative_difference


def test_cross_entropy_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4."""
    logits = jnp.log(jnp.asarray([[2.0, 1.0, 1.0], [2.0, 1.0, 1.0]])) + 5.0
    actual = cross_entropy(logits, jnp.asarray([0, 2]))
    np.testing.assert_allclose(actual, [math.log(2), math.log(4)], rtol=1e-6)


def test_smoothed_cross_entropy_by_hand() -> None:
    """With 0.3 spread over three classes the targets are 0.8, 0.1, 0.1."""
    logits = jnp.log(jnp.asarray([[2.0, 1.0, 1.0], [2.0, 1.0, 1.0]]))
    actual = cross_entropy(logits, jnp.asarray([0, 2]), smoothing=0.3)
    expected = [
        0.8 * math.log(2) + 0.2 * math.log(4),
        0.1 * math.log(2) + 0.9 * math.log(4),
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_the_definition(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 5, size=(20, 7)), rng.integers(0, 7, 20)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (1 - smoothing) * np.eye(7)[labels] + smoothing / 7
    expected = -(targets * np.log(probabilities)).sum(axis=1)
    actual = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    assert relative_difference(actual, expected) < 1e-14


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_keeps_the_dtype_and_one_value_an_image(smoothing: float) -> None:
    loss = cross_entropy(jnp.zeros((3, 5), jnp.float32), jnp.asarray([0, 1, 4]), smoothing)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [math.log(5)] * 3, rtol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    logits = jnp.asarray([[1e4, 0.0], [1e4, 0.0]])
    np.testing.assert_array_equal(cross_entropy(logits, jnp.asarray([0, 1])), [0.0, 1e4])


def sorted_topk_wrong(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    # A stable sort keeps equal scores in the order of the classes.
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return (best != labels[:, None]).all(axis=1)


@pytest.mark.parametrize("k", [1, 2, 5, 6, 7, 8])
@pytest.mark.parametrize("values", [3, 1000])
def test_topk_is_a_sort(k: int, values: int) -> None:
    """With few values most classes tie."""
    rng = np.random.default_rng(k)
    logits = rng.integers(0, values, (500, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 500)
    expected = sorted_topk_wrong(logits, labels, k)
    assert expected.any() == (k < 7)
    actual = topk_wrong(jnp.asarray(logits), jnp.asarray(labels), k)
    assert actual.dtype == jnp.bool_
    np.testing.assert_array_equal(actual, expected)
    rank = label_rank(jnp.asarray(logits), jnp.asarray(labels))
    assert rank.dtype == jnp.int32
    np.testing.assert_array_equal(rank >= k, expected)


def wrong(scores: list[float], label: int, k: int) -> bool:
    logits, labels = jnp.asarray([scores]), jnp.asarray([label])
    (found,) = topk_wrong(logits, labels, k).tolist()
    assert (label_rank(logits, labels)[0] >= k) == found
    return bool(found)


def test_ties_are_ranked_by_class_number() -> None:
    equal = [1.0] * 4
    assert [wrong(equal, label, 1) for label in range(4)] == [False, True, True, True]
    assert [wrong(equal, label, 2) for label in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_not_a_number_is_wrong(place: int, k: int) -> None:
    """Even where it is not the true class's score, and even with fewer classes than guesses."""
    scores = [3.0, 2.0, 1.0]
    assert wrong(scores, 0, k) is False
    scores[place] = math.nan
    assert wrong(scores, 0, k) is True


def test_infinite_scores_are_ranked() -> None:
    scores = [0.0, math.inf, -math.inf]
    assert [wrong(scores, label, 1) for label in range(3)] == [True, False, True]
    assert [wrong(scores, label, 2) for label in range(3)] == [False, False, True]


def test_with_few_classes_every_one_is_guessed() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)), jnp.float32)
    assert not topk_wrong(logits, jnp.arange(9) % 3, 5).any()


def test_can_be_compiled() -> None:
    logits = jnp.asarray([[0.0, 1.0, 2.0]])
    compiled = jax.jit(topk_wrong, static_argnames="k")
    assert [bool(compiled(logits, jnp.asarray([0]), k=k)[0]) for k in (1, 2, 3)] == [1, 1, 0]


# Scores of five images for six classes, by hand. The first three classes are looked at
# by themselves too, as ImageNet-5K's 5,000 are scored 5000 way and 1000 way.
SCORES = [
    [9.0, 1.0, 2.0, 8.0, 7.0, 6.0],  # class 0, best of all
    [1.0, 5.0, 2.0, 9.0, 8.0, 7.0],  # class 1, best of the first three only
    [5.0, 1.0, 4.0, 9.0, 8.0, 7.0],  # class 2, second of the first three
    [5.0, 1.0, 4.0, 9.0, 8.0, 7.0],  # class 1, last of the first three
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],  # class 5, not among the first three
]
CLASSES_BY_HAND = [0, 1, 2, 1, 5]


@pytest.mark.parametrize(
    ("classes", "k", "wrong"),
    [
        (6, 1, [False, True, True, True, False]),
        (6, 4, [False, False, True, True, False]),
        (3, 1, [False, False, True, True, True]),
        (3, 2, [False, False, False, True, True]),
        (3, 5, [False, False, False, False, True]),
    ],
)
def test_scoring_among_the_first_classes(classes: int, k: int, wrong: list[bool]) -> None:
    logits, labels = jnp.asarray(SCORES), jnp.asarray(CLASSES_BY_HAND)
    rank = rank_among_first(logits, labels, classes)
    assert (rank >= k).tolist() == wrong
    # A soft-max over them alone, ranked.
    alone = np.asarray(jax.nn.softmax(logits[:, :classes]))
    best = np.argsort(-alone, axis=1)[:, :k]
    assert (best != labels[:, None]).all(axis=1).tolist() == wrong


def test_not_a_number_among_other_classes_does_not_matter() -> None:
    logits = jnp.asarray([[3.0, 1.0, jnp.nan]])
    assert rank_among_first(logits, jnp.asarray([0]), 2)[0] == 0
    assert rank_among_first(logits, jnp.asarray([0]), 3)[0] == LAST
