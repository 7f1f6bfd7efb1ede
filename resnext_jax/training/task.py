"""What the training loop needs to know of what it trains: a classifier, or a stage of a detector.

Which one it is, `config.task` says. The modules are imported when they are asked for, so that
only a detector's run imports `detection`.
"""

import abc
import pkgutil
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config.fields import task_entry
from resnext_jax.data.augment import Batch
from resnext_jax.models.variables import Arrays
from resnext_jax.optim.optimizers import Schedule
from resnext_jax.runs.best import Measure
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import TrainStep


class Task(abc.ABC):
    """One run's data, network and scores.

    Attributes:
      config: of the run.
      mesh: of the devices.
      measure: what the best checkpoint is best in.
    """

    config: ConfigDict
    mesh: Mesh
    measure: Measure

    @abc.abstractmethod
    def __init__(self, config: ConfigDict):
        """Check the config, and whether the data is there; nothing is read yet.

        Raises:
          UserError: config, devices or data do not fit.
        """

    @abc.abstractmethod
    def open(self) -> int:
        """Open the data, preparing it if need be; returns the number of training images."""

    @abc.abstractmethod
    def data_facts(self) -> dict[str, Any]:
        """Return what the data is, which all hosts must find alike (see `check_hosts_agree`)."""

    @abc.abstractmethod
    def build(self, schedule: Schedule) -> tuple[optax.GradientTransformation, TrainState]:
        """Make the optimiser, and a fresh state on all devices of the mesh."""

    @abc.abstractmethod
    def initialise(self, state: TrainState) -> TrainState:
        """Take weights over from `config.init_from` into a fresh state."""

    @abc.abstractmethod
    def train_step(self, optimizer: optax.GradientTransformation) -> TrainStep:
        """Make the compiled step."""

    @abc.abstractmethod
    def batches(self, start_step: int, num_steps: int) -> Generator[Batch, None, None]:
        """Yield the global batches `start_step` to `num_steps`, on the devices."""

    @abc.abstractmethod
    def test(
        self, params: Arrays, batch_stats: Arrays, between_batches: Callable[[], None]
    ) -> dict[str, float]:
        """Score weights on the test images; what `between_batches` raises ends that."""

    @abc.abstractmethod
    def check_data(self, workdir: Path) -> None:
        """Check that a run resumes on the data it began with."""

    @abc.abstractmethod
    def write_data(self, workdir: Path) -> None:
        """Write down which data that is."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """The run's network and data, in a few words."""

    @abc.abstractmethod
    def describe_batch(self) -> str:
        """Say how the batch is made up."""

    @abc.abstractmethod
    def describe_test(self, record: Mapping[str, Any]) -> Iterator[str]:
        """Say what came of a test, from its record."""


def find_task(config: ConfigDict) -> type[Task]:
    """Return what `config.task` names.

    Raises:
      ConfigError: there is no such task.
    """
    task: type[Task] = pkgutil.resolve_name(task_entry(config).training)
    return task
