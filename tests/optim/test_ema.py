"""The average of the weights, against sums written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.optim.ema import EmaSpec, update


def average(spec: EmaSpec, values: list[float], start: float = 0.0) -> float:
    weights = {"params": {"w": jnp.float32(start)}}
    for step, value in enumerate(values, start=1):
        weights = update(spec, weights, {"params": {"w": jnp.float32(value)}}, jnp.int32(step))
    return float(weights["params"]["w"])


def test_is_the_exponential_average() -> None:
    values = [1.0, 2.0, 5.0, -3.0]
    # From the first step's weights on: what a run starts from, 7, is random.
    expected = 1.0 * 0.9**3 + sum(0.1 * 0.9 ** (2 - i) * v for i, v in enumerate(values[1:]))
    assert average(EmaSpec(0.9), values, start=7.0) == pytest.approx(expected, rel=1e-6)


def test_moves_at_every_so_many_steps() -> None:
    values = [1.0, 2.0, 5.0, -3.0, 100.0]
    expected = 0.9 * 2.0 + 0.1 * -3.0
    assert average(EmaSpec(0.9, every_steps=2), values, start=7.0) == pytest.approx(expected)


def test_is_the_weights_themselves_until_it_starts() -> None:
    assert average(EmaSpec(0.9, start_step=3), [1.0, 2.0, 5.0], start=7.0) == 5.0
    # Also where the first update comes after the start.
    rare = EmaSpec(0.9, every_steps=4, start_step=3)
    assert average(rare, [1.0, 2.0, 5.0], start=7.0) == 7.0
    assert average(rare, [1.0, 2.0, 5.0, 6.0], start=7.0) == 6.0
    expected = 0.9 * 5.0 + 0.1 * -3.0
    assert average(EmaSpec(0.9, start_step=3), [1.0, 2.0, 5.0, -3.0]) == pytest.approx(expected)


def test_warm_up_lets_a_short_run_s_average_follow() -> None:
    """Update n decays by (1 + n) / (10 + n), at most by `decay`, after what copies the weights."""
    spec = EmaSpec(0.3, start_step=1, warmup=True)
    expected = 2.0  # step 1
    for count, value in enumerate([5.0, -3.0, 4.0, 1.0], start=1):
        decay = min(0.3, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    assert average(spec, [2.0, 5.0, -3.0, 4.0, 1.0], start=7.0) == pytest.approx(expected)
    # Weights that go from 1 to 0 at step 10 of 90: the average has forgotten the 1, where one
    # without warm-up has 0.99**80 = 45 % of it.
    values = [1.0] * 10 + [0.0] * 80
    assert average(EmaSpec(0.99, warmup=True), values) < 1e-5
    assert average(EmaSpec(0.99), values) == pytest.approx(0.99**80, rel=1e-4)


def test_keeps_shape_and_dtype() -> None:
    old = {"batch_stats": {"mean": jnp.zeros((3,), jnp.float32)}}
    new = {"batch_stats": {"mean": jnp.ones((3,), jnp.float32)}}
    mean = update(EmaSpec(0.5), old, new, jnp.int32(2))["batch_stats"]["mean"]
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, 0.5)
