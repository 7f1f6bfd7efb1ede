"""How a feature map becomes logits."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.models.layers import pool_and_classify, pool_and_classify_densely
from tests.numerics import relative_difference


def classifier() -> nnx.Linear:
    return nnx.Linear(4, 3, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("height", "width", "window"), [(7, 7, 7), (3, 5, 2), (5, 3, 3), (4, 9, 4), (6, 6, 5)]
)
def test_dense_logits_are_the_average_over_all_windows(
    height: int, width: int, window: int
) -> None:
    fc = classifier()
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, height, width, 4)))
    corners = list(itertools.product(range(height - window + 1), range(width - window + 1)))
    shifted = [
        fc(features[:, top : top + window, left : left + window].mean(axis=(1, 2)))
        for top, left in corners
    ]
    actual = pool_and_classify_densely(features, fc, window)
    assert relative_difference(actual, sum(shifted) / len(corners)) < 1e-13
    # Only where one window is the whole map is it the average over the map.
    difference = relative_difference(actual, pool_and_classify(features, fc))
    assert difference < 1e-13 if len(corners) == 1 else difference > 1e-3


@pytest.mark.usefixtures("float64")
def test_windows_of_one_element_weigh_alike() -> None:
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 4)))
    fc = classifier()
    dense = pool_and_classify_densely(features, fc, 1)
    assert relative_difference(dense, pool_and_classify(features, fc)) < 1e-13


def test_half_precision_is_averaged_in_single() -> None:
    """As in `pool_and_classify`."""
    fc = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 9, 4)), jnp.bfloat16)
    actual = pool_and_classify_densely(features, fc, 9)
    assert actual.dtype == jnp.float32
    assert relative_difference(actual, pool_and_classify(features, fc)) < 1e-5


@pytest.mark.parametrize(("window", "side"), [(4, 3), (0, 3)])
def test_a_window_that_does_not_fit(window: int, side: int) -> None:
    features = jnp.zeros((1, side, 9, 4))
    with pytest.raises(ValueError, match=f"window of {window} does not fit .* side {side}"):
        pool_and_classify_densely(features, nnx.Linear(4, 3, rngs=nnx.Rngs(0)), window)
