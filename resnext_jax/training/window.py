"""Metrics and timing of the steps since the last record."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from resnext_jax.data.augment import SKIPPED
from resnext_jax.training.agreement import REQUESTS, Request
from resnext_jax.training.step import ACCEPTED, HALTED, Metrics

# Steps by which Python may run ahead of the devices: every step that waits keeps its
# images on the device.
_STEPS_AHEAD = 2

# What a record averages, if not one of its steps was taken.
_ALWAYS = ("loss", "gradient_norm")
# What is kept of a step that was left out, and as which list of the record.
_LEFT_OUT = {"loss": "skipped_losses", "gradient_norm": "skipped_gradient_norms"}


class HaltedError(Exception):
    """The step's guard has halted the run; the state is that before the step.

    Attributes:
      loss, gradient_norm: of the step.
      requests: what the hosts asked with it.
    """

    def __init__(self, loss: float, gradient_norm: float, requests: frozenset[Request]):
        """Note what halted the run."""
        super().__init__()
        self.loss = loss
        self.gradient_norm = gradient_norm
        self.requests = requests


class MetricsWindow:
    """Collects the metrics of steps, and averages them for a record.

    Attributes:
      rows: metrics of the steps since the last record, for a step that was left out under other
        names (see `_LEFT_OUT`); part of a checkpoint, as JSON.
    """

    def __init__(self, batch_size: int, rows: Sequence[Mapping[str, float | None]] | None = None):
        """Begin, or go on with the rows of a checkpoint."""
        self._batch_size = batch_size
        # JSON has null for NaN.
        self.rows = [
            {name: math.nan if value is None else value for name, value in row.items()}
            for row in rows or []
        ]
        self._sent: collections.deque[Metrics] = collections.deque()
        self._compiled = False
        self.restart_clock()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def add(self, metrics: Metrics) -> frozenset[Request]:
        """Note a step that has been sent off.

        Returns:
          What the hosts asked with the steps that are known to be done, which are
          the same steps on every host.

        Raises:
          HaltedError: one of those was halted.
        """
        self._sent.append(metrics)
        self._timed_steps += 1
        if self._compiled:
            return self.settle(ahead=_STEPS_AHEAD)
        # The first step's time is compilation: a speed should not hold it.
        requests = self.settle()
        self._compiled = True
        self.restart_clock()
        return requests

    def settle(self, ahead: int = 0) -> frozenset[Request]:
        """Wait for the steps sent off, but for the last `ahead`; see `add`."""
        asked: frozenset[Request] = frozenset()
        while len(self._sent) > ahead:
            row = jax.device_get(self._sent.popleft())
            accepted, halted = row.pop(ACCEPTED), row.pop(HALTED)
            requests = frozenset(r for r in Request if REQUESTS in row and row[REQUESTS][r])
            row.pop(REQUESTS, None)
            values = {name: float(value) for name, value in row.items()}
            if halted:
                self._sent.clear()  # those after it do not count
                raise HaltedError(values["loss"], values["gradient_norm"], requests)
            left_out = {kept: values[name] for name, kept in _LEFT_OUT.items()}
            self.rows.append(values if accepted else left_out)
            asked |= requests
        return asked

    def close(self) -> dict[str, Any]:
        """Return the averages and the speed of the steps, all settled, and begin the next window.

        Where steps were left out `skipped_steps` counts them, and `skipped_losses` and
        `skipped_gradient_norms` list what they had; where images were, `skipped_images` counts
        them.
        """
        taken = [row for row in self.rows if "loss" in row]
        # A resumed run may start or stop counting skipped images.
        names = dict.fromkeys(name for row in taken for name in row) or _ALWAYS
        record: dict[str, Any] = {
            name: sum(row.get(name, 0.0) for row in taken) / len(taken) if taken else math.nan
            for name in names
        }
        if SKIPPED in record:
            images = len(taken) * self._batch_size
            record["skipped_images"] = round(record.pop(SKIPPED) * images)
        if len(taken) < len(self.rows):
            record["skipped_steps"] = len(self.rows) - len(taken)
            for kept in _LEFT_OUT.values():  # an earlier version's checkpoint has none
                record[kept] = [row[kept] for row in self.rows if kept in row]
        seconds = time.perf_counter() - self._begin
        timed = self._timed_steps > 0
        record["images_per_second"] = (
            self._timed_steps * self._batch_size / seconds if timed else None
        )
        record["data_wait_fraction"] = self._waited / seconds if timed else None
        self.rows = []
        self.restart_clock()
        return record

    def restart_clock(self) -> None:
        """Leave what happened since the last step out of the speed."""
        self._timed_steps = 0
        self._waited = 0.0
        self._begin = time.perf_counter()
