"""When a run logs, tests and saves."""

import dataclasses
import math
import time
from collections.abc import Set

from ml_collections import ConfigDict

from resnext_jax.optim.optimizers import first_step_at


@dataclasses.dataclass(frozen=True)
class Calendar:
    """Steps after which something is due; the last step of the run is among all of them.

    Attributes:
      num_steps: of the whole run.
      log: a record of training is written.
      save: a checkpoint is written.
      test: the weights are scored.
      keep: the checkpoint is kept for ever.
    """

    num_steps: int
    log: Set[int]
    save: Set[int]
    test: Set[int]
    keep: Set[int]


def make_calendar(config: ConfigDict, epoch_steps: float, num_steps: int) -> Calendar:
    """Lay out a run of `num_steps` as the config says; `epoch_steps` is an epoch's length."""
    test = _steps_every(config.eval_every_epochs, epoch_steps, num_steps)
    # Saved before each test: what stops a run while it tests costs no training.
    save = test | _steps_every(config.checkpoint_every_epochs, epoch_steps, num_steps)
    log = {*range(0, num_steps, config.log_every_steps)} | save
    if config.checkpoint_every_steps:
        save = save | {*range(0, num_steps, config.checkpoint_every_steps)}
    keep = set()
    if config.keep_every_epochs:
        keep = _steps_every(config.keep_every_epochs, epoch_steps, num_steps)
    return Calendar(num_steps, log=log, save=save | keep, test=test, keep=keep)


def _steps_every(epochs: float, epoch_steps: float, num_steps: int) -> set[int]:
    """Steps that end each period of `epochs`, and the last step."""
    if epochs * epoch_steps <= 1:
        return set(range(1, num_steps + 1))
    periods = math.floor(num_steps / (epochs * epoch_steps))
    ends = {first_step_at(period * epochs, epoch_steps) for period in range(1, periods + 1)}
    return {step for step in ends if step <= num_steps} | {num_steps}


class SaveClock:
    """Says when a checkpoint is due, by the minutes since the last one."""

    def __init__(self, minutes: float | None):
        """Start; None is never due."""
        self._seconds = math.inf if minutes is None else 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Restart the clock: a checkpoint was saved."""
        self._begin = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._begin >= self._seconds
