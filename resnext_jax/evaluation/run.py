"""Evaluation of a run: its test set, as its config says."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.sources import Source, open_split
from resnext_jax.errors import ConfigError
from resnext_jax.evaluation.crops import CropEvaluation
from resnext_jax.evaluation.dense import DenseEvaluation
from resnext_jax.evaluation.evaluator import EvalResult
from resnext_jax.models.variables import Arrays
from resnext_jax.training import setup
from resnext_jax.training.best import wanted_step
from resnext_jax.training.checkpoint import Checkpoints
from resnext_jax.training.mesh import make_mesh
from resnext_jax.training.validation import validate
from resnext_jax.training.workdir import check_same_data, check_same_run, existing_workdir


class Evaluation:
    """A test set, ready to score weights again and again, as `config.data.eval_crops` says."""

    def __init__(self, config: ConfigDict, source: Source, graphdef: Any, mesh: Mesh):
        """Prepare the step (it compiles when first run).

        Raises:
          UserError: the config does not fit the data, or the data cannot be read.
        """
        first_classes = config.data.eval_first_classes
        if first_classes is not None and first_classes > source.num_classes:
            raise ConfigError(
                f"config.data.eval_first_classes={first_classes} is more than the "
                f"{source.num_classes} classes of {source.name!r}; lower it, or set it to None."
            )
        protocol = DenseEvaluation if config.data.eval_crops == "dense" else CropEvaluation
        self._evaluation = protocol(config, source, graphdef, mesh)

    def run(
        self,
        params: Arrays,
        batch_stats: Arrays,
        between_batches: Callable[[], None] = lambda: None,
    ) -> EvalResult:
        """Score every test image once; what `between_batches` raises ends that."""
        return self._evaluation.run(params, batch_stats, between_batches)


def evaluate_workdir(
    config: ConfigDict, workdir: str | os.PathLike[str], checkpoint: str = "latest"
) -> tuple[int, dict[str, EvalResult]]:
    """Score a checkpoint of a workdir.

    Args:
      config: of the run.
      workdir: its folder.
      checkpoint: "latest", "best" (that of `best.json`), or a step.

    Returns:
      The checkpoint's step, and the result by weights: "raw", and "ema" where
      the run averaged them.

    Raises:
      UserError: config, data, workdir or checkpoint are unusable.
    """
    validate(config)
    folder = existing_workdir(workdir)
    # No training batch is split here, so that any number of devices will do.
    mesh = make_mesh(batch_size=jax.device_count(), bn_group_size=1)
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        step = checkpoints.require_step(wanted_step(checkpoint, folder))
        check_same_run(config, folder, sections=("model", "data"))
        source = open_split(config, "test")
        check_same_data(source, folder, same_images=False)
        graphdef, *shapes = setup.abstract_weights(config, source.num_classes, mesh)
        weights = {"raw": checkpoints.restore_weights(*shapes, step=step)}
        if checkpoints.has_ema(step):
            weights["ema"] = checkpoints.restore_weights(*shapes, step=step, ema=True)
    evaluation = Evaluation(config, source, graphdef, mesh)
    return step, {name: evaluation.run(*arrays) for name, arrays in weights.items()}
