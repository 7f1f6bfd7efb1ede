"""Every field of a run's configuration: its default, what it may be, and what it means.

A field stands in one table, `FIELDS`, which validation, `train.py --help`, docs/config.md and the
check of a run that resumes read. `detection.config` has the table of detectors.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from resnext_jax.config.rules import (
    ABOVE_ONE,
    AT_LEAST_ONE,
    AT_MOST_ONE,
    BELOW_ONE,
    DIVISOR,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SEED,
    STEPS,
    Rule,
    name_in,
    numbers,
    one_of,
)
from resnext_jax.errors import ConfigError

# What a field may be when a run resumes: as it was; another, which trains or tests differently;
# or another, which changes no measured result (by rounding at most).
FIXED, MAY_CHANGE, IMMATERIAL = "as it was", "may change", "may change, no result does"


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      default: its value in `base_config`.
      meaning: what it sets, for --help and docs/config.md.
      rule: what it may be, beyond its type.
      kind: its type, where the default is None. Such fields, and no others, may be None.
      resume: FIXED, MAY_CHANGE or IMMATERIAL.
      per_host: may differ from host to host: where something is, or how it is read.
    """

    default: Any
    meaning: str
    rule: Rule | None = None
    _: dataclasses.KW_ONLY
    kind: type | None = None
    resume: str = FIXED
    per_host: bool = False

    @property
    def allowed(self) -> str:
        """What it may be, as it follows "must be"; "" if its type says all."""
        if self.rule is None:
            return ""
        return f"None or {self.rule.allowed}" if self.kind else self.rule.allowed

    def accepts(self, value: Any) -> bool:
        """Tell whether a value, which has the field's type, is allowed."""
        return self.rule is None or (value is None and bool(self.kind)) or self.rule.holds(value)


_EVAL: dict[str, Any] = {"resume": MAY_CHANGE}
_STORE: dict[str, Any] = {"resume": IMMATERIAL}

FIELDS: dict[str, Field] = {
    "task": Field("classification", "What is trained: a classifier, or a stage of a detector."),
    "seed": Field(0, "Of the weights, the order of the images, and augmentation.", SEED),
    "batch_size": Field(256, "Images a step, over all devices.", AT_LEAST_ONE),
    "bn_group_size": Field(
        None,
        "Consecutive images of a batch that share batch-norm statistics, whatever the number of "
        "devices; None: all.",
        AT_LEAST_ONE,
        kind=int,
    ),
    "accumulate_steps": Field(
        1, "Micro-batches of a batch: the same training in less memory.", AT_LEAST_ONE, **_STORE
    ),
    "num_epochs": Field(100.0, "Length of the run.", POSITIVE),
    "images_per_epoch": Field(
        None,
        "Images that count as one epoch in schedules and logs; None: those of the training set.",
        AT_LEAST_ONE,
        kind=int,
    ),
    "model.name": Field("", "The network, see python -m resnext_jax.models."),
    "model.form": Field(
        "c",
        "Block form, Figure 3a, b or c of the paper.",
        name_in("resnext_jax.models.blocks:FORMS"),
    ),
    "model.dtype": Field(
        "float32", "Of what is computed.", one_of("float32", "bfloat16", "float64")
    ),
    "model.param_dtype": Field("float32", "Of the parameters.", one_of("float32", "float64")),
    "model.residual": Field(True, "Whether blocks have shortcuts; False: the ablation, Sec. 5.1."),
    "model.preactivation": Field(
        None, "Batch norm and ReLU before each convolution; None: as the name says.", kind=bool
    ),
    "model.scan_blocks": Field(
        False, "Compile the equal blocks of a stage once, as a loop.", **_STORE
    ),
    "model.remat": Field(
        False, "Compute blocks again for the gradient, for less memory.", **_STORE
    ),
    "model.stem_width": Field(
        None, "Channels of the stem; None: the paper's.", AT_LEAST_ONE, kind=int
    ),
    "model.template_width": Field(
        None, "Output channels of the first stage; None: the paper's.", AT_LEAST_ONE, kind=int
    ),
    "optimizer.name": Field(
        "sgd", "The optimiser.", name_in("resnext_jax.optim.optimizers:OPTIMIZERS")
    ),
    "optimizer.learning_rate": Field(
        0.1, "Rate for a batch of base_batch_size; other batches scale it linearly.", POSITIVE
    ),
    "optimizer.base_batch_size": Field(256, "The batch that the rate is for.", AT_LEAST_ONE),
    "optimizer.momentum": Field(0.9, "Of the velocity.", BELOW_ONE),
    "optimizer.nesterov": Field(True, "Nesterov's variant of momentum."),
    "optimizer.weight_decay": Field(1e-4, "L2 penalty, added to the gradient.", NOT_NEGATIVE),
    "optimizer.decay_norm": Field(True, "Decay batch norms' scale and shift too."),
    "optimizer.decay_bias": Field(True, "Decay the classifier's bias too."),
    "optimizer.label_smoothing": Field(
        0.0, "Share of the target spread over all classes.", BELOW_ONE
    ),
    "optimizer.clip_norm": Field(
        None,
        "Largest L2 norm of the gradient over all parameters; None: any.",
        POSITIVE,
        kind=float,
        resume=MAY_CHANGE,
    ),
    "schedule.name": Field(
        "step",
        "How the rate falls: by factor at each boundary, or as a cosine to zero.",
        name_in("resnext_jax.optim.optimizers:SCHEDULES"),
    ),
    "schedule.boundaries": Field((30.0, 60.0, 90.0), "Epochs; step only.", numbers(positive=True)),
    "schedule.factor": Field(10.0, "What the rate is divided by; step only.", DIVISOR),
    "schedule.warmup_epochs": Field(0.0, "Linear rise of the rate from zero.", NOT_NEGATIVE),
    "ema.decay": Field(
        None,
        "Of an exponential average of the weights, tested beside them; None: there is none.",
        BELOW_ONE,
        kind=float,
    ),
    "ema.every_steps": Field(1, "Steps from one move of the average to the next.", AT_LEAST_ONE),
    "guard.on_nonfinite": Field(
        "stop",
        "What becomes of a step whose loss is not finite.",
        one_of("stop", "skip"),
        resume=MAY_CHANGE,
    ),
    "guard.spike_factor": Field(
        None,
        "A step whose loss is more than this times its recent average is skipped; None: none is.",
        ABOVE_ONE,
        kind=float,
        resume=MAY_CHANGE,
    ),
    "guard.max_skipped": Field(
        10, "More steps skipped in a row than this stop the run.", NOT_NEGATIVE, **_STORE
    ),
    "init_from": Field(
        None,
        "Weights to start from, but for the classifier: a run's workdir, or PyTorch's file "
        "(.safetensors, .pth).",
        PATH,
        kind=str,
        resume=MAY_CHANGE,
        per_host=True,
    ),
    "finetune.frozen_stages": Field(
        0, "Stages that stay as they are: 1 the stem (conv1), 2 conv2 too, ...", NOT_NEGATIVE
    ),
    "finetune.frozen_norms": Field(
        False, "Batch norms keep scale, shift and statistics, and normalise as in testing."
    ),
    "finetune.backbone_rate": Field(
        1.0, "What multiplies the rate of all but the classifier.", NOT_NEGATIVE
    ),
    "data.name": Field("", "The data set, see docs/data.md."),
    "data.data_dir": Field(
        None,
        "Where prepared data sets are; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
        PATH,
        kind=str,
        per_host=True,
        **_STORE,
    ),
    "data.manual_dir": Field(
        None,
        "Where the raw files are, for data sets that are prepared when they are first read.",
        PATH,
        kind=str,
        per_host=True,
        **_STORE,
    ),
    "data.on_error": Field(
        "stop",
        "What becomes of an image that cannot be decoded; skip: training takes the next one.",
        one_of("stop", "skip"),
        **_STORE,
    ),
    "data.exif": Field(
        "ignore",
        "Whether images are turned as their EXIF orientation says: ignore, as the paper's code and "
        "torchvision do, or follow.",
        name_in("resnext_jax.data.headers:EXIF"),
    ),
    "data.image_size": Field(224, "Side of the training images, in pixels.", AT_LEAST_ONE),
    "data.crop": Field(
        "random_sized",
        "A random part of the image, or the whole image made square.",
        name_in("resnext_jax.data.transforms:CROPS"),
    ),
    "data.interpolation": Field(
        "bicubic", "Of training images.", name_in("resnext_jax.data.resize:INTERPOLATIONS")
    ),
    "data.train_antialias": Field(
        False, "Whether shrinking filters training images; torch7 never does."
    ),
    "data.eval_image_size": Field(
        None,
        "Side of the test images; None: image_size. Table 5 tests at 320.",
        AT_LEAST_ONE,
        kind=int,
        **_EVAL,
    ),
    "data.eval_short_side": Field(
        None,
        "Short side of a test image before its centre is cut out; None: 8/7 of the test images' "
        "side (256 for 224). With crop=whole nothing is cut out: None only.",
        AT_LEAST_ONE,
        kind=int,
        **_EVAL,
    ),
    "data.eval_interpolation": Field(
        None,
        "Of test images; None: as interpolation.",
        name_in("resnext_jax.data.resize:INTERPOLATIONS"),
        kind=str,
        **_EVAL,
    ),
    "data.eval_antialias": Field(
        True, "Whether shrinking filters test images; not read with torch7.", **_EVAL
    ),
    "data.eval_centre": Field(
        None,
        "Where the centre is if margins are odd: torch7, the paper's code, halves upwards, "
        "torchvision to the even number; None: torchvision for files of weights from elsewhere, "
        "otherwise torch7.",
        name_in("resnext_jax.data.transforms:CENTRES"),
        kind=str,
        **_EVAL,
    ),
    "data.eval_crops": Field(
        "centre",
        "What of a test image is scored: one crop; the corners too, each also mirrored; every "
        "position at five scales.",
        one_of("centre", "ten", "dense"),
        **_EVAL,
    ),
    "data.eval_first_classes": Field(
        None,
        "Score the first so many classes by themselves as well (ImageNet-5K: 1000).",
        AT_LEAST_ONE,
        kind=int,
        **_STORE,
    ),
    "data.flip": Field(True, "Mirror every second training image."),
    "data.brightness": Field(0.4, "Largest change.", AT_MOST_ONE),
    "data.contrast": Field(0.4, "Largest change.", AT_MOST_ONE),
    "data.saturation": Field(0.4, "Largest change.", AT_MOST_ONE),
    "data.lighting": Field(0.1, "Standard deviation of AlexNet's lighting noise.", NOT_NEGATIVE),
    "data.max_shift": Field(0, "Largest shift into padding, in pixels.", NOT_NEGATIVE),
    "data.trivial_augment": Field(False, "TrivialAugment (Mueller and Hutter 2021)."),
    "data.random_erase": Field(0.0, "Probability of random erasing.", AT_MOST_ONE),
    "data.mixup": Field(0.0, "Alpha of mixup; 0: none.", NOT_NEGATIVE),
    "data.cutmix": Field(0.0, "Alpha of CutMix; 0: none.", NOT_NEGATIVE),
    "data.mean": Field(
        (123.675, 116.28, 103.53), "Of each channel, in 0..255.", numbers(3, positive=False)
    ),
    "data.std": Field(
        (58.395, 57.12, 57.375),
        "Standard deviation of each channel, in 0..255.",
        numbers(3, positive=True),
    ),
    "data.num_workers": Field(
        0, "Decoding processes; 0: threads.", NOT_NEGATIVE, per_host=True, **_STORE
    ),
    "eval_batch_size": Field(
        256,
        "Images a batch in testing; with ten crops a tenth as many, densely as many pixels.",
        AT_LEAST_ONE,
        **_STORE,
    ),
    "eval_every_epochs": Field(1.0, "Epochs from test to test.", POSITIVE, **_STORE),
    "checkpoint_every_epochs": Field(
        1.0,
        "Epochs from checkpoint to checkpoint; each test, the end, and a signal save too.",
        POSITIVE,
        **_STORE,
    ),
    "checkpoint_every_steps": Field(
        None, "Steps from checkpoint to checkpoint.", AT_LEAST_ONE, kind=int, **_STORE
    ),
    "checkpoint_every_minutes": Field(
        None, "Minutes from checkpoint to checkpoint.", POSITIVE, kind=float, **_STORE
    ),
    "keep_checkpoints": Field(
        3, "So many of the last checkpoints are kept, and the best.", AT_LEAST_ONE, **_STORE
    ),
    "keep_every_epochs": Field(
        None, "One checkpoint at every so many epochs is kept.", POSITIVE, kind=float, **_STORE
    ),
    "log_every_steps": Field(50, "Steps from record to record.", AT_LEAST_ONE, **_STORE),
    "profile_steps": Field(
        (),
        "First and last step of a profiler trace, in WORKDIR/profile; (): none.",
        STEPS,
        **_STORE,
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What `config.task` names.

    Attributes:
      fields: of its configs, by dotted name.
      start: what makes a config of its defaults.
    """

    fields: Mapping[str, Field]
    start: Callable[[], ConfigDict]


def base_config() -> ConfigDict:
    """Return the paper's ImageNet recipe (Sec. 4) with no data set or model chosen.

    Recipes in `configs/` start from this and change what differs. Fields that
    it does not have are refused by `config.checks.validate`.
    """
    return defaults(FIELDS)


# By `config.task`. `detection.config` adds its own.
TASKS: dict[str, Task] = {"classification": Task(FIELDS, base_config)}


def defaults(fields: Mapping[str, Field]) -> ConfigDict:
    """Make a config of the defaults of some fields, by dotted name."""
    config = ConfigDict()
    for name, row in fields.items():
        *sections, last = name.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        section[last] = config_dict.placeholder(row.kind) if row.kind else row.default
    return config


def fields_of(config: ConfigDict) -> Mapping[str, Field]:
    """Return the table of the fields of a config's task; raises ConfigError: no such task."""
    return task_of(config).fields


def task_of(config: ConfigDict) -> Task:
    """Return the task of a config; raises ConfigError if there is none of that name."""
    name = config.get("task")
    if name not in TASKS:
        raise ConfigError(f"config.task={name!r} must be one of {', '.join(TASKS)}.")
    return TASKS[name]


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


def field_names(config: ConfigDict) -> list[str]:
    """List the dotted names of all fields."""
    names: list[str] = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            names.extend(f"{key}.{name}" for name in field_names(value))
        else:
            names.append(key)
    return names


def config_facts(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that all hosts must have alike, for `distributed.check_hosts_agree`."""
    fields = fields_of(config)
    return {
        f"config.{name}": field(config, name)
        for name in field_names(config)
        if not (name in fields and fields[name].per_host)
    }
