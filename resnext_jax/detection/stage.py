"""What the trainings of both stages of a detector share: data, freezing, what is written down."""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.data.augment import Batch
from resnext_jax.data.pipeline import host_positions, to_devices
from resnext_jax.detection.loading import Proposals, detection_batches, training_order
from resnext_jax.detection.setup import (
    check_categories,
    check_countable,
    image_spec,
    normalised,
    open_split,
    split_files,
)
from resnext_jax.detection.validation import validate
from resnext_jax.errors import DataError
from resnext_jax.models.variables import Arrays, merge
from resnext_jax.optim.freezing import is_backbone
from resnext_jax.optim.optimizers import Schedule, is_bias
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from resnext_jax.runs.workdir import check_same_data, write_data_set
from resnext_jax.training import setup
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import Loss, Metrics, TrainStep, make_step
from resnext_jax.training.task import Task
from resnext_jax.training.warm_start import warm_start

# The loss of each image `[N]`, and what is logged beside it, `[N]` each.
Losses = tuple[jax.Array, Metrics]
ImageLosses = Callable[[Any, jax.Array, Batch], Losses]


@dataclasses.dataclass(frozen=True)
class DataVersion:
    """Which data a run is trained on; a `runs.workdir.DataSet`."""

    name: str
    version: str
    class_names: tuple[str, ...]
    former_versions: tuple[str, ...] = ()


class Stage(Task):
    """One stage's run: a `training.task.Task`, but for its network and scores.

    Attributes:
      proposals: of the training images, if they come with the batches.
      max_proposals: how many of an image.
    """

    proposals: Proposals | None = None
    max_proposals = 0

    def __init__(self, config: ConfigDict):
        """See `Task`."""
        validate(config)
        self.config = config
        # No statistics are shared between images.
        self.mesh = make_mesh(config.batch_size, 1, accumulate_steps=config.accumulate_steps)
        self.images = image_spec(config)
        for split in ("train", "test"):
            self._check_there(split)

    def open(self) -> int:
        """See `Task`."""
        config = self.config
        self.train, self.test_split = (open_split(config, split) for split in ("train", "test"))
        check_categories(self.test_split, self.train.category_names)
        check_countable(self.test_split)
        order = training_order(
            self.train, self.images, seed=config.seed, batch_size=config.batch_size
        )
        self._train_images = len(order)
        return self._train_images

    def data_facts(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "the data set": self._data_version().version,
            "the classes": ", ".join(self.train.category_names),
            **self.train.facts("train"),
            **self.test_split.facts("test"),
        }

    def build(self, schedule: Schedule) -> tuple[optax.GradientTransformation, TrainState]:
        """See `Task`."""
        optimizer = build.build_optimizer(self.config, schedule, rate_factor=self.rate_factor)
        self.graphdef, state = setup.place_state(self.config, self.network(), optimizer, self.mesh)
        return optimizer, state

    def network(self) -> nnx.Module:
        """Make the stage's network, initialised from the config's seed."""
        raise NotImplementedError

    def image_losses(self, model: Any, images: jax.Array, batch: Batch) -> Losses:
        """Return the loss of each image `[N]`, and what is logged beside it, `[N]` each.

        Args:
          model: the network, in the mode it is trained in.
          images: normalised, `[N, H, W, 3]`.
          batch: of `loading.detection_batches`.
        """
        raise NotImplementedError

    def initialise(self, state: TrainState) -> TrainState:
        """See `Task`."""
        return warm_start(self.config, state, self.mesh)

    def train_step(self, optimizer: optax.GradientTransformation) -> TrainStep:
        """See `Task`."""
        spec = setup.step_spec(self.config, self._train_images)
        loss = make_loss(self.graphdef, self.image_losses, self.config)
        return make_step(loss, optimizer, self.mesh, spec)

    def batches(self, start_step: int, num_steps: int) -> Generator[Batch, None, None]:
        """See `Task`."""
        config = self.config
        host_batches = detection_batches(
            self.train,
            self.images,
            seed=config.seed,
            batch_size=config.batch_size,
            positions=self.host_positions(),
            start_step=start_step,
            num_steps=num_steps,
            num_workers=config.data.num_workers,
            proposals=self.proposals,
            max_proposals=self.max_proposals,
        )
        sharding = batch_sharding(self.mesh, config.accumulate_steps)
        return to_devices(host_batches, sharding, config.batch_size, config.accumulate_steps)

    def check_data(self, workdir: Path) -> None:
        """See `Task`."""
        check_same_data(self._data_version(), workdir, same_images=True)

    def write_data(self, workdir: Path) -> None:
        """See `Task`."""
        write_data_set(self._data_version(), workdir)

    def describe_batch(self) -> str:
        """See `Task`."""
        return ", batch norms fixed"

    def host_positions(self) -> np.ndarray:
        """Return the places in a global training batch of this host's images."""
        config = self.config
        sharding = batch_sharding(self.mesh, config.accumulate_steps)
        return host_positions(sharding, config.batch_size, config.accumulate_steps)

    def rate_factor(self, name: str) -> float:
        """Return what multiplies the rate of a parameter."""
        if is_backbone(name):
            return float(self.config.finetune.backbone_rate)
        return float(self.config.optimizer.new_bias_rate) if is_bias(name) else 1.0

    def _data_version(self) -> DataVersion:
        version = self.train.digest(self.data_details())
        return DataVersion(self.config.data.name, version, self.train.category_names)

    def data_details(self) -> str:
        """Return what else the data is, beside images and boxes."""
        return ""

    def _check_there(self, split: str) -> None:
        if self.config.data.name == "digit_scenes":
            return  # made when they are not there
        for path in split_files(self.config, split):
            if not path.exists():
                raise DataError(
                    f"{path} is missing; unpack COCO's images and annotations there, or name "
                    "another folder with --config.data.data_dir=..."
                )


def make_loss(graphdef: Any, image_losses: ImageLosses, config: ConfigDict) -> Loss:
    """Make the loss of a step (see `training.step.make_step`) from a stage's losses of images."""
    freezing = build.freezing(config)

    def loss(
        params: Arrays, batch_stats: Arrays, batch: Batch
    ) -> tuple[jax.Array, tuple[Arrays, Metrics]]:
        model = merge(graphdef, freezing.stop_gradients(params), batch_stats)
        freezing.set_modes(model)
        losses, metrics = image_losses(model, normalised(batch, config), batch)
        metrics = {"loss": losses} | metrics
        return losses.mean(), (batch_stats, {name: x.mean() for name, x in metrics.items()})

    return loss


def keys_of(batch: Batch) -> jax.Array:
    """Return a `jax.random` key for each image of a batch."""
    return jax.vmap(jax.random.key)(batch["seed"])


def say_metrics(record: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    """Say some numbers of a test record, by name and what to call them."""
    average = " of the averaged weights" if record["weights"] == "ema" else ""
    numbers = ", ".join(f"{label} {record[name]:.1f}" for name, label in names.items())
    yield f"final test{average}: {numbers}"
