"""Workdirs of runs that drew their weights, and files of such weights."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.configs import digits_resnext29
from resnext_jax.interop.files import write_state_dict
from resnext_jax.interop.state_dicts import weights_from_torch
from resnext_jax.models.resnext import NetworkSpec
from resnext_jax.models.variables import merge
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.runs.workdir import DATA_SET_FILE, write_config
from resnext_jax.training.state import TrainState
from tests.interop.weights import random_state_dict
from tests.training.tiny import save_state

# The digits in crops, as they would be trained on with random sized ones, for a small network.
CHANGES = {
    "model.name": "resnext11_2x4d",
    "model.stem_width": 8,
    "model.template_width": 16,
    "data.image_size": 8,
    "data.crop": "random_sized",
}
DIGITS = tuple("0123456789")


def digits_config(data_dir: Path | None = None) -> ConfigDict:
    """Return the config of a small network on the digits."""
    config = digits_resnext29.get_config()
    config.update_from_flattened_dict(CHANGES)
    config.data.data_dir = None if data_dir is None else str(data_dir)
    return config


def spec_of(config: ConfigDict, classes: int) -> NetworkSpec:
    """Return what describes a config's network."""
    found: NetworkSpec = merge(*build.abstract_weights(config, classes, make_mesh(8, None))).spec
    return found


def make_workdir(
    path: Path,
    config: ConfigDict,
    *,
    seed: int = 0,
    ema: bool = False,
    steps: Sequence[int] = (0,),
    names: Sequence[str] = DIGITS,
) -> Path:
    """Make what a run leaves, with weights drawn with `seed`, and their average with `seed` + 1.

    Args:
      path: the folder, made here.
      config: of the run.
      seed: of the weights.
      ema: whether there is an average.
      steps: of the checkpoints, which are equal.
      names: of the classes.
    """
    path.mkdir(parents=True)
    write_config(config, path)
    stored = {"name": config.data.name, "version": "1.0.0", "classes": list(names)}
    (path / DATA_SET_FILE).write_text(json.dumps(stored))
    spec = spec_of(config, len(names))
    params, batch_stats = weights_from_torch(random_state_dict(spec, seed), spec)
    state = TrainState.create(params, batch_stats, optax.sgd(0.1))
    if ema:
        average = weights_from_torch(random_state_dict(spec, seed + 1), spec)
        both = dict(zip(("params", "batch_stats"), average, strict=True))
        state = dataclasses.replace(state, ema=both)
    with contextlib.closing(Checkpoints(path, keep=len(steps))) as checkpoints:
        for step in steps:
            save_state(
                checkpoints, dataclasses.replace(state, step=jnp.asarray(step, jnp.int32)), {}
            )
    return path


def write_weights(path: Path, config: ConfigDict, *, seed: int = 0, classes: int = 10) -> Path:
    """Write a file of the weights that a workdir of the same seed has."""
    state_dict = random_state_dict(spec_of(config, classes), seed)
    write_state_dict(state_dict, path)
    return path
