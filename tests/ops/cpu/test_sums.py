"""Sums over rows, in parts or not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnext_jax.ops.cpu.sums import norm, sum_rows
from resnext_jax.ops.target import compiling_for


@pytest.mark.parametrize("rows", [1, 255, 1009, 1568, 2520])
def test_parts_add_up(rows: int) -> None:
    """Few rows, a prime number of them, and numbers with the parts in them."""
    x = np.random.default_rng(0).normal(size=(2, rows, 3)).astype(np.float32)
    found = np.asarray(jax.jit(sum_rows)(x))
    assert found.shape == (2, 1, 3)
    np.testing.assert_allclose(found[:, 0], x.astype(np.float64).sum(axis=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_only_the_cpu_has_them_in_parts(platform: str) -> None:
    def total(x: jax.Array) -> jax.Array:
        with compiling_for(platform):
            return sum_rows(x)

    program = jax.jit(total).lower(jnp.ones((2, 1568, 3))).as_text()
    assert ("stablehlo.slice" in program) == (platform == "cpu")


def test_norm_of_a_tree() -> None:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 3, 64, 128), "scale": (7,), "scalar": ()}
    tree = {name: jnp.asarray(rng.normal(size=s), "float32") for name, s in shapes.items()}
    assert float(jax.jit(norm)(tree)) == pytest.approx(float(optax.tree.norm(tree)), rel=1e-6)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    assert norm(halves).dtype == jnp.float32
    assert float(norm({})) == 0
    assert float(norm({"nothing": jnp.ones((3, 0)), "something": 2 * jnp.ones(4)})) == 4
