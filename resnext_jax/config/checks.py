"""What each field of a configuration may be, checked before anything is built."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from resnext_jax.config.fields import base_maker, base_of, field, field_names
from resnext_jax.data.resize import INTERPOLATIONS
from resnext_jax.data.transforms import CROPS
from resnext_jax.errors import ConfigError, UserError, did_you_mean
from resnext_jax.files import user_path
from resnext_jax.models.blocks import FORMS
from resnext_jax.models.registry import network_spec, parse_name

DTYPES = ("float32", "bfloat16", "float64")
SCHEDULES = ("step", "cosine")
ON_ERROR = ("stop", "skip")
ON_NONFINITE = ("stop", "skip")
EVAL_CROPS = ("centre", "ten", "dense")


Rule = tuple[Callable[[Any], bool], str]

AT_LEAST_ONE: Rule = (lambda value: value >= 1, "must be at least 1")
POSITIVE: Rule = (lambda value: value > 0, "must be greater than 0")
NOT_NEGATIVE: Rule = (lambda value: value >= 0, "must be at least 0")
BELOW_ONE: Rule = (lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
AT_MOST_ONE: Rule = (lambda value: 0 <= value <= 1, "must be at least 0 and at most 1")
NONE_OR_POSITIVE: Rule = (
    lambda value: value is None or value > 0,
    "must be None, or greater than 0",
)
NONE_OR_AT_LEAST_ONE: Rule = (
    lambda value: value is None or value >= 1,
    "must be None or at least 1",
)


def _is_path_or_none(value: Any) -> bool:
    if value is None:
        return True
    try:
        user_path(value, "")
    except UserError:
        return False
    return True


NONE_OR_PATH: Rule = (
    _is_path_or_none,
    "must be None or a path of this machine, not empty and without scheme://",
)


def one_of(*allowed: str) -> Rule:
    """Make the rule that a value is one of some."""
    return lambda value: value in allowed, f"must be one of {', '.join(allowed)}"


def none_or_one_of(*allowed: str) -> Rule:
    """Make the rule that a value is None or one of some."""
    return (
        lambda value: value is None or value in allowed,
        f"must be None or one of {', '.join(allowed)}",
    )


def numbers(count: int | None, *, positive: bool) -> Rule:
    """Make the rule that a value is a tuple of `count` numbers (None: of any length)."""

    def holds(value: Any) -> bool:
        return (
            (count is None or len(value) == count)
            and all(isinstance(number, int | float) for number in value)
            and (not positive or all(number > 0 for number in value))
        )

    size = "" if count is None else f"{count} "
    return holds, f"must be a tuple of {size}{'positive ' if positive else ''}numbers"


def _are_profile_steps(value: Any) -> bool:
    if len(value) == 0:
        return True
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in value)
    return whole and len(value) == 2 and 1 <= value[0] <= value[1]


# What each field may be, beyond its type, which the locked ConfigDict enforces.
RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 2**32, "must be at least 0 and less than 2**32"),
    "batch_size": AT_LEAST_ONE,
    "bn_group_size": NONE_OR_AT_LEAST_ONE,
    "accumulate_steps": AT_LEAST_ONE,
    "num_epochs": POSITIVE,
    "images_per_epoch": NONE_OR_AT_LEAST_ONE,
    "model.form": one_of(*FORMS),
    "model.dtype": one_of(*DTYPES),
    "model.param_dtype": one_of("float32", "float64"),
    "model.stem_width": NONE_OR_AT_LEAST_ONE,
    "model.template_width": NONE_OR_AT_LEAST_ONE,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.base_batch_size": AT_LEAST_ONE,
    "optimizer.momentum": BELOW_ONE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.label_smoothing": BELOW_ONE,
    "optimizer.clip_norm": NONE_OR_POSITIVE,
    "schedule.name": one_of(*SCHEDULES),
    "schedule.boundaries": numbers(None, positive=True),
    "schedule.factor": (
        lambda value: value >= 1,
        "must be at least 1: the rate is divided by it (where PyTorch multiplies by gamma=0.1, "
        "the factor is 10)",
    ),
    "schedule.warmup_epochs": NOT_NEGATIVE,
    "ema.decay": (
        lambda value: value is None or 0 <= value < 1,
        "must be None, or at least 0 and less than 1",
    ),
    "ema.every_steps": AT_LEAST_ONE,
    "guard.on_nonfinite": one_of(*ON_NONFINITE),
    "guard.spike_factor": (
        lambda value: value is None or value > 1,
        "must be None, or greater than 1",
    ),
    "guard.max_skipped": NOT_NEGATIVE,
    "init_from": NONE_OR_PATH,
    "finetune.frozen_stages": NOT_NEGATIVE,
    "finetune.backbone_rate": NOT_NEGATIVE,
    "data.data_dir": NONE_OR_PATH,
    "data.manual_dir": NONE_OR_PATH,
    "data.image_size": AT_LEAST_ONE,
    "data.eval_image_size": NONE_OR_AT_LEAST_ONE,
    "data.eval_short_side": NONE_OR_AT_LEAST_ONE,
    "data.eval_crops": one_of(*EVAL_CROPS),
    "data.eval_first_classes": NONE_OR_AT_LEAST_ONE,
    "data.on_error": one_of(*ON_ERROR),
    "data.crop": one_of(*CROPS),
    "data.interpolation": one_of(*INTERPOLATIONS),
    "data.eval_interpolation": none_or_one_of(*INTERPOLATIONS),
    "data.brightness": AT_MOST_ONE,
    "data.contrast": AT_MOST_ONE,
    "data.saturation": AT_MOST_ONE,
    "data.lighting": NOT_NEGATIVE,
    "data.max_shift": NOT_NEGATIVE,
    "data.random_erase": AT_MOST_ONE,
    "data.mixup": NOT_NEGATIVE,
    "data.cutmix": NOT_NEGATIVE,
    "data.mean": numbers(3, positive=False),
    "data.std": numbers(3, positive=True),
    "data.num_workers": NOT_NEGATIVE,
    "eval_batch_size": AT_LEAST_ONE,
    "eval_every_epochs": POSITIVE,
    "checkpoint_every_epochs": POSITIVE,
    "checkpoint_every_steps": NONE_OR_AT_LEAST_ONE,
    "checkpoint_every_minutes": NONE_OR_POSITIVE,
    "keep_checkpoints": AT_LEAST_ONE,
    "keep_every_epochs": NONE_OR_POSITIVE,
    "log_every_steps": AT_LEAST_ONE,
    "profile_steps": (_are_profile_steps, "must be two whole numbers, as in =10,12, or ()"),
}


def validate(config: ConfigDict) -> None:
    """Check the whole configuration of a classifier's run before anything is built.

    Raises:
      ConfigError: names the first wrong field, its value and what is allowed.
    """
    check_fields(config, RULES)
    check_model(config.model)
    check_frozen_stages(config)
    check_schedule(config)
    _check_training_images(config.data)
    _check_mixing(config)
    _check_test_images(config.data)


def check_fields(config: ConfigDict, rules: Mapping[str, Rule]) -> None:
    """Check that the fields are those of the task, and each by itself.

    Args:
      config: of any task.
      rules: what fields may be, by dotted name; those that the task has not are passed over.

    Raises:
      ConfigError: names the first wrong field, its value and what is allowed.
    """
    present = set(field_names(config))
    known = set(field_names(base_of(config)))
    for name in sorted(known - present):
        base = base_maker(config)
        raise ConfigError(
            f"the config lacks the field {name!r}; "
            f"start it from {base.__module__}:{base.__name__}()."
        )
    for name in sorted(present - known):
        hint = did_you_mean(name, sorted(known), "remove it.")
        raise ConfigError(f"the config has a field {name!r} that nothing reads; {hint}")
    for name in sorted(known):
        value = field(config, name)
        parts = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise ConfigError(f"config.{name}={value!r} must be finite.")
    for name, (holds, allowed) in rules.items():
        if name in known and not holds(value := field(config, name)):
            raise ConfigError(f"config.{name}={value!r} {allowed}.")
    uses_float64 = "float64" in (config.model.dtype, config.model.param_dtype)
    if uses_float64 and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "float64 needs double precision turned on: set the environment variable "
            "JAX_ENABLE_X64=1."
        )


def check_schedule(config: ConfigDict) -> None:
    """Check that the rate's schedule fits the run; raises ConfigError."""
    if config.schedule.name == "cosine" and config.schedule.warmup_epochs >= config.num_epochs:
        raise ConfigError(
            f"config.schedule.warmup_epochs={config.schedule.warmup_epochs} must be less than "
            f"config.num_epochs={config.num_epochs}."
        )


def _check_training_images(data: ConfigDict) -> None:
    if data.train_antialias and data.interpolation == "torch7":
        raise ConfigError(
            "config.data.train_antialias=True is not read with config.data.interpolation='torch7', "
            "which never antialiases; set it to False."
        )


def _check_mixing(config: ConfigDict) -> None:
    mixing = [name for name in ("mixup", "cutmix") if config.data[name]]
    # Devices hold whole pairs too: config.build sees to that, which knows them.
    if mixing and config.batch_size % (2 * config.accumulate_steps):
        parts = f" in {config.accumulate_steps} parts" if config.accumulate_steps > 1 else ""
        raise ConfigError(
            f"config.data.{mixing[0]}={config.data[mixing[0]]} mixes images in pairs, but "
            f"config.batch_size={config.batch_size}{parts} is no whole number of pairs; change it."
        )


def _check_test_images(data: ConfigDict) -> None:
    if data.eval_short_side is not None and data.crop == "whole":
        raise ConfigError(
            f"config.data.eval_short_side={data.eval_short_side} is not read with "
            "config.data.crop='whole', which makes whole images square; set it to None."
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
            f"because crop={data.crop!r} makes whole images square; set eval_crops to 'centre'."
        )
    if data.eval_crops == "dense" and data.eval_short_side is not None:
        raise ConfigError(
            f"config.data.eval_short_side={data.eval_short_side} is not read with "
            "config.data.eval_crops='dense', which has short sides of its own; set it to None."
        )


def check_start(config: ConfigDict) -> None:
    """Check that what training leaves as it is has weights to start from, whatever the task.

    Apart from `validate`, because a config without them can be looked at and evaluated.

    Raises:
      ConfigError: layers would be kept as they are drawn at random.
    """
    finetune = config.finetune
    kept = [name for name in ("frozen_stages", "frozen_norms") if finetune[name]]
    if kept and config.init_from is None:
        raise ConfigError(
            f"config.finetune.{kept[0]}={finetune[kept[0]]} would keep random weights; "
            "name weights to start from with --config.init_from=... (a workdir, or PyTorch's)."
        )


def check_frozen_stages(config: ConfigDict) -> None:
    """Check that a network has the stages that are frozen; raises ConfigError."""
    model, frozen = config.model, config.finetune.frozen_stages
    spec = network_spec(model.name, form=model.form, preactivation=model.preactivation)
    stages = 1 + len(spec.architecture.blocks)
    if frozen > stages:
        raise ConfigError(
            f"config.finetune.frozen_stages={frozen} must be at most {stages}, "
            f"the stages of {model.name} (conv1 to conv{stages})."
        )


def check_model(model: ConfigDict) -> None:
    """Check that there is such a network; raises ConfigError."""
    where = "config.model.name"
    try:
        parse_name(model.name)
        where = "config.model"  # the name is right: what is left is a combination
        network_spec(model.name, form=model.form, preactivation=model.preactivation)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
