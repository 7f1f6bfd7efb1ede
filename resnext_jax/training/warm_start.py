"""Starting a run from the weights of another, or of PyTorch."""

import contextlib
import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.errors import ConfigError
from resnext_jax.files import user_path
from resnext_jax.interop.files import source
from resnext_jax.interop.pretrained import Published, find, is_name
from resnext_jax.interop.torch import read_state_dict, weights_from_torch
from resnext_jax.models.variables import Arrays
from resnext_jax.optim.freezing import is_backbone
from resnext_jax.parallel.distributed import is_first_host
from resnext_jax.parallel.mesh import replicated_sharding
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.runs.workdir import (
    CONFIG_FILE,
    check_same_run,
    existing_workdir,
    stored_class_names,
    stored_config,
)
from resnext_jax.training.state import TrainState

_FILES = (".safetensors", ".pth", ".pt")


def warm_start(config: ConfigDict, state: TrainState, mesh: Mesh) -> TrainState:
    """Take over what is in front of the classifier from `config.init_from`.

    That is the workdir of a run, whose newest checkpoint is read (the average of its weights,
    where it has one), a file of PyTorch's weights (see `interop.torch`), or published weights by
    name (see `interop.pretrained`). A network that has not all of a classifier's stages takes
    those it has.

    Args:
      config: of the new run.
      state: a fresh one.
      mesh: of the devices.

    Raises:
      UserError: that workdir has no whole checkpoint, or the weights are of another network.
    """
    path = user_path(config.init_from, "config.init_from")
    read = (
        _from_file
        if is_name(config.init_from) or path.is_file() or path.suffix in _FILES
        else _from_workdir
    )
    params, batch_stats = (
        {
            name: stored[name].astype(value.dtype) if is_backbone(name) else value
            for name, value in fresh.items()
        }
        for fresh, stored in zip(
            (state.params, state.batch_stats), read(config, path, mesh), strict=True
        )
    )
    average = state.ema
    if average is not None:
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        average = copy({"params": params, "batch_stats": batch_stats})
    return dataclasses.replace(state, params=params, batch_stats=batch_stats, ema=average)


def _from_workdir(config: ConfigDict, path: Path, mesh: Mesh) -> tuple[Arrays, Arrays]:
    workdir = existing_workdir(path)
    if (workdir / CONFIG_FILE).exists():
        _check_task(stored_config(workdir), workdir)
    try:
        # Weights are converted: fine-tuning in another precision is nothing unusual.
        check_same_run(config, workdir, ("model",), ignored=frozenset({"model.dtype"}))
    except ConfigError as error:
        raise ConfigError(f"config.init_from cannot be started from: {error}") from error
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        _, *shapes = build.abstract_weights(config, len(stored_class_names(workdir)), mesh)
        return checkpoints.restore_weights(*shapes, ema=checkpoints.has_ema())


def _check_task(stored: ConfigDict, workdir: Path) -> None:
    if stored.task != "classification":
        origin = f", such as {stored.init_from}, which that run started from"
        raise ConfigError(
            f"config.init_from={workdir} holds a detector (config.task={stored.task!r}), and only "
            "a classifier's weights can be taken: give the workdir of one, or a file of PyTorch's "
            f"weights{origin if stored.init_from else ''}."
        )


def _from_file(config: ConfigDict, path: Path, mesh: Mesh) -> tuple[Arrays, Arrays]:
    spec, named = build.model_spec(config, num_classes=1), source(path)
    if is_name(config.init_from):
        published = find(config.init_from)
        path, named = published.file, published.source
        _note_normalisation(config, published)
    weights = weights_from_torch(read_state_dict(path), spec, classifier=False, source=named)
    return jax.device_put(weights, replicated_sharding(mesh))


def _note_normalisation(config: ConfigDict, published: Published) -> None:
    """Say where the weights were trained on images that are normalised in another way."""
    wants, data = published.wants, config.data
    trained = [255 * number for number in (*wants.mean, *wants.std)]
    if not np.allclose(trained, [*data.mean, *data.std]) and is_first_host():
        mean, std = (
            "(" + ", ".join(f"{255 * x:g}" for x in numbers) + ")"
            for numbers in (wants.mean, wants.std)
        )
        print(
            f"note: {published.name} was trained with config.data.mean={mean} and "
            f"config.data.std={std}, which this config does not have",
            file=sys.stderr,
        )
