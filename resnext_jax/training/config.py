"""Every field of a run's configuration, its default, and what it may be."""

import difflib
import math
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict, config_dict

from resnext_jax.data.resize import INTERPOLATIONS
from resnext_jax.data.transforms import CROPS
from resnext_jax.errors import ConfigError
from resnext_jax.models.blocks import FORMS
from resnext_jax.models.registry import parse_name, resolve

DTYPES = ("float32", "bfloat16", "float64")
SCHEDULES = ("step", "cosine")
ON_ERROR = ("stop", "skip")
EVAL_CROPS = ("centre", "ten", "dense")


def base_config() -> ConfigDict:
    """Return the paper's ImageNet recipe (Sec. 4) with no data set or model chosen.

    Recipes in `configs/` start from this and change what differs. Fields that
    it does not have are refused by `validate`.
    """
    config = ConfigDict()
    config.seed = 0

    # Images a step over all devices, and how many consecutive ones of them
    # share batch-norm statistics (None: all). Part of the recipe, whatever the
    # number of devices.
    config.batch_size = 256
    config.bn_group_size = config_dict.placeholder(int)

    config.num_epochs = 100.0
    # Images that count as one epoch in schedules and logs. None: the training
    # set's number.
    config.images_per_epoch = config_dict.placeholder(int)

    config.model = ConfigDict()
    config.model.name = ""
    config.model.form = "c"
    config.model.dtype = "float32"  # compute; parameters are param_dtype
    config.model.param_dtype = "float32"
    config.model.residual = True  # False: the ablation of Sec. 5.1
    # Batch norm and ReLU before each convolution; None: as the name says.
    config.model.preactivation = config_dict.placeholder(bool)
    config.model.scan_blocks = False  # compile a stage's equal blocks once, as a loop
    config.model.remat = False  # less memory: compute blocks again for the gradient
    # None: the paper's widths.
    config.model.stem_width = config_dict.placeholder(int)
    config.model.template_width = config_dict.placeholder(int)

    config.optimizer = ConfigDict()
    # The rate for a batch of `base_batch_size`; other batches scale it linearly.
    config.optimizer.learning_rate = 0.1
    config.optimizer.base_batch_size = 256
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4  # coupled, on every parameter
    config.optimizer.label_smoothing = 0.0

    config.schedule = ConfigDict()
    config.schedule.name = "step"
    config.schedule.boundaries = (30.0, 60.0, 90.0)  # epochs; step only
    config.schedule.factor = 10.0  # the rate is divided by it; step only
    config.schedule.warmup_epochs = 0.0

    config.data = ConfigDict()
    config.data.name = ""
    # None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    config.data.data_dir = config_dict.placeholder(str)
    # Folder of the raw files, for data sets that are prepared from them when first read.
    config.data.manual_dir = config_dict.placeholder(str)
    # An image that cannot be decoded: "stop", or "skip" (training takes the next one instead).
    config.data.on_error = "stop"
    config.data.image_size = 224
    config.data.crop = "random_sized"  # or "whole": the whole image, made square
    config.data.interpolation = "bicubic"  # or bilinear, or torch7, see data.resize
    config.data.train_antialias = False  # torch7 never antialiases
    # Side of the test images; None: image_size. Table 5 tests at 320.
    config.data.eval_image_size = config_dict.placeholder(int)
    # Test images are made so large before their centre is cut out; None: 8/7 of the test
    # images' side (256 for 224). With crop="whole" nothing is cut out: then None only.
    config.data.eval_short_side = config_dict.placeholder(int)
    # Of test images; None: as interpolation.
    config.data.eval_interpolation = config_dict.placeholder(str)
    config.data.eval_antialias = True  # not read with torch7
    # What of a test image is scored: "centre", one crop; "ten", the corners too, each also
    # mirrored; "dense", every position at five scales (see evaluation.dense).
    config.data.eval_crops = "centre"
    # Score the first so many classes by themselves as well (ImageNet-5K: 1000).
    config.data.eval_first_classes = config_dict.placeholder(int)
    config.data.flip = True
    # Largest change of each, and standard deviation of the lighting noise; see data.augment.
    config.data.brightness = 0.4
    config.data.contrast = 0.4
    config.data.saturation = 0.4
    config.data.lighting = 0.1
    config.data.max_shift = 0  # pixels, see data.augment.shift
    config.data.mean = (123.675, 116.28, 103.53)  # of each channel, in 0..255
    config.data.std = (58.395, 57.12, 57.375)
    config.data.num_workers = 0  # decoding processes; 0: threads

    # Crops: with ten an image a batch holds a tenth as many images. Dense batches hold as many
    # pixels as so many images of the test images' side.
    config.eval_batch_size = 256
    config.eval_every_epochs = 1.0
    config.checkpoint_every_epochs = 1.0
    config.keep_checkpoints = 3
    config.log_every_steps = 50
    return config


Rule = tuple[Callable[[Any], bool], str]

_AT_LEAST_ONE: Rule = (lambda value: value >= 1, "must be at least 1")
_POSITIVE: Rule = (
    lambda value: 0 < value < math.inf,
    "must be greater than 0 and finite",
)
_NOT_NEGATIVE: Rule = (lambda value: value >= 0, "must not be negative")
_BELOW_ONE: Rule = (lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
_AT_MOST_ONE: Rule = (lambda value: 0 <= value <= 1, "must be at least 0 and at most 1")
_NONE_OR_AT_LEAST_ONE: Rule = (
    lambda value: value is None or value >= 1,
    "must be None or at least 1",
)


def _one_of(*allowed: str) -> Rule:
    return lambda value: value in allowed, f"must be one of {', '.join(allowed)}"


def _none_or_one_of(*allowed: str) -> Rule:
    return (
        lambda value: value is None or value in allowed,
        f"must be None or one of {', '.join(allowed)}",
    )


def _numbers(count: int | None, *, positive: bool) -> Rule:
    def holds(value: Any) -> bool:
        return (
            (count is None or len(value) == count)
            and all(isinstance(number, int | float) for number in value)
            and all(math.isfinite(number) for number in value)
            and (not positive or all(number > 0 for number in value))
        )

    size = "" if count is None else f"{count} "
    return holds, f"must be a tuple of {size}{'positive ' if positive else ''}numbers"


# What each field may be, beyond its type, which the locked ConfigDict enforces.
_RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 2**32, "must be at least 0 and less than 2**32"),
    "batch_size": _AT_LEAST_ONE,
    "bn_group_size": _NONE_OR_AT_LEAST_ONE,
    "num_epochs": _POSITIVE,
    "images_per_epoch": _NONE_OR_AT_LEAST_ONE,
    "model.form": _one_of(*FORMS),
    "model.dtype": _one_of(*DTYPES),
    "model.param_dtype": _one_of("float32", "float64"),
    "model.stem_width": _NONE_OR_AT_LEAST_ONE,
    "model.template_width": _NONE_OR_AT_LEAST_ONE,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.base_batch_size": _AT_LEAST_ONE,
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.label_smoothing": _BELOW_ONE,
    "schedule.name": _one_of(*SCHEDULES),
    "schedule.boundaries": _numbers(None, positive=True),
    "schedule.factor": _POSITIVE,
    "schedule.warmup_epochs": _NOT_NEGATIVE,
    "data.image_size": _AT_LEAST_ONE,
    "data.eval_image_size": _NONE_OR_AT_LEAST_ONE,
    "data.eval_short_side": _NONE_OR_AT_LEAST_ONE,
    "data.eval_crops": _one_of(*EVAL_CROPS),
    "data.eval_first_classes": _NONE_OR_AT_LEAST_ONE,
    "data.on_error": _one_of(*ON_ERROR),
    "data.crop": _one_of(*CROPS),
    "data.interpolation": _one_of(*INTERPOLATIONS),
    "data.eval_interpolation": _none_or_one_of(*INTERPOLATIONS),
    "data.brightness": _AT_MOST_ONE,
    "data.contrast": _AT_MOST_ONE,
    "data.saturation": _AT_MOST_ONE,
    "data.lighting": _NOT_NEGATIVE,
    "data.max_shift": _NOT_NEGATIVE,
    "data.mean": _numbers(3, positive=False),
    "data.std": _numbers(3, positive=True),
    "data.num_workers": _NOT_NEGATIVE,
    "eval_batch_size": _AT_LEAST_ONE,
    "eval_every_epochs": _POSITIVE,
    "checkpoint_every_epochs": _POSITIVE,
    "keep_checkpoints": _AT_LEAST_ONE,
    "log_every_steps": _AT_LEAST_ONE,
}


def validate(config: ConfigDict) -> None:
    """Check the whole configuration before anything is built.

    Raises:
      ConfigError: names the first wrong field, its value and what is allowed.
    """
    present = set(field_names(config))
    known = set(field_names(base_config()))
    for name in sorted(known - present):
        raise ConfigError(
            f"the config lacks the field {name!r}; "
            "start it from resnext_jax.training.config.base_config()."
        )
    for name in sorted(present - known):
        near = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "remove it."
        raise ConfigError(f"the config has a field {name!r} that nothing reads; {hint}")
    for name, (holds, allowed) in _RULES.items():
        value = field(config, name)
        if not holds(value):
            raise ConfigError(f"config.{name}={value!r} {allowed}.")
    _check_model(config.model)
    if config.schedule.name == "cosine" and config.schedule.warmup_epochs >= config.num_epochs:
        raise ConfigError(
            f"config.schedule.warmup_epochs={config.schedule.warmup_epochs} must be less than "
            f"config.num_epochs={config.num_epochs}."
        )
    _check_training_images(config.data)
    _check_test_images(config.data)
    uses_float64 = "float64" in (config.model.dtype, config.model.param_dtype)
    if uses_float64 and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "float64 needs double precision turned on: set the environment variable "
            "JAX_ENABLE_X64=1."
        )


def _check_training_images(data: ConfigDict) -> None:
    if data.train_antialias and data.interpolation == "torch7":
        raise ConfigError(
            "config.data.train_antialias=True is not read with config.data.interpolation='torch7', "
            "which never antialiases; set it to False."
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


def _check_model(model: ConfigDict) -> None:
    where = "config.model.name"
    try:
        parse_name(model.name)
        where = "config.model"  # the name is right: what is left is a combination
        resolve(model.name, form=model.form, preactivation=model.preactivation)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def field(config: ConfigDict, name: str) -> Any:
    """Return the value of a field by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Set a field by its dotted name."""
    *sections, last = name.split(".")
    for section in sections:
        config = config[section]
    config[last] = value


def optional_fields() -> list[str]:
    """List the fields that may be None."""
    config = base_config()
    return [name for name in field_names(config) if field(config, name) is None]


def field_names(config: ConfigDict) -> list[str]:
    """List the dotted names of all fields."""
    names: list[str] = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            names.extend(f"{key}.{name}" for name in field_names(value))
        else:
            names.append(key)
    return names
