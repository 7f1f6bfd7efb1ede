"""That the loop sends off steps without waiting for what they compute, but where it must."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.config import build
from resnext_jax.training import classification, loop
from resnext_jax.training.state import TrainState
from resnext_jax.training.task import Task
from resnext_jax.training.window import MetricsWindow
from tests.training.runs import short_run_config

STEPS = 11  # an epoch
# The first step compiles. At a record, a checkpoint and a test all steps are waited for.
DUE = {1, 5, 10, STEPS}
# The loop may be so many steps ahead of the devices, and then waits for the oldest.
AHEAD = 2


class Result:
    """Stands in for what a step computes, and notes what is done with it."""

    def __init__(self, value: Any, note: Callable[[str], None]):
        """Keep the value and call `note` with the name of each use."""
        self.value, self.note = value, note

    def use(self, name: str) -> Any:
        """Note a use and return the value's own method or attribute."""
        if name != "copy_to_host_async":  # which does not wait
            self.note(name)
        return getattr(self.value, name)

    def __getattr__(self, name: str) -> Any:
        return self.use(name)

    # Python looks these up in the class alone.
    def __array__(self, *arguments: Any, **options: Any) -> Any:
        return self.use("__array__")(*arguments, **options)

    def __bool__(self) -> bool:
        return bool(self.use("__bool__")())

    def __float__(self) -> float:
        return float(self.use("__float__")())

    def __int__(self) -> int:
        return int(self.use("__int__")())

    def __str__(self) -> str:
        return str(self.use("__str__")())


class Steps:
    """A train step that computes nothing, and notes what the loop reads too early."""

    def __init__(self) -> None:
        """Begin with no step."""
        self.sent = 0
        self.early: list[tuple[int, str]] = []

    def __call__(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        """Take a step."""
        state = state.value if isinstance(state, Result) else state
        self.sent += 1
        step = self.sent

        def note_state(name: str) -> None:
            self.early.append((self.sent, f"state.{name}"))

        def note_metric(name: str) -> None:
            if self.sent not in DUE and self.sent < step + AHEAD:
                self.early.append((self.sent, name))

        numbers = {"loss": 1.0, "gradient_norm": 1.0, "accepted": True, "halted": False}
        metrics = {name: Result(jnp.asarray(x), note_metric) for name, x in numbers.items()}
        state = dataclasses.replace(state, step=state.step + 1)
        return state if step in DUE else Result(state, note_state), metrics


def train(data_dir: Path, workdir: Path) -> list[tuple[int, str]]:
    """Run an epoch of steps that compute nothing; return what was read early, and at which step."""
    config = short_run_config(data_dir)
    config.num_epochs = 1.0
    steps = Steps()

    def prepare() -> tuple[Task, TrainState]:
        task, state = classification.prepare(config, build.training_mesh(config))
        scores = {"loss": 1.0, "top1_error": 50.0, "top5_error": 10.0}
        fake: Any = steps
        return dataclasses.replace(task, train_step=fake, test=lambda *_: scores), state

    loop.run(workdir, prepare)
    assert steps.sent == STEPS
    return steps.early


def test_no_step_is_waited_for_but_the_oldest(data_dir: Path, tmp_path: Path) -> None:
    assert train(data_dir, tmp_path) == []


@pytest.mark.parametrize(
    "read", [float, np.asarray, jax.device_get, jax.block_until_ready, "{}".format]
)
def test_metrics_that_are_read_at_once_are_noticed(
    data_dir: Path, tmp_path: Path, read: Callable[[Any], Any]
) -> None:
    add = MetricsWindow.add

    def reading(window: MetricsWindow, metrics: Any) -> Any:
        read(metrics["loss"])
        return add(window, metrics)

    with mock.patch.object(MetricsWindow, "add", reading):
        early = train(data_dir, tmp_path)
    assert {step for step, _ in early} == set(range(1, STEPS + 1)) - DUE


def test_a_state_that_is_read_at_once_is_noticed(data_dir: Path, tmp_path: Path) -> None:
    wishes = loop._Run._local_requests

    def reading(run: Any) -> Any:
        int(run.state.step)
        return wishes(run)

    with mock.patch.object(loop._Run, "_local_requests", reading):
        early = train(data_dir, tmp_path)
    assert {step for step, _ in early} == set(range(1, STEPS + 1)) - DUE
