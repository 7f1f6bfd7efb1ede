"""Starting a run from the weights of another."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.errors import ConfigError
from resnext_jax.training import setup
from resnext_jax.training.checkpoint import Checkpoints
from resnext_jax.training.finetune import is_backbone
from resnext_jax.training.state import TrainState
from resnext_jax.training.workdir import check_same_run, existing_workdir, stored_classes


def warm_start(config: ConfigDict, state: TrainState, mesh: Mesh) -> TrainState:
    """Take over all but the classifier from the newest checkpoint of `config.finetune.workdir`.

    Where that run averaged its weights, the average is taken.

    Args:
      config: of the new run.
      state: a fresh one.
      mesh: of the devices.

    Raises:
      UserError: that workdir has no whole checkpoint, or one of another network.
    """
    workdir = existing_workdir(config.finetune.workdir)
    try:
        # Weights are converted: fine-tuning in another precision is nothing unusual.
        check_same_run(config, workdir, ("model",), ignored=frozenset({"model.dtype"}))
    except ConfigError as error:
        raise ConfigError(f"config.finetune.workdir cannot be started from: {error}") from error
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        _, *shapes = setup.abstract_weights(config, stored_classes(workdir), mesh)
        weights = checkpoints.restore_weights(*shapes, ema=checkpoints.has_ema())
    params, batch_stats = (
        fresh | {name: value for name, value in stored.items() if is_backbone(name)}
        for fresh, stored in zip((state.params, state.batch_stats), weights, strict=True)
    )
    average = state.ema
    if average is not None:
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        average = copy({"params": params, "batch_stats": batch_stats})
    return dataclasses.replace(state, params=params, batch_stats=batch_stats, ema=average)
