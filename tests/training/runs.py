"""Short runs, and what tests compare of them."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from resnext_jax.configs import digits_resnext29
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import make_train_step

# The same as flags of train.py.
SHORT_RUN_FLAGS = [
    "--config=configs/digits_resnext29.py",
    "--config.model.name=resnext11_2x4d",
    "--config.model.stem_width=8",
    "--config.model.template_width=16",
    "--config.data.image_size=8",
    "--config.data.max_shift=1",
    "--config.batch_size=128",
    "--config.bn_group_size=32",
    "--config.optimizer.base_batch_size=128",
    "--config.num_epochs=4.0",
    "--config.log_every_steps=5",
]


def short_run_config(data_dir: Path) -> ConfigDict:
    """Make a config of four short epochs of a small network on the digits: 45 steps."""
    config = digits_resnext29.get_config()
    config.model.name = "resnext11_2x4d"
    config.model.stem_width = 8
    config.model.template_width = 16
    config.data.image_size = 8
    config.data.max_shift = 1
    config.data.data_dir = str(data_dir)
    config.batch_size = 128
    config.bn_group_size = 32  # across devices, where there are eight
    config.optimizer.base_batch_size = 128
    config.num_epochs = 4.0
    config.log_every_steps = 5
    return config


def assert_same_state(actual: TrainState, expected: TrainState) -> None:
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), actual, expected)
    assert all(jax.tree.leaves(equal))


def without_timings(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timings = {"images_per_second", "data_wait_fraction"}
    return [{k: v for k, v in record.items() if k not in timings} for record in records]


def acting_at(step: int, act: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make a `make_train_step` that gives a step's batch to `act` first, and uses what it returns.

    Args:
      step: the number of the step, 1 for the first.
      act: is given the batch.
    """

    def make(*args: Any, **kwargs: Any) -> Any:
        real = make_train_step(*args, **kwargs)

        def train_step(state: TrainState, batch: Any) -> Any:
            if int(state.step) + 1 == step:
                batch = act(batch)
            return real(state, batch)

        return train_step

    return make


def stopping_at(step: int, *signal_numbers: signal.Signals) -> Callable[..., Any]:
    """Make a `make_train_step` whose step raises real signals in this process."""

    def act(batch: Any) -> Any:
        for signal_number in signal_numbers:
            signal.raise_signal(signal_number)
        return batch

    return acting_at(step, act)


def stored_steps(workdir: Path) -> set[int]:
    """Return the steps that a workdir has checkpoints of."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return {int(name) for name in names if name.isdigit()}


def stored_arrays(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Read every array of a workdir's newest checkpoint (or another), by item and name."""
    step = max(stored_steps(workdir)) if step is None else step
    folder = workdir / "checkpoints" / str(step)
    arrays = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("weights", "ema", "training"):
            if not (folder / item).is_dir():
                continue
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                checkpointer.restore(folder / item)
            ):
                arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays
