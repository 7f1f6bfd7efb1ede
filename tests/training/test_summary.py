"""What a run says of itself at its start."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resnext_jax.config.fields import base_config
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.training.summary import introduction


def lines(**schedule: Any) -> list[str]:
    config = base_config()
    config.num_epochs = 60.0
    config.schedule.update(schedule)
    task: Any = SimpleNamespace(
        config=config,
        title="resnext on digits",
        mesh=make_mesh(256, 32),
        batch_note="",
    )
    state: Any = SimpleNamespace(step=0, params={"kernel": np.zeros((2, 3))})
    return list(introduction(task, state, 100, resuming=False))


def test_boundaries_that_are_not_reached_are_noted() -> None:
    (note,) = [line for line in lines(boundaries=(30.0, 60.0, 90.5)) if line.startswith("note: ")]
    assert "config.schedule.boundaries=60, 90.5 come after the run's last epoch, 60" in note


@pytest.mark.parametrize("schedule", [{"boundaries": (30.0, 59.9)}, {"name": "cosine"}])
def test_nothing_is_noted_where_all_count(schedule: dict[str, Any]) -> None:
    assert not [line for line in lines(**schedule) if "note" in line]


def test_a_run_on_the_cpu_says_which_convolutions_it_computes_with() -> None:
    assert len([line for line in lines() if line.startswith("convolutions on the CPU: ")]) == 1
