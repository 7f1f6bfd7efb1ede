"""Comparing arrays by the measure the project's claims use."""

from collections.abc import Mapping

import jax
import numpy as np


def relative_difference(actual: jax.typing.ArrayLike, expected: jax.typing.ArrayLike) -> float:
    """Return the largest difference over the largest expected value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    largest = np.abs(expected).max()
    difference = np.abs(actual - expected).max()
    return float(difference / largest) if largest else float(difference)


def worst_difference(
    actual: Mapping[str, jax.typing.ArrayLike], expected: Mapping[str, jax.typing.ArrayLike]
) -> float:
    """Return the largest `relative_difference` over arrays of equal name."""
    assert actual.keys() == expected.keys()
    return max(relative_difference(actual[name], expected[name]) for name in expected)
