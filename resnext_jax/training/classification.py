"""Training a classifier: the data, the step and the scores of a run."""

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import optax
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.checks import validate
from resnext_jax.data.augment import Batch
from resnext_jax.data.pipeline import host_positions, to_devices, train_batches
from resnext_jax.data.sources import check_available, open_splits
from resnext_jax.evaluation.run import Evaluation
from resnext_jax.models.variables import Arrays
from resnext_jax.optim.optimizers import Schedule
from resnext_jax.parallel.mesh import batch_sharding
from resnext_jax.runs.best import Measure
from resnext_jax.runs.workdir import check_same_data, write_data_set
from resnext_jax.training import setup
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import TrainStep, make_train_step
from resnext_jax.training.task import Task
from resnext_jax.training.warm_start import warm_start


class Classification(Task):
    """A classifier's run (paper Sec. 4)."""

    measure = Measure("top1_error", "top-1 error (%)", highest=False)

    def __init__(self, config: ConfigDict):
        """See `Task`."""
        validate(config)
        self.config = config
        self.mesh = build.training_mesh(config)
        check_available(config.data.name, config.data.data_dir)

    def open(self) -> int:
        """See `Task`."""
        self._source, self._test_source = open_splits(self.config)
        return len(self._source)

    def data_facts(self) -> dict[str, Any]:
        """See `Task`."""
        return self._source.facts() | self._test_source.facts()

    def build(self, schedule: Schedule) -> tuple[optax.GradientTransformation, TrainState]:
        """See `Task`."""
        optimizer = build.build_optimizer(self.config, schedule)
        self._graphdef, state = setup.build_state(
            self.config, self._source.num_classes, optimizer, self.mesh
        )
        self._evaluation = Evaluation(self.config, self._test_source, self._graphdef, self.mesh)
        return optimizer, state

    def initialise(self, state: TrainState) -> TrainState:
        """See `Task`."""
        return warm_start(self.config, state, self.mesh)

    def train_step(self, optimizer: optax.GradientTransformation) -> TrainStep:
        """See `Task`."""
        return make_train_step(
            self._graphdef,
            optimizer,
            build.device_transform(self.config).train,
            self.mesh,
            setup.step_spec(self.config, len(self._source)),
        )

    def batches(self, start_step: int, num_steps: int) -> Generator[Batch, None, None]:
        """See `Task`."""
        config, sharding = self.config, batch_sharding(self.mesh, self.config.accumulate_steps)
        host_batches = train_batches(
            self._source,
            build.train_transform(config),
            seed=config.seed,
            batch_size=config.batch_size,
            positions=host_positions(sharding, config.batch_size, config.accumulate_steps),
            start_step=start_step,
            num_steps=num_steps,
            num_workers=config.data.num_workers,
            on_error=config.data.on_error,
        )
        return to_devices(host_batches, sharding, config.batch_size, config.accumulate_steps)

    def test(
        self, params: Arrays, batch_stats: Arrays, between_batches: Callable[[], None]
    ) -> dict[str, float]:
        """See `Task`."""
        return self._evaluation.run(params, batch_stats, between_batches).as_record()

    def check_data(self, workdir: Path) -> None:
        """See `Task`."""
        check_same_data(self._source, workdir, same_images=True)

    def write_data(self, workdir: Path) -> None:
        """See `Task`."""
        write_data_set(self._source, workdir)

    @property
    def title(self) -> str:
        """See `Task`."""
        return f"{self.config.model.name} on {self.config.data.name}"

    def describe_batch(self) -> str:
        """See `Task`."""
        return f" in batch-norm groups of {self.config.bn_group_size or self.config.batch_size}"

    def describe_test(self, record: Mapping[str, Any]) -> Iterator[str]:
        """See `Task`."""
        average = " of the averaged weights" if record["weights"] == "ema" else ""
        yield (
            f"final test error{average}: top-1 {record['top1_error']:.2f} %, "
            f"top-5 {record['top5_error']:.2f} %"
        )
