"""What the training loop needs to know of what it trains, a classifier or a detector."""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.augment import Batch
from resnext_jax.models.variables import Arrays
from resnext_jax.optim.optimizers import Schedule
from resnext_jax.runs.best import Measure
from resnext_jax.runs.workdir import DataSet
from resnext_jax.training.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Task:
    """One run's data, network and scores, ready for `loop.run`.

    Attributes:
      config: of the run.
      title: the run's network and data, in a few words.
      batch_note: how the batch is made up, to follow its size.
      measure: what the best checkpoint is best in.
      data: which data it is, for the workdir.
      num_images: of the training set.
      mesh: of the devices.
      graphdef: of the network, see `models.variables.split`.
      schedule: of the learning rate, by the step.
      train_step: compiled when it is first called.
      batches: given the steps taken so far and the steps of the run, yields the global batches of
        the steps between, on the devices.
      test: given parameters, running statistics and what to call between batches, whose exceptions
        end the test, scores the weights on the test images.
      describe_test: says what came of a test, from its record.
    """

    config: ConfigDict
    title: str
    batch_note: str
    measure: Measure
    data: DataSet
    num_images: int
    mesh: Mesh
    graphdef: nnx.GraphDef
    schedule: Schedule
    train_step: TrainStep
    batches: Callable[[int, int], Generator[Batch, None, None]]
    test: Callable[[Arrays, Arrays, Callable[[], None]], dict[str, float]]
    describe_test: Callable[[Mapping[str, Any]], Iterator[str]]
