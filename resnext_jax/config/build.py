"""Build the objects that a config describes, for training and evaluation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.augment import DeviceTransform
from resnext_jax.data.transforms import DenseTransform, EvalTransform, TrainTransform
from resnext_jax.errors import ConfigError
from resnext_jax.models import create_model
from resnext_jax.models.registry import network_spec
from resnext_jax.models.resnext import NetworkSpec
from resnext_jax.models.variables import Arrays, split
from resnext_jax.optim.freezing import Freezing, is_backbone, layers_above
from resnext_jax.optim.optimizers import (
    OPTIMIZERS,
    Schedule,
    ScheduleSpec,
    first_step_at,
    is_bias,
    is_norm,
    make_schedule,
    optimizer,
)
from resnext_jax.parallel.mesh import MEMBER_AXIS, make_mesh, replicated_sharding


def device_transform(config: ConfigDict) -> DeviceTransform:
    """Return the part of the config's preprocessing that runs on the device."""
    data = config.data
    return DeviceTransform(
        mean=tuple(data.mean),
        std=tuple(data.std),
        max_shift=data.max_shift,
        colour=(data.brightness, data.contrast, data.saturation),
        lighting=data.lighting,
    )


def train_transforms(
    config: ConfigDict, train_images: int
) -> tuple[tuple[int, TrainTransform], ...]:
    """Return the host's training preprocessing, with the step from which each size is used."""
    data, epoch = config.data, steps_per_epoch(config, train_images)
    sizes = zip((0.0, *data.size_epochs), (data.image_size, *data.sizes), strict=True)
    return tuple(
        (first_step_at(start, epoch), train_transform(config, int(size))) for start, size in sizes
    )


def train_transform(config: ConfigDict, size: int | None = None) -> TrainTransform:
    """Return the part of the config's training preprocessing that runs on the host.

    Args:
      config: the run's config.
      size: side of the images; None: the one that the run starts with.
    """
    data = config.data
    blocks = 0
    if config.optimizer.drop_path:
        model = config.model
        spec = network_spec(model.name, form=model.form, preactivation=model.preactivation)
        blocks = sum(spec.architecture.blocks)
    return TrainTransform(
        size or data.image_size,
        data.crop,
        data.flip,
        interpolation=data.interpolation,
        antialias=data.train_antialias,
        trivial_augment=data.trivial_augment,
        rand_augment=data.rand_augment,
        rand_augment_magnitude=data.rand_augment_magnitude,
        rand_augment_std=data.rand_augment_std,
        random_erase=data.random_erase,
        mixup=data.mixup,
        cutmix=data.cutmix,
        drop_blocks=blocks,
    )


def eval_transform(config: ConfigDict, *, crops: str = "centre") -> EvalTransform:
    """Return the host preprocessing of test images for one centre crop or ten crops."""
    data = config.data
    return EvalTransform(
        data.eval_image_size or data.image_size,
        None if data.crop == "whole" else eval_short_side(config),
        interpolation=data.eval_interpolation or data.interpolation,
        antialias=data.eval_antialias,
        crops=crops,
        centre=data.eval_centre or "torch7",
    )


def eval_short_side(config: ConfigDict) -> int:
    """Short side of test images before the crop; by default the paper's, 256 for 224."""
    data = config.data
    return int(data.eval_short_side or (data.eval_image_size or data.image_size) * 8 // 7)


def dense_transform(config: ConfigDict) -> DenseTransform:
    """Return the host preprocessing of test images for dense evaluation."""
    model = config.model
    spec = network_spec(model.name, form=model.form, preactivation=model.preactivation)
    return DenseTransform(
        spec.architecture.total_stride,
        interpolation=config.data.eval_interpolation or config.data.interpolation,
        antialias=config.data.eval_antialias,
    )


def steps_per_epoch(config: ConfigDict, train_images: int) -> float:
    """Length of an epoch in steps; it need not be a whole number."""
    return (config.images_per_epoch or train_images) / config.batch_size


def num_steps(config: ConfigDict, train_images: int) -> int:
    """Length of the run in steps.

    Raises:
      ConfigError: the run is shorter than one step.
    """
    steps = round(config.num_epochs * steps_per_epoch(config, train_images))
    if steps < 1:
        raise ConfigError(
            f"config.num_epochs={config.num_epochs} of {train_images} images is less than one step "
            f"of config.batch_size={config.batch_size}; train longer or with a smaller batch."
        )
    return steps


def learning_rate(config: ConfigDict) -> float:
    """Peak learning rate, scaled linearly to the config's batch size."""
    return config.optimizer.learning_rate * config.batch_size / config.optimizer.base_batch_size


def build_schedule(config: ConfigDict, train_images: int) -> Schedule:
    """Return the learning-rate schedule, a function of the step."""
    spec = ScheduleSpec(
        kind=config.schedule.name,
        peak=learning_rate(config),
        num_epochs=config.num_epochs,
        boundaries=tuple(config.schedule.boundaries),
        factor=config.schedule.factor,
        warmup_epochs=config.schedule.warmup_epochs,
    )
    return make_schedule(spec, steps_per_epoch(config, train_images))


def freezing(config: ConfigDict) -> Freezing:
    """Return which arrays training freezes."""
    return Freezing(stages=config.finetune.frozen_stages, norms=config.finetune.frozen_norms)


def build_optimizer(
    config: ConfigDict,
    schedule: Schedule,
    *,
    rate_factor: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """Return the optimiser.

    Args:
      config: the run's config.
      schedule: the learning-rate schedule.
      rate_factor: maps a parameter's name to its learning-rate multiplier; None: from the config.
    """
    options, finetune = config.optimizer, config.finetune
    is_frozen = freezing(config)
    if rate_factor is None and (finetune.backbone_rate != 1.0 or finetune.layer_decay != 1.0):
        rate_factor = _finetune_factor(config)

    def decays(name: str) -> bool:
        if is_frozen(name):
            return False
        return (options.decay_norm or not is_norm(name)) and (
            options.decay_bias or not is_bias(name)
        )

    parts = OPTIMIZERS[options.name](options, schedule, decays)
    return optimizer(parts, clip_norm=options.clip_norm, rate_factor=rate_factor)


def _finetune_factor(config: ConfigDict) -> Callable[[str], float]:
    """Return a function from a parameter's name to its learning-rate multiplier."""
    model, finetune = config.model, config.finetune
    blocks: tuple[int, ...] = ()
    if finetune.layer_decay != 1.0:
        spec = network_spec(model.name, form=model.form, preactivation=model.preactivation)
        blocks = spec.architecture.blocks

    def factor(name: str) -> float:
        rate = float(finetune.backbone_rate) if is_backbone(name) else 1.0
        return rate * finetune.layer_decay ** layers_above(name, blocks) if blocks else rate

    return factor


def training_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the device mesh for training.

    Args:
      config: the run's config.
      devices: the devices to use; by default all devices of all hosts.

    Raises:
      ConfigError: the batch cannot be divided into micro-batches, groups and devices.
    """
    mesh = make_mesh(
        config.batch_size,
        config.bn_group_size,
        devices,
        accumulate_steps=config.accumulate_steps,
    )
    share = config.batch_size // config.accumulate_steps // mesh.size
    if (config.data.mixup or config.data.cutmix) and share % 2:
        raise ConfigError(
            f"config.data.mixup and config.data.cutmix mix images in pairs, but each of "
            f"{mesh.size} devices holds {share} of a micro-batch; change config.batch_size or "
            "config.accumulate_steps so that the number is even."
        )
    return mesh


def build_model(config: ConfigDict, num_classes: int) -> nnx.Module:
    """Create the config's network for use inside `shard_map`, initialised from its seed."""
    return create_model(
        num_classes=num_classes, rngs=nnx.Rngs(config.seed), **_network_options(config)
    )


def model_spec(config: ConfigDict, num_classes: int) -> NetworkSpec:
    """Return the specification of the config's network."""
    return network_spec(num_classes=num_classes, **_network_options(config))


def _network_options(config: ConfigDict) -> dict[str, Any]:
    model = config.model
    return {
        "name": model.name,
        "form": model.form,
        "dtype": jnp.dtype(model.dtype),
        "param_dtype": jnp.dtype(model.param_dtype),
        "residual": model.residual,
        "preactivation": model.preactivation,
        # Detectors have no such field: their batch norms are frozen.
        "bn_group_size": config.get("bn_group_size"),
        "bn_axis_name": MEMBER_AXIS,
        "stem_width": model.stem_width,
        "template_width": model.template_width,
        "scan_blocks": model.scan_blocks,
        "remat": model.remat,
    }


def abstract_weights(
    config: ConfigDict, num_classes: int, mesh: Mesh
) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """Return the classifier's graph, and the shapes and sharding of its weights.

    This is enough to restore a checkpoint; no array is allocated.
    """
    return abstract(lambda: build_model(config, num_classes), mesh)


def abstract(build: Callable[[], nnx.Module], mesh: Mesh) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """Return the graph of a model and the shapes of its weights; see `abstract_weights`."""
    graphdef, *weights = split(nnx.eval_shape(build))
    sharding = replicated_sharding(mesh)
    params, batch_stats = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), weights
    )
    return graphdef, params, batch_stats
