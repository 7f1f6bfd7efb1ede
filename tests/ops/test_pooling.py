"""Max-pooling against Flax's, and what it does that Flax's does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.ops.pooling import max_pool
from resnext_jax.ops.target import compiling_for


def random(shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6), (1, 2)])
@pytest.mark.parametrize(
    ("window", "strides", "padding"), [(3, 2, 1), (2, 2, 0), (3, 3, 1), (3, 1, 1), (2, 3, 1)]
)
def test_values_and_gradient_are_those_of_xlas_own(
    size: tuple[int, int], window: int, strides: int, padding: int
) -> None:
    x = random((2, *size, 3))
    if min(size) + 2 * padding < window:
        pytest.skip("the window does not fit")

    def own(x: jax.Array) -> jax.Array:
        return max_pool(x, window=window, strides=strides, padding=padding)

    def xlas(x: jax.Array) -> jax.Array:
        return nnx.max_pool(
            x, (window, window), (strides, strides), ((padding, padding), (padding, padding))
        )

    y, pull = jax.vjp(own, x)
    expected, expected_pull = jax.vjp(xlas, x)
    np.testing.assert_array_equal(y, expected)
    dy = random(y.shape) + 3
    np.testing.assert_allclose(pull(dy)[0], expected_pull(dy)[0], rtol=1e-12)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_first_of_equal_elements_gets_the_gradient(platform: str) -> None:
    x = jnp.zeros((1, 4, 4, 1))
    with compiling_for(platform):
        dx = jax.grad(lambda x: max_pool(x, window=2, strides=2, padding=0).sum())(x)
    first = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(dx[0, :, :, 0], first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tpus_pool_to_the_same_values_and_gradients(dtype: str) -> None:
    """Of few different values, so that most windows have several largest ones."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (2, 9, 8, 4)), dtype)
    dy = jnp.asarray(rng.integers(1, 9, (2, 5, 4, 4)), dtype)
    expected, pull = jax.vjp(max_pool, x)
    with compiling_for("tpu"):
        y, pull_tpu = jax.vjp(max_pool, x)
        dx = pull_tpu(dy)[0]
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, pull(dy)[0])


def test_nan_reaches_the_result() -> None:
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x)).any()


def test_bfloat16_stays() -> None:
    assert jax.eval_shape(max_pool, jnp.zeros((1, 8, 8, 2), jnp.bfloat16)).dtype == jnp.bfloat16


def test_gradient_has_no_scatter() -> None:
    x = jnp.zeros((1, 8, 8, 2))
    compiled = jax.jit(jax.grad(lambda x: max_pool(x).sum())).lower(x).compile().as_text()
    assert compiled is not None
    assert "scatter(" not in compiled


def test_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        max_pool(jnp.zeros((1, 2, 2, 1)), window=5, padding=1)
    with pytest.raises(ValueError, match="must be less than"):
        max_pool(jnp.zeros((1, 2, 2, 1)), window=2, padding=2)
