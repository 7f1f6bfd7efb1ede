"""A result that should not be taken never reaches the state."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnext_jax.training.agreement import Request, attach_requests
from resnext_jax.training.guard import GuardSpec, GuardState, Verdict, judge
from resnext_jax.training.step import StepSpec
from tests.training.tiny import TinyRun


def after(
    spec: GuardSpec, losses: list[float], *, norm: float = 1.0, halt: bool = False
) -> tuple[list[bool], GuardState]:
    """Show the guard one loss after the other; return which it accepted."""
    guard, accepted = GuardState.create(), []
    for loss in losses:
        verdict, guard = judge(spec, guard, jnp.float32(loss), jnp.float32(norm), jnp.asarray(halt))
        accepted.append(bool(verdict.accepted))
    return accepted, guard


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_halts_for_good(bad: float) -> None:
    accepted, guard = after(GuardSpec(), [1.0, bad, 1.0])
    assert accepted == [True, False, False]
    assert guard.halted
    assert not guard.released().halted


def test_a_gradient_that_is_not_finite_halts() -> None:
    accepted, _ = after(GuardSpec(), [1.0], norm=math.nan)
    assert accepted == [False]


def test_a_request_halts_whatever_the_loss() -> None:
    accepted, guard = after(GuardSpec(skip_nonfinite=True), [1.0], halt=True)
    assert accepted == [False]
    assert guard.halted


def test_skipping_goes_on_until_too_many_are_skipped_in_a_row() -> None:
    spec = GuardSpec(skip_nonfinite=True, max_skipped=2)
    nan = math.nan
    accepted, guard = after(spec, [1.0, nan, nan, 1.0, nan, nan])
    assert accepted == [True, False, False, True, False, False]
    assert not guard.halted
    accepted, guard = after(spec, [1.0, nan, nan, nan, 1.0])
    assert accepted == [True, False, False, False, False]
    assert guard.halted


def test_spikes_are_measured_against_the_average_of_late() -> None:
    spec = GuardSpec(spike_factor=2.0)
    steady = [4.0 + 0.1 * (step % 3) for step in range(40)]
    accepted, guard = after(spec, [*steady, 8.5, 4.0, 7.5])
    assert accepted == [True] * 40 + [False, True, True]
    # The spike is no part of the average.
    average = float(guard.average_loss / guard.weight)
    assert average == pytest.approx(4.1 + 0.02 * 3.4, abs=0.05)
    # The first steps of a run have no past to be measured against.
    assert after(spec, [1.0, 5.0])[0] == [True, True]
    assert after(GuardSpec(), [*steady, 100.0])[0] == [True] * 41


def test_a_run_whose_losses_stay_high_is_halted() -> None:
    spec = GuardSpec(spike_factor=2.0, max_skipped=3)
    accepted, guard = after(spec, [1.0] * 20 + [5.0] * 4)
    assert accepted == [True] * 20 + [False] * 4
    assert guard.halted


def snapshot(run: TinyRun) -> list[np.ndarray]:
    """Copy all that steps change but what counts them."""
    state = run.state
    arrays = jax.device_get((state.params, state.batch_stats, state.opt_state))
    return [np.copy(leaf) for leaf in jax.tree.leaves(arrays) if leaf.dtype == np.float32]


def same(before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("skip", [False, True], ids=["stop", "skip"])
def test_a_step_leaves_the_state_as_it_was(skip: bool) -> None:
    """A weight that is not a number, then a good one: the guard inside the whole step."""
    run = TinyRun(2, 32, dtype="float32", spec=StepSpec(guard=GuardSpec(skip_nonfinite=skip)))
    run.train(1)
    weight = run.state.params["fc.bias"]
    run.state.params["fc.bias"] = jax.device_put(np.full(7, np.nan, np.float32), weight.sharding)
    weight = jnp.copy(weight)
    before = snapshot(run)
    run.state, metrics = run.step(run.state, run.batch(1))
    assert not math.isfinite(float(metrics["loss"]))
    assert not metrics["accepted"]
    assert bool(metrics["halted"]) is not skip
    assert same(before, snapshot(run))
    assert int(run.state.step) == (2 if skip else 1)

    run.state.params["fc.bias"] = weight
    before = snapshot(run)
    run.state, metrics = run.step(run.state, run.batch(2))
    assert bool(metrics["accepted"]) is skip
    assert same(before, snapshot(run)) is not skip
    assert int(run.state.step) == (3 if skip else 1)


def test_a_step_left_out_has_passed_for_the_rate() -> None:
    """Optax counts steps for the schedule; what is logged is the rate of the run's step."""
    run = TinyRun(1, 32, dtype="float32", spec=StepSpec(guard=GuardSpec(skip_nonfinite=True)))
    run.train(1)
    run.state.params["fc.bias"] = jnp.full(7, jnp.nan, jnp.float32)
    run.state, metrics = run.step(run.state, run.batch(1))
    assert not metrics["accepted"]
    assert int(optax.tree_utils.tree_get(run.state.opt_state, "count")) == 2
    assert int(run.state.step) == 2


def test_other_whole_numbers_of_an_optimizer_are_left_alone() -> None:
    """Adam counts the gradients in its averages: one that was left out is not among them."""
    optimizer = optax.adamw(lambda count: 0.1 * count)
    params = {"w": jnp.ones(3)}
    old = optimizer.init(params)
    _, new = optimizer.update(params, old, params)
    verdict = Verdict(accepted=jnp.bool_(False), halted=jnp.bool_(False))
    kept = verdict.count(new, verdict.choose(new, old))
    adam, *_, schedule = kept
    assert (int(adam.count), int(schedule.count)) == (0, 1)
    halted = Verdict(accepted=jnp.bool_(False), halted=jnp.bool_(True))
    *_, schedule = halted.count(new, halted.choose(new, old))
    assert int(schedule.count) == 0


def test_requests_are_read_alike_with_the_metrics() -> None:
    run = TinyRun(8, 32, dtype="float32")
    run.train(1)
    before = snapshot(run)
    batch = attach_requests(run.batch(1), {Request.SAVE, Request.HALT}, run.mesh)
    run.state, metrics = run.step(run.state, batch)
    assert list(np.asarray(metrics["requests"])) == [False, True, True]
    assert metrics["halted"]
    assert same(before, snapshot(run))
