"""The steps of a run, with the shapes of their arguments in place of arrays: to be lowered."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.jax_step import place
from resnext_jax.config import build
from resnext_jax.data.augment import SKIPPED
from resnext_jax.errors import UserError
from resnext_jax.evaluation.evaluator import make_eval_step
from resnext_jax.models.capacity import complexity
from resnext_jax.models.registry import parse_name
from resnext_jax.parallel.mesh import batch_sharding, replicated_sharding
from resnext_jax.training import setup
from resnext_jax.training.agreement import REQUESTS, Request
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import make_train_step

_CLASSES = {"imagenet2012": 1000, "imagenet5k": 5000, "cifar10": 10, "cifar100": 100, "digits": 10}

# The learning rate's schedule counts epochs. Only constants of the program depend on it.
_TRAIN_IMAGES = 1_281_167


def train_step(config: ConfigDict, mesh: Mesh) -> tuple[Any, ...]:
    """Return the training step of a run, and the shapes of its arguments."""
    graphdef, params, batch_stats = build.abstract_weights(config, _num_classes(config), mesh)
    optimizer = build.build_optimizer(config, build.build_schedule(config, _TRAIN_IMAGES))
    average = config.ema.decay is not None
    state = jax.eval_shape(
        lambda params, stats: TrainState.create(params, stats, optimizer, ema=average),
        params,
        batch_stats,
    )
    transform = build.train_transform(config)
    example = transform(_example(config.data.image_size), np.random.default_rng(0))
    leading: tuple[int, ...] = (config.batch_size,)
    if config.accumulate_steps > 1:
        leading = config.accumulate_steps, config.batch_size // config.accumulate_steps
    batch = _batch(config, example, leading)
    if needs_requests(mesh):
        ones = (1,) * (len(leading) - 1)
        batch[REQUESTS] = jax.ShapeDtypeStruct((*ones, mesh.size, len(Request)), bool)
    step = make_train_step(
        graphdef,
        optimizer,
        build.device_transform(config).train,
        mesh,
        setup.step_spec(config, _TRAIN_IMAGES),
    )
    sharding = batch_sharding(mesh, config.accumulate_steps)
    return step, place(state, replicated_sharding(mesh)), place(batch, sharding)


def eval_step(config: ConfigDict, mesh: Mesh) -> tuple[Any, ...]:
    """Return the step that scores test images, and the shapes of its arguments.

    Raises:
      UserError: the config scores densely, by a step for each shape of images.
    """
    crops = config.data.eval_crops
    if crops == "dense":
        raise UserError("--what=eval compiles for crops; add --set data.eval_crops=centre.")
    graphdef, params, batch_stats = build.abstract_weights(config, _num_classes(config), mesh)
    transform = build.eval_transform(config, crops=crops)
    example = transform(_example(transform.image_size)) | {"mask": np.bool_(True)}
    batch = _batch(config, example, (config.batch_size,))
    step = make_eval_step(graphdef, build.device_transform(config).test, mesh)
    return step, params, batch_stats, place(batch, batch_sharding(mesh))


def network_flops(config: ConfigDict, batch: Mapping[str, Any], *, training: bool) -> int:
    """Return the floating-point operations of a step's convolutions and classifier.

    Two for each multiply-add; training multiplies three times, forward and for both gradients.
    """
    names = ("form", "residual", "preactivation", "stem_width", "template_width")
    cost = complexity(
        config.model.name,
        image_size=batch["image"].shape[-2],
        num_classes=_num_classes(config),
        **{name: config.model[name] for name in names},
    )
    images = math.prod(batch["image"].shape[:-3])  # or crops
    return 2 * cost.macs * images * (3 if training else 1)


def needs_requests(mesh: Mesh) -> bool:
    """Whether several processes would run the step, which then combines their requests."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def _num_classes(config: ConfigDict) -> int:
    usual = parse_name(config.model.name).usual_classes
    return _CLASSES.get(config.data.name, usual)


def _example(side: int) -> dict[str, Any]:
    """Return a black image as the host decodes it."""
    return {"image": np.zeros((side, side, 3), np.uint8), "label": np.int32(0)}


def _batch(
    config: ConfigDict, example: Mapping[str, Any], leading: tuple[int, ...]
) -> dict[str, Any]:
    """Return the shapes of a batch of examples like one."""
    marks = {SKIPPED: np.bool_(False)} if config.data.on_error == "skip" else {}
    return {
        name: jax.ShapeDtypeStruct((*leading, *array.shape), array.dtype)
        for name, array in {**example, **marks}.items()
    }
