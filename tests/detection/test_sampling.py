"""What is drawn: so many, candidates only, and every subset as likely."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.detection.targets import choose, draw_scores, sample, take_best

# Beyond it is a chi-square of so many degrees of freedom in 1 of 1000 cases. (The seeds are fixed.)
CHI_SQUARE = {14: 36.12, 19: 43.82}

MASK = jnp.array([0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0], bool)
KEYS = jax.random.split(jax.random.key(0), 15_000)


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_every_subset_is_as_likely_and_chosen_in_every_order() -> None:
    """Two of six; and, in order, two of five."""
    five = MASK & (np.arange(len(MASK)) != 4)
    kept, (indices, valid) = jax.jit(
        jax.vmap(lambda key: (sample(key, MASK, 2), choose(key, five, 2)))
    )(KEYS)
    sets = collections.Counter(tuple(np.flatnonzero(row).tolist()) for row in np.asarray(kept))
    subsets = list(itertools.combinations(np.flatnonzero(MASK).tolist(), 2))
    assert set(sets) == set(subsets)
    assert chi_square([sets[subset] for subset in subsets]) < CHI_SQUARE[14]

    assert valid.all()
    pairs = collections.Counter(map(tuple, np.asarray(indices).tolist()))
    orders = list(itertools.permutations(np.flatnonzero(five).tolist(), 2))
    assert set(pairs) == set(orders)
    assert chi_square([pairs[order] for order in orders]) < CHI_SQUARE[19]


@pytest.mark.parametrize("quota", [0, 5, 30])
def test_quotas_given_as_numbers(quota: int) -> None:
    kept = np.asarray(jax.jit(lambda key: sample(key, MASK, quota))(jax.random.key(1)))
    assert kept.dtype == bool
    assert kept.sum() == min(quota, 6)
    assert not (kept & ~MASK).any()


@pytest.mark.parametrize("most", [None, 4])
def test_traced_quotas(most: int | None) -> None:
    keep = jax.jit(functools.partial(sample, most=most))
    for quota in range(9):
        kept = np.asarray(keep(jax.random.key(2), MASK, quota))
        assert kept.sum() == min(quota, 6, most or 6)
        assert not (kept & ~MASK).any()


def test_a_larger_quota_keeps_what_a_smaller_one_keeps() -> None:
    key = jax.random.key(3)
    kept = np.asarray(jax.jit(jax.vmap(lambda quota: sample(key, MASK, quota)))(np.arange(7)))
    for fewer, more in itertools.pairwise(kept):
        assert (more >= fewer).all()


@pytest.mark.parametrize("size", [1, 9, 20])
def test_choices_are_distinct_candidates_first(size: int) -> None:
    drawn = jax.jit(lambda key: choose(key, MASK, size))(jax.random.key(4))
    indices, valid = map(np.asarray, drawn)
    assert (indices.shape, indices.dtype.name, valid.shape) == ((size,), "int32", (size,))
    np.testing.assert_array_equal(valid, np.arange(size) < 6)
    assert len(set(indices[valid].tolist())) == min(size, 6)
    assert MASK[indices[valid]].all()
    np.testing.assert_array_equal(indices[~valid], 0)


@pytest.mark.parametrize("count", [0, 7])
def test_without_candidates_nothing_is_drawn(count: int) -> None:
    none = jnp.zeros(count, bool)
    kept, (_, valid) = jax.jit(lambda key: (sample(key, none, 3), choose(key, none, 3)))(KEYS[0])
    np.testing.assert_array_equal(kept, np.zeros(count))
    np.testing.assert_array_equal(valid, np.zeros(3))


def test_the_best_are_those_with_the_highest_scores() -> None:
    indices, valid = take_best(jnp.array([0.5, -1, 0.0, 0.9, -1]), 4)
    np.testing.assert_array_equal(indices, [3, 0, 2, 0])
    np.testing.assert_array_equal(valid, [True, True, True, False])


def test_padding_behind_the_candidates_changes_nothing() -> None:
    few, many = (
        jax.jit(lambda key, mask: (draw_scores(key, mask), sample(key, mask, 3)))(KEYS[0], mask)
        for mask in (MASK, jnp.pad(MASK, (0, 9)))
    )
    for part, padded in zip(few, many, strict=True):
        np.testing.assert_array_equal(padded[: len(MASK)], part)


def test_another_key_draws_others_and_the_same_key_the_same() -> None:
    mask = jnp.ones(100, bool)
    draw = jax.jit(lambda key: sample(key, mask, 50))
    first = np.asarray(draw(jax.random.key(0)))
    assert (first != draw(jax.random.key(1))).any()
    np.testing.assert_array_equal(first, draw(jax.random.key(0)))
    with jax.enable_x64(True):  # also in double precision
        np.testing.assert_array_equal(first, draw(jax.random.key(0)))
