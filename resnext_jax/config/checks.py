"""Validate a config before anything is built: each field, and combinations of fields."""

import math

import jax
from ml_collections import ConfigDict

from resnext_jax.config.fields import field, field_names, task_of
from resnext_jax.data.rand_augment import VARIANTS
from resnext_jax.errors import ConfigError, did_you_mean
from resnext_jax.models.registry import network_spec, parse_name


def validate(config: ConfigDict) -> None:
    """Check a classifier's whole config before anything is built.

    Raises:
      ConfigError: names the first wrong field, its value and what is allowed.
    """
    check_fields(config)
    if config.task != "classification":
        raise ConfigError(
            f"config.task={config.task!r} is a detector's, and this is for classifiers; to see "
            "what a detector finds in images, use python -m resnext_jax.detection.infer "
            "(docs/detection.md)."
        )
    check_model(config.model)
    check_frozen_stages(config)
    check_schedule(config)
    _check_training_images(config.data)
    _check_mixing(config)
    _check_test_images(config.data)
    _check_loss(config.optimizer)


def check_fields(config: ConfigDict) -> None:
    """Check that the config has exactly the task's fields, and the value of each.

    Args:
      config: of any task.

    Raises:
      ConfigError: names the first wrong field, its value and what is allowed.
    """
    task = task_of(config)
    present, known = set(field_names(config)), set(task.fields)
    for name in sorted(known - present):
        raise ConfigError(
            f"the config lacks the field {name!r}; "
            f"start it from {task.start.__module__}:{task.start.__name__}()."
        )
    for name in sorted(present - known):
        hint = did_you_mean(name, sorted(known), "remove it.")
        raise ConfigError(f"the config has an unknown field {name!r}; {hint}")
    for name in sorted(known):
        value = field(config, name)
        parts = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise ConfigError(f"config.{name}={value!r} must be finite.")
    for name, row in task.fields.items():
        if not row.accepts(value := field(config, name)):
            raise ConfigError(f"config.{name}={value!r} must be {row.allowed}.")
    uses_float64 = "float64" in (config.model.dtype, config.model.param_dtype)
    if uses_float64 and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "float64 needs double precision enabled; set the environment variable JAX_ENABLE_X64=1."
        )


def check_schedule(config: ConfigDict) -> None:
    """Check that the learning-rate schedule fits the run; raises ConfigError."""
    if (
        config.schedule.name in ("cosine", "linear")
        and config.schedule.warmup_epochs >= config.num_epochs
    ):
        raise ConfigError(
            f"config.schedule.warmup_epochs={config.schedule.warmup_epochs} must be less than "
            f"config.num_epochs={config.num_epochs}."
        )


def _check_training_images(data: ConfigDict) -> None:
    if data.train_antialias and data.interpolation == "torch7":
        raise ConfigError(
            "config.data.train_antialias=True has no effect with "
            "config.data.interpolation='torch7', which never antialiases; set it to False."
        )

    if len(data.sizes) != len(data.size_epochs) or any(int(size) != size for size in data.sizes):
        raise ConfigError(
            f"config.data.sizes={tuple(data.sizes)!r} must be one whole number of pixels for each "
            f"of config.data.size_epochs={tuple(data.size_epochs)!r}."
        )
    strongest = VARIANTS[data.rand_augment].strongest if data.rand_augment else math.inf
    magnitude = data.rand_augment_magnitude
    whole = data.rand_augment != "torchvision" or magnitude == int(magnitude)
    if magnitude > strongest or not whole:
        kind = "a number" if whole else "a whole number"
        raise ConfigError(
            f"config.data.rand_augment_magnitude={magnitude} must be {kind} up to {strongest} with "
            f"config.data.rand_augment={data.rand_augment!r}."
        )


def _check_loss(optimizer: ConfigDict) -> None:
    if optimizer.target_threshold is not None and optimizer.loss != "bce":
        raise ConfigError(
            f"config.optimizer.target_threshold={optimizer.target_threshold} has no effect with "
            f"config.optimizer.loss={optimizer.loss!r}; set it to None, or the loss to 'bce'."
        )


def _check_mixing(config: ConfigDict) -> None:
    mixing = [name for name in ("mixup", "cutmix") if config.data[name]]
    # Each device must hold whole pairs too; config.build checks that once the devices are known.
    if mixing and config.batch_size % (2 * config.accumulate_steps):
        parts = f" in {config.accumulate_steps} parts" if config.accumulate_steps > 1 else ""
        raise ConfigError(
            f"config.data.{mixing[0]}={config.data[mixing[0]]} mixes images in pairs, but "
            f"config.batch_size={config.batch_size}{parts} is not a whole number of pairs; "
            "change it."
        )


def _check_test_images(data: ConfigDict) -> None:
    if data.eval_short_side is not None and data.crop == "whole":
        raise ConfigError(
            f"config.data.eval_short_side={data.eval_short_side} has no effect with "
            "config.data.crop='whole', which resizes whole images to squares; set it to None."
        )
    size = data.eval_image_size or data.image_size
    if data.eval_short_side is not None and data.eval_short_side < size:
        raise ConfigError(
            f"config.data.eval_short_side={data.eval_short_side} must be at least the side of "
            f"the test images, {size}."
        )
    if data.eval_crops == "centre":
        return
    if data.crop != "random_sized":
        raise ConfigError(
            f"config.data.eval_crops={data.eval_crops!r} needs config.data.crop='random_sized', "
            f"because crop={data.crop!r} resizes whole images to squares; set eval_crops to "
            "'centre'."
        )
    if data.eval_crops == "dense" and data.eval_short_side is not None:
        raise ConfigError(
            f"config.data.eval_short_side={data.eval_short_side} has no effect with "
            "config.data.eval_crops='dense', which has its own short sides; set it to None."
        )


def check_start(config: ConfigDict) -> None:
    """Check, for any task, that a config with frozen layers has initial weights for them.

    Separate from `validate`, because a config without initial weights can still be previewed and
    evaluated.

    Raises:
      ConfigError: randomly initialised layers would be frozen.
    """
    finetune = config.finetune
    kept = [name for name in ("frozen_stages", "frozen_norms") if finetune[name]]
    if kept and config.init_from is None:
        raise ConfigError(
            f"config.finetune.{kept[0]}={finetune[kept[0]]} would freeze random weights; "
            "set initial weights with --config.init_from=... (a workdir, or a PyTorch file)."
        )


def check_frozen_stages(config: ConfigDict) -> None:
    """Check that the network has at least as many stages as are frozen; raises ConfigError."""
    model, frozen = config.model, config.finetune.frozen_stages
    spec = network_spec(model.name, form=model.form, preactivation=model.preactivation)
    stages = 1 + len(spec.architecture.blocks)
    if frozen > stages:
        raise ConfigError(
            f"config.finetune.frozen_stages={frozen} must be at most {stages}, "
            f"the number of stages of {model.name} (conv1 to conv{stages})."
        )


def check_model(model: ConfigDict) -> None:
    """Check that the network exists; raises ConfigError."""
    where = "config.model.name"
    try:
        parse_name(model.name)
        where = "config.model"  # the name is valid, so the combination of fields is wrong
        network_spec(model.name, form=model.form, preactivation=model.preactivation)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
