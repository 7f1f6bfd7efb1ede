"""Comparing what JSON holds: numbers to a tolerance, all else as it is."""

from collections.abc import Mapping
from typing import Any

import pytest


def assert_close(found: Any, expected: Any, *, rel: float, abs: float) -> None:
    """Compare two such values."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, rel=rel, abs=abs)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, rel=rel, abs=abs)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=abs)
    else:
        assert found == expected
