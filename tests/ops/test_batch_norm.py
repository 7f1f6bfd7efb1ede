"""Batch normalisation: groups, statistics, gradient, precision."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from resnext_jax.ops import BatchNorm
from resnext_jax.ops.batch_norm import normalise_groups
from resnext_jax.ops.target import compiling_for
from tests.numerics import relative_difference

MEAN, STD = 3.0, 2.0


def images(n: int, *, dtype: str = "float64", seed: int = 0) -> jax.Array:
    values = np.random.default_rng(seed).normal(MEAN, STD, size=(n, 3, 2, 5))
    return jnp.asarray(values, dtype)


def norm_with_random_parameters(group_size: int | None, axis_name: str | None = None) -> BatchNorm:
    rng = np.random.default_rng(7)
    norm = BatchNorm(
        5, group_size=group_size, axis_name=axis_name, param_dtype=jnp.float64, dtype=jnp.float64
    )
    norm.scale.set_value(jnp.asarray(rng.normal(size=5)))
    norm.bias.set_value(jnp.asarray(rng.normal(size=5)))
    return norm


def reference(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, group_size: int) -> np.ndarray:
    """Normalise group by group, as the definition says."""
    y = np.empty_like(x)
    for start in range(0, len(x), group_size):
        group = x[start : start + group_size]
        mean, var = group.mean((0, 1, 2)), group.var((0, 1, 2))
        y[start : start + group_size] = (group - mean) / np.sqrt(var + 1e-5) * scale + bias
    return y


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("group_size", [2, 4, 8, None])
def test_each_group_is_normalised_by_itself(group_size: int | None) -> None:
    norm, x = norm_with_random_parameters(group_size), images(8)
    expected = reference(
        np.asarray(x), np.asarray(norm.scale[...]), np.asarray(norm.bias[...]), group_size or 8
    )
    assert relative_difference(norm(x), expected) < 1e-13


@pytest.mark.usefixtures("float64")
def test_running_statistics_move_once_by_the_mean_over_groups_with_unbiased_variance() -> None:
    norm, x = norm_with_random_parameters(4), np.asarray(images(8))
    norm(jnp.asarray(x))
    groups = x.reshape(2, -1, 5)
    mean = groups.mean(axis=1).mean(axis=0)
    variance = groups.var(axis=1, ddof=1).mean(axis=0)
    assert relative_difference(norm.mean[...], 0.9 * 0 + 0.1 * mean) < 1e-13
    assert relative_difference(norm.var[...], 0.9 * 1 + 0.1 * variance) < 1e-13


@pytest.mark.usefixtures("float64")
def test_evaluation_uses_the_running_statistics_and_leaves_them() -> None:
    norm, x = norm_with_random_parameters(None), np.asarray(images(4))
    norm.mean.set_value(jnp.arange(5.0))
    norm.var.set_value(jnp.arange(1.0, 6.0))
    norm.eval()
    expected = (x - np.arange(5)) / np.sqrt(np.arange(1, 6) + 1e-5)
    expected = expected * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    assert relative_difference(norm(jnp.asarray(x)), expected) < 1e-13
    assert (norm.mean[...] == jnp.arange(5.0)).all()


def plain(x: jax.Array, scale: jax.Array, bias: jax.Array, group_size: int) -> jax.Array:
    """The textbook formula, whose gradient JAX derives."""
    groups = x.reshape(-1, group_size, *x.shape[1:])
    mean = groups.mean(axis=(1, 2, 3), keepdims=True)
    var = jnp.square(groups - mean).mean(axis=(1, 2, 3), keepdims=True)
    return ((groups - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias


def module_loss(norm: BatchNorm) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    graphdef, stats = nnx.graphdef(norm), nnx.state(norm, nnx.BatchStat)

    def loss(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        module = nnx.merge(graphdef, {"scale": scale, "bias": bias}, nnx.to_pure_dict(stats))
        return jnp.sum(jnp.sin(module(x)))

    return loss


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_the_gradient_by_hand_is_the_derived_one(group_size: int) -> None:
    norm, x = norm_with_random_parameters(group_size), images(8)
    arguments = x, norm.scale[...], norm.bias[...]
    actual = jax.grad(module_loss(norm), argnums=(0, 1, 2))(*arguments)

    def loss(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(plain(x, scale, bias, group_size)))

    expected = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
    for ours, derived in zip(actual, expected, strict=True):
        assert relative_difference(ours, derived) < 1e-12


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("platform", "group_size", "members"),
    [
        *(("cpu", size, members) for size, members in ((4, 2), (8, 4), (16, 8), (2, 1), (1, 1))),
        *(("tpu", size, members) for size, members in ((8, 4), (2, 1))),
    ],
)
def test_groups_are_the_same_on_eight_devices(platform: str, group_size: int, members: int) -> None:
    """Values, statistics and gradients do not depend on the devices."""
    with compiling_for(platform):
        check_that_eight_devices_make_the_groups_of_one(group_size, members)


def check_that_eight_devices_make_the_groups_of_one(group_size: int, members: int) -> None:
    x = images(16)
    alone = norm_with_random_parameters(group_size)
    scale, bias = alone.scale[...], alone.bias[...]
    expected = jax.grad(module_loss(alone), argnums=(0, 1, 2))(x, scale, bias)
    y = alone(x)

    shared = norm_with_random_parameters(group_size, axis_name="member")
    graphdef, stats = nnx.graphdef(shared), nnx.state(shared, nnx.BatchStat)
    axes = ("group", "member")
    mesh = jax.make_mesh((8 // members, members), axes, axis_types=(AxisType.Auto,) * 2)

    def local(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
        module = nnx.merge(graphdef, {"scale": scale, "bias": bias}, nnx.to_pure_dict(stats))
        y = module(x)
        mean, var = jax.lax.pmean((module.mean.get_value(), module.var.get_value()), axes)
        return jnp.sum(jnp.sin(y))[None], y, mean, var

    batch, copy = PartitionSpec(axes), PartitionSpec()

    @jax.jit
    def run(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(batch, copy, copy),
            out_specs=(batch, batch, copy, copy),
        )(x, scale, bias)

    _, y_shared, mean, var = run(x, scale, bias)
    assert relative_difference(y_shared, y) < 1e-13
    assert relative_difference(mean, alone.mean[...]) < 1e-13
    assert relative_difference(var, alone.var[...]) < 1e-13
    # Differentiated from outside shard_map, with replicated parameters.
    actual = jax.grad(lambda *args: run(*args)[0].sum(), argnums=(0, 1, 2))(x, scale, bias)
    for ours, single in zip(actual, expected, strict=True):
        assert relative_difference(ours, single) < 1e-12


def test_statistics_are_exact_enough_in_float32_far_from_zero() -> None:
    x = np.random.default_rng(0).normal(1000.0, 1.0, size=(64, 4, 4, 1)).astype("float32")
    norm = BatchNorm(1)
    y = norm(jnp.asarray(x))
    exact = x.astype("float64")
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    # The mean of squares minus the square of the mean is off by a few per cent here.
    assert relative_difference(y, expected.astype("float32")) < 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("deviations", "tolerance"), [(0.0, 1e-12), (1.0, 1e-12), (1e4, 1e-6)])
def test_one_pass_around_a_guess_of_the_mean_is_two_passes(
    deviations: float, tolerance: float
) -> None:
    norm, x = norm_with_random_parameters(None), images(8)

    def run(near_mean: jax.Array | None) -> tuple[Any, ...]:
        def loss(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
            results = normalise_groups(x, scale, bias, near_mean, 2, None, 1e-5)
            return jnp.sum(jnp.sin(results[0])), results

        arguments = x, norm.scale[...], norm.bias[...]
        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arguments)

    gradients, results = run(jnp.full(5, MEAN + deviations * STD))
    expected_gradients, expected_results = run(None)
    for actual, expected in zip(
        (*results, *gradients), (*expected_results, *expected_gradients), strict=True
    ):
        assert relative_difference(actual, expected) < tolerance


def test_one_pass_of_equal_values_has_no_variance_below_zero_and_keeps_nan() -> None:
    x = jnp.full((4, 2, 2, 3), 1.1).at[..., 2].set(jnp.nan)
    near_mean = jnp.asarray([0.7, 1.1, 0.0])
    _, _, variance = normalise_groups(x, jnp.ones(3), jnp.zeros(3), near_mean, 1, None, 1e-5)
    assert (variance[0, :2] >= 0).all()
    assert jnp.isnan(variance[0, 2])


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_accelerators_take_one_pass_around_the_running_mean(platform: str) -> None:
    """Seen by a running mean so far away that nothing is left of the variance."""
    x = images(8, dtype="float32")
    norm = BatchNorm(5)
    for mean, takes_one_pass in ((MEAN + STD, False), (1e8, True)):
        norm.mean.set_value(jnp.full(5, mean))
        with compiling_for(platform):
            y = norm(x)
        expected = reference(np.asarray(x, "float64"), np.ones(5), np.zeros(5), 8)
        exact = relative_difference(y, expected.astype("float32")) < 1e-6
        assert exact != (takes_one_pass and platform != "cpu")


def test_bfloat16_computes_statistics_and_result_in_float32() -> None:
    norm = BatchNorm(5, dtype=jnp.bfloat16)
    x = images(8, dtype="bfloat16")
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    assert norm.mean.get_value().dtype == jnp.float32
    exact = np.asarray(x, "float64")
    expected = reference(exact, np.ones(5), np.zeros(5), 8)
    # One rounding to bfloat16, no more: 8 bits of mantissa.
    error = np.abs(np.asarray(y, "float64") - expected)
    assert (error <= np.abs(expected) * 2.0**-8 + 1e-4).all()
    norm.eval()
    norm.mean.set_value(jnp.full(5, 1.001))
    evaluated = np.asarray(norm(jnp.ones((1, 1, 1, 5), jnp.bfloat16)), "float64")
    variance = np.asarray(norm.var.get_value(), "float64")
    assert relative_difference(evaluated[0, 0, 0], (1 - 1.001) / np.sqrt(variance + 1e-5)) < 5e-3


def test_refuses_groups_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="cannot be split into batch-norm groups of 4"):
        BatchNorm(5, group_size=4)(jnp.ones((6, 1, 1, 5)))


def test_refuses_a_single_value_a_channel() -> None:
    with pytest.raises(ValueError, match="at least two values"):
        BatchNorm(5, group_size=1)(jnp.ones((6, 1, 1, 5)))


@pytest.mark.usefixtures("float64")
def test_evaluation_does_not_narrow_its_input() -> None:
    norm = BatchNorm(1, dtype=jnp.float64)  # statistics in float32
    norm.eval()
    x = 1e3 + np.random.default_rng(0).normal(size=(4, 2, 2, 1))
    exact = x / np.sqrt(np.float32(1) + np.float32(1e-5))
    # Float32 would round each x by up to 3e-5.
    assert np.ptp(np.asarray(norm(jnp.asarray(x))) / exact) < 1e-12
