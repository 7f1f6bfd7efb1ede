"""Workdirs of detectors' runs, with small networks whose weights are drawn."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.detection.setup import build_fast_rcnn, build_faster_rcnn, build_rpn
from resnext_jax.models.variables import Arrays
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.runs.workdir import DATA_SET_FILE, write_config
from resnext_jax.training.state import TrainState
from tests.detection.small import small_config
from tests.detection.small_joint import small_joint_config
from tests.training.tiny import save_state

NAMES = ("ant", "bee", "cat")

# Standard deviations of the last layers' kernels, so that they say different things of regions.
_SPREAD = {"rpn.cls.kernel": 0.05, "rpn.box.kernel": 0.01, "cls.kernel": 0.01, "box.kernel": 0.05}


def drawn_config(task: str, data_dir: Path) -> ConfigDict:
    """Return the config of a task, with the data of `coco_files.random_split`.

    Args:
      task: "rpn", "fast_rcnn" or "faster_rcnn".
      data_dir: of the data.
    """
    joint = task == "faster_rcnn"
    config = small_joint_config(data_dir, pyramid=False) if joint else small_config(task, data_dir)
    for split in ("train", "test"):
        config.data[f"{split}_annotations"] = "annotations/instances_train.json"
        config.data[f"{split}_images"] = "images"
    config.eval_batch_size = 8
    if task == "rpn":
        config.proposals.train = 40
        config.proposals.test_before = 60
    else:
        # On a map of 4x4 pooling makes many regions the same, and their scores ties.
        config.roi.kind = "align"
    return config


def make_workdir(
    path: Path,
    config: ConfigDict,
    *,
    steps: Sequence[int] = (0,),
    names: Sequence[str] = NAMES,
    ema: bool = False,
) -> Path:
    """Make what a run leaves.

    Args:
      path: the folder, made here.
      config: of `drawn_config`.
      steps: of the checkpoints, whose weights are drawn with the step as seed.
      names: of the classes.
      ema: whether there are averages; their seeds are the steps + 1.
    """
    path.mkdir(parents=True)
    write_config(config, path)
    stored = {"name": config.data.name, "version": "1", "classes": list(names)}
    (path / DATA_SET_FILE).write_text(json.dumps(stored))
    with contextlib.closing(Checkpoints(path, keep=len(steps))) as checkpoints:
        for step in steps:
            state = TrainState.create(*_weights(config, len(names), step), optax.sgd(0.1))
            if ema:
                params, batch_stats = _weights(config, len(names), step + 1)
                average = {"params": params, "batch_stats": batch_stats}
                state = dataclasses.replace(state, ema=average)
            save_state(
                checkpoints, dataclasses.replace(state, step=jnp.asarray(step, jnp.int32)), {}
            )
    return path


def _weights(config: ConfigDict, names: int, seed: int) -> tuple[Arrays, Arrays]:
    """Draw weights; making a network to have it draw them would compile for seconds."""

    def network() -> nnx.Module:
        if config.task == "rpn":
            return build_rpn(config)
        make = build_fast_rcnn if config.task == "fast_rcnn" else build_faster_rcnn
        return make(config, names + 1)

    _, *shapes = build.abstract(network, make_mesh(jax.device_count(), 1))
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        kind = name.rpartition(".")[2]
        if kind in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32)
        spread = _SPREAD.get(name, np.sqrt(2 / np.prod(shape[:-1])) if kind == "kernel" else 0.1)
        return jnp.asarray(rng.normal(0, spread, shape), jnp.float32)

    params, batch_stats = (
        {name: draw(name, leaf.shape) for name, leaf in tree.items()} for tree in shapes
    )
    return params, batch_stats
