"""That the shapes which signatures name are checked in tests: the hook is on, and refuses."""

import importlib

import jax.numpy as jnp
import jaxtyping
import pytest

from resnext_jax.ops import max_pool
from tests.shapes import CHECKED


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match=r"'x'.*\n.*f32\[2,8,8\].*\n.*'n h w c'"):
        max_pool(jnp.zeros((2, 8, 8)))
    with pytest.raises(jaxtyping.TypeCheckError, match=r"'x'.*\n.*i32\[1,2,8,8\]"):
        max_pool(jnp.zeros((1, 2, 8, 8), "int32"))


@pytest.mark.parametrize("name", CHECKED)
def test_the_hook_has_loaded(name: str) -> None:
    module = importlib.import_module(name)
    assert type(module.__loader__).__module__ == "jaxtyping._import_hook"
