"""What steps tell, averaged for a record."""

import json
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.files import strict_json
from resnext_jax.training.agreement import REQUESTS, Request
from resnext_jax.training.step import Metrics
from resnext_jax.training.window import HaltedError, MetricsWindow


def step(loss: float, *, accepted: bool = True, halted: bool = False, **more: Any) -> Metrics:
    values = {"loss": loss, "top1_error": 50.0, "top5_error": 5.0, "gradient_norm": 2.0} | more
    events = {"accepted": accepted, "halted": halted}
    return {name: jnp.asarray(value) for name, value in (values | events).items()}


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("images_per_second", "data_wait_fraction")}


def test_averages_what_was_added_since_the_last_record() -> None:
    window = MetricsWindow(batch_size=8)
    for loss in (1.0, 2.0, 6.0):
        window.add(step(loss))
    window.settle()
    expected = {"loss": 3.0, "top1_error": 50.0, "top5_error": 5.0, "gradient_norm": 2.0}
    assert untimed(window.close()) == expected
    window.add(step(5.0))
    window.settle()
    assert window.close()["loss"] == 5.0


def test_rows_of_a_checkpoint_are_part_of_the_average() -> None:
    first = MetricsWindow(batch_size=8)
    for loss in (1.1, 2.3):
        first.add(step(loss))
    first.settle()
    second = MetricsWindow(8, first.rows)
    for window in (first, second):
        window.add(step(6.7))
        window.settle()
    assert untimed(second.close()) == untimed(first.close())


def test_steps_left_out_are_counted_and_not_averaged() -> None:
    window = MetricsWindow(batch_size=8)
    spike = step(70.0, accepted=False, gradient_norm=900.0)
    for metrics in (step(1.0), spike, step(3.0), step(math.nan, accepted=False)):
        window.add(metrics)
    window.settle()
    # Through a checkpoint, of which an earlier version kept nothing of such a step.
    window = MetricsWindow(8, [*json.loads(strict_json(window.rows)), {}])
    record = window.close()
    assert (record["loss"], record["skipped_steps"]) == (2.0, 3)
    assert record["skipped_losses"] == pytest.approx([70.0, math.nan], nan_ok=True)
    assert record["skipped_gradient_norms"] == [900.0, 2.0]
    window.add(step(math.nan, accepted=False))
    window.settle()
    record = window.close()
    assert math.isnan(record["loss"])
    assert record["skipped_steps"] == 1


def test_skipped_images_are_counted() -> None:
    window = MetricsWindow(batch_size=8)
    for share in (0.25, 0.0):
        window.add(step(1.0, skipped=share))
    window.settle()
    record = window.close()
    assert record["skipped_images"] == 2
    assert "skipped" not in record
    # A run may be told to skip images when it resumes.
    window = MetricsWindow(8, [{"loss": 1.0, "top1_error": 5.0}])
    window.add(step(3.0, skipped=0.5))
    window.settle()
    record = window.close()
    assert (record["loss"], record["skipped_images"]) == (2.0, 4)
    # And no longer to.
    window = MetricsWindow(8, [{"loss": 1.0, "skipped": 0.5}])
    window.add(step(3.0))
    window.settle()
    assert window.close()["skipped_images"] == 4


def test_speed_leaves_compilation_and_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    window = MetricsWindow(batch_size=8)
    now += 100  # compiles
    window.add(step(1.0))
    for _ in range(4):
        with window.waiting_for_data():
            now += 0.1
        now += 0.4
        window.add(step(1.0))
    window.settle()
    record = window.close()
    assert record["images_per_second"] == pytest.approx(8 / 0.5)
    assert record["data_wait_fraction"] == pytest.approx(0.2)
    now += 1000
    window.restart_clock()
    window.settle()
    assert window.close()["images_per_second"] is None


def test_a_halted_step_ends_it_and_nothing_behind_counts() -> None:
    window = MetricsWindow(batch_size=8)
    window.add(step(1.0))
    window.add(step(math.nan, accepted=False, halted=True, gradient_norm=math.inf))
    window.add(step(math.nan, accepted=False, halted=True))
    with pytest.raises(HaltedError) as halt:
        window.settle()
    assert math.isnan(halt.value.loss)
    assert halt.value.gradient_norm == math.inf
    assert [row["loss"] for row in window.rows] == [1.0]
    assert window.settle() == frozenset()


def test_requests_are_known_two_steps_later_on_every_host() -> None:
    window = MetricsWindow(batch_size=8)
    asked = np.zeros(len(Request), bool)
    wished = asked.copy()
    wished[Request.STOP] = True
    answers = [
        window.add(step(1.0) | {REQUESTS: jnp.asarray(wished if number == 2 else asked)})
        for number in range(6)
    ]
    stop = frozenset({Request.STOP})
    nothing: frozenset[Request] = frozenset()
    assert answers == [nothing, nothing, nothing, nothing, stop, nothing]


def test_rows_that_are_not_finite_go_through_json() -> None:
    """As they do in a checkpoint between two records."""
    first = MetricsWindow(batch_size=8)
    first.add(step(1.0, box_loss=math.nan))
    first.settle()
    second = MetricsWindow(batch_size=8, rows=json.loads(strict_json(first.rows)))
    record = second.close()
    assert record["loss"] == 1.0
    assert math.isnan(record["box_loss"])
