"""Arrays that are joined for GPUs: the same steps, and the same state where none is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.optim.freezing import Freezing
from resnext_jax.parallel import joining
from resnext_jax.training.guard import GuardSpec
from resnext_jax.training.step import StepSpec
from tests.numerics import worst_difference
from tests.training.tiny import TinyRun


@pytest.fixture
def as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "target_platform", lambda: "gpu")


def test_elsewhere_nothing_is_joined() -> None:
    tree = {"a": jnp.ones(3)}
    joined, separate = joining.join(tree)
    assert joined is tree
    assert separate(tree) is tree


@pytest.mark.usefixtures("as_on_gpus")
def test_what_is_joined_is_taken_apart() -> None:
    tree = {
        "kernel": jnp.arange(12.0).reshape(3, 4),
        "scale": jnp.arange(3.0),
        "loss": jnp.float32(7),
        "other": [jnp.arange(4.0).reshape(2, 2), jnp.arange(2, dtype=jnp.bfloat16)],
        "none": jnp.zeros((0, 2)),
    }
    joined, separate = joining.join(tree)
    assert sorted(x.shape for x in joined.values()) == [(2,), (4,), (16,)]
    back = separate(joined)
    jax.tree.map(np.testing.assert_array_equal, back, tree)  # which compares structures, too
    dtypes = [[x.dtype for x in jax.tree.leaves(each)] for each in (back, tree)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow), 8])
def test_steps_are_the_same(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = StepSpec(freezing=Freezing(stages=1))
    run = TinyRun(devices, 32, spec=spec)
    losses = run.train(3)
    monkeypatch.setattr(joining, "target_platform", lambda: "gpu")
    joined = TinyRun(devices, 32, spec=spec)
    assert joined.train(3) == pytest.approx(losses, rel=1e-12)
    for name in ("params", "batch_stats"):
        assert worst_difference(getattr(joined.state, name), getattr(run.state, name)) < 1e-12


@pytest.mark.usefixtures("as_on_gpus")
def test_a_step_that_is_not_taken_changes_nothing() -> None:
    run = TinyRun(2, 32, dtype="float32", spec=StepSpec(guard=GuardSpec(skip_nonfinite=True)))
    run.train(1)
    weight = run.state.params["fc.bias"]
    run.state.params["fc.bias"] = jax.device_put(np.full(7, np.nan, np.float32), weight.sharding)
    state = run.state
    before = jax.tree.map(np.array, (state.params, state.batch_stats, state.opt_state))
    run.state, metrics = run.step(run.state, run.batch(1))
    assert not metrics["accepted"]
    state = run.state
    after = jax.tree.map(np.array, (state.params, state.batch_stats, state.opt_state))
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        if old.dtype == np.float32:
            np.testing.assert_array_equal(new, old)
