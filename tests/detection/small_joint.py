"""Faster R-CNN as one network, small enough to train many times in a test."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.configs import digit_scenes_faster_rcnn, digit_scenes_fpn
from resnext_jax.detection.setup import build_faster_rcnn
from resnext_jax.models.variables import Arrays
from resnext_jax.parallel.mesh import make_mesh
from tests.detection.small import small_config


def small_joint_config(scenes: Path, *, pyramid: bool) -> ConfigDict:
    """Make a config of a short run, with the data and the backbone of `small_config`."""
    recipe = digit_scenes_fpn if pyramid else digit_scenes_faster_rcnn
    config = recipe.get_config()
    stage = small_config("rpn", scenes)
    config.init_from = stage.init_from
    config.model, config.data, config.finetune = stage.model, stage.data, stage.finetune
    for name in (
        "batch_size",
        "images_per_epoch",
        "num_epochs",
        "eval_every_epochs",
        "checkpoint_every_epochs",
        "log_every_steps",
    ):
        config[name] = stage[name]
    config.optimizer.base_batch_size = stage.batch_size
    config.proposals.width = 16
    config.proposals.train = config.proposals.test = 24
    config.proposals.min_side = 4.0
    config.targets.samples = 32
    config.targets.positives = 16
    config.regions.samples = 8
    config.regions.foregrounds = 4
    config.roi.size = 4
    if pyramid:
        config.anchors.scales = (2.0,)
        config.pyramid.width = 8
        config.pyramid.head_width = 16
        # So that there are regions for every level.
        config.pyramid.canonical_side = 16.0
    else:
        config.anchors.scales = (1.0, 2.0)
    return config


def drawn_weights(config: ConfigDict, *, names: int) -> tuple[Any, Arrays, Arrays]:
    """Draw weights with which regions differ.

    Args:
      config: of the run.
      names: number of classes, without the background.

    Returns:
      Graph definition, parameters and running statistics, see `models.variables.split`.
    """
    mesh = make_mesh(jax.device_count(), 1)
    graphdef, *shapes = build.abstract(lambda: build_faster_rcnn(config, names + 1), mesh)
    rng = np.random.default_rng(0)
    last = {"rpn.cls.kernel": 0.05, "rpn.box.kernel": 0.01, "cls.kernel": 0.01, "box.kernel": 0.05}

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        if name.endswith((".scale", ".var")):
            return jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32)
        spread = np.sqrt(2 / np.prod(shape[:-1])) if name.endswith(".kernel") else 0.1
        return jnp.asarray(rng.normal(0, last.get(name, spread), shape), jnp.float32)

    params, batch_stats = (
        {name: draw(name, leaf.shape) for name, leaf in tree.items()} for tree in shapes
    )
    return graphdef, params, batch_stats
