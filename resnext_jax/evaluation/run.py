"""Evaluation of a run: its test set, as its config says."""

import contextlib
import os
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.pipeline import eval_batches, host_positions, to_devices
from resnext_jax.data.sources import Source, open_split
from resnext_jax.data.transforms import EvalTransform
from resnext_jax.evaluation.evaluator import EvalResult, evaluate, make_eval_step
from resnext_jax.models.variables import Arrays
from resnext_jax.training import setup
from resnext_jax.training.checkpoint import Checkpoints
from resnext_jax.training.config import validate
from resnext_jax.training.mesh import batch_sharding, make_mesh
from resnext_jax.training.workdir import check_same_run, existing_workdir


class Evaluation:
    """A test set, ready to score weights again and again."""

    def __init__(self, config: ConfigDict, source: Source, graphdef: Any, mesh: Mesh):
        """Prepare the step (it compiles when first run)."""
        self._config = config
        self._source = source
        self._sharding = batch_sharding(mesh)
        # Blanks fill up the batch, so any size can be rounded up to fit the devices.
        devices = mesh.size
        self._batch_size = -(-config.eval_batch_size // devices) * devices
        transform = setup.device_transform(config)
        self._step = make_eval_step(graphdef, transform.test, mesh)

    def run(self, params: Arrays, batch_stats: Arrays) -> EvalResult:
        """Score every test image once."""
        batches = eval_batches(
            self._source.examples,
            EvalTransform(self._config.data.eval_image_size or self._config.data.image_size),
            batch_size=self._batch_size,
            positions=host_positions(self._sharding, self._batch_size),
            num_workers=self._config.data.num_workers,
        )
        on_devices = to_devices(batches, self._sharding, self._batch_size)
        return evaluate(self._step, params, batch_stats, on_devices, len(self._source))


def evaluate_workdir(config: ConfigDict, workdir: str | os.PathLike[str]) -> tuple[int, EvalResult]:
    """Score the newest checkpoint of a workdir.

    Returns:
      The checkpoint's step, and the result.

    Raises:
      UserError: config, data, workdir or checkpoint are unusable.
    """
    validate(config)
    folder = existing_workdir(workdir)
    # No training batch is split here, so that any number of devices will do.
    mesh = make_mesh(batch_size=jax.device_count(), bn_group_size=1)
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        step = checkpoints.require_step()
        check_same_run(config, folder, sections=("model", "data"))
        source = open_split(config, "test")
        graphdef, params, batch_stats = setup.abstract_weights(config, source.num_classes, mesh)
        params, batch_stats = checkpoints.restore_weights(params, batch_stats)
    return step, Evaluation(config, source, graphdef, mesh).run(params, batch_stats)
