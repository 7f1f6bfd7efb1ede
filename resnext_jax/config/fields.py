"""Config fields: default, allowed values and documentation of each.

The table `FIELDS` is the only place where a field is defined: validation, `train.py --help`,
docs/config.md and the check on resuming read it. `detection.config` has the table of detectors.
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
    BETAS,
    DIVISOR,
    INCREASING,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    POSITIVE_AT_MOST_ONE,
    SEED,
    STEPS,
    Rule,
    name_in,
    numbers,
    one_of,
)
from resnext_jax.errors import ConfigError

# Whether a field may change when a run resumes: it must not; it may, and then changes training or
# evaluation; it may, and changes results by rounding at most.
FIXED, MAY_CHANGE, IMMATERIAL = "as it was", "may change", "may change, no result does"


@dataclasses.dataclass(frozen=True)
class Field:
    """A config field.

    Attributes:
      default: its value in `base_config`.
      meaning: its documentation, for --help and docs/config.md.
      rule: the allowed values, beyond the type.
      kind: the type of a field whose default is None. Only such fields may be None.
      resume: FIXED, MAY_CHANGE or IMMATERIAL.
      per_host: whether hosts may have different values (paths, number of workers).
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
        """The allowed values, phrased to follow "must be"; "" if the type is the only rule."""
        if self.rule is None:
            return ""
        return f"None or {self.rule.allowed}" if self.kind else self.rule.allowed

    def accepts(self, value: Any) -> bool:
        """Whether a value of the field's type is allowed."""
        return self.rule is None or (value is None and bool(self.kind)) or self.rule.holds(value)


_EVAL: dict[str, Any] = {"resume": MAY_CHANGE}
_STORE: dict[str, Any] = {"resume": IMMATERIAL}

FIELDS: dict[str, Field] = {
    "task": Field("classification", "What is trained: a classifier, or a stage of a detector."),
    "seed": Field(0, "Random seed of initialisation, data order and augmentation.", SEED),
    "batch_size": Field(256, "Images per step, over all devices.", AT_LEAST_ONE),
    "bn_group_size": Field(
        None,
        "Number of consecutive images of a batch that share batch-norm statistics, on any number "
        "of devices; None: the whole batch.",
        AT_LEAST_ONE,
        kind=int,
    ),
    "accumulate_steps": Field(
        1,
        "Gradient accumulation: micro-batches per step. The same training in less memory.",
        AT_LEAST_ONE,
        **_STORE,
    ),
    "num_epochs": Field(100.0, "Training epochs.", POSITIVE),
    "images_per_epoch": Field(
        None,
        "Images per epoch in schedules and logs; None: the size of the training set.",
        AT_LEAST_ONE,
        kind=int,
    ),
    "model.name": Field("", "Name of the network, see python -m resnext_jax.models."),
    "model.form": Field(
        "c",
        "Block form, Figure 3a, b or c of the paper.",
        name_in("resnext_jax.models.blocks:FORMS"),
    ),
    "model.dtype": Field(
        "float32", "Dtype of the computation.", one_of("float32", "bfloat16", "float64")
    ),
    "model.param_dtype": Field("float32", "Dtype of the parameters.", one_of("float32", "float64")),
    "model.residual": Field(True, "Whether blocks have shortcuts; False: the ablation, Sec. 5.1."),
    "model.preactivation": Field(
        None,
        "Batch norm and ReLU before each convolution; None: decided by model.name.",
        kind=bool,
    ),
    "model.scan_blocks": Field(
        False, "Compile the identical blocks of a stage once, with lax.scan.", **_STORE
    ),
    "model.remat": Field(False, "Recompute blocks in the backward pass to save memory.", **_STORE),
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
        0.1,
        "Learning rate at base_batch_size; scaled linearly with the batch size.",
        POSITIVE,
    ),
    "optimizer.base_batch_size": Field(
        256, "Batch size that learning_rate refers to.", AT_LEAST_ONE
    ),
    "optimizer.momentum": Field(0.9, "Momentum of SGD and LARS.", BELOW_ONE),
    "optimizer.nesterov": Field(True, "Use Nesterov momentum; SGD and LARS."),
    "optimizer.betas": Field(
        (0.9, 0.999), "Decays of AdamW's and LAMB's averages of the gradient and its square.", BETAS
    ),
    "optimizer.eps": Field(
        1e-8, "Added to the denominator by AdamW and LAMB (timm's LAMB: 1e-6).", POSITIVE
    ),
    "optimizer.trust_coefficient": Field(1e-3, "Trust coefficient of LARS.", POSITIVE),
    "optimizer.weight_decay": Field(
        1e-4,
        "Weight decay: an L2 penalty, added to the gradient (SGD, LARS), or decoupled from it "
        "(AdamW, LAMB).",
        NOT_NEGATIVE,
    ),
    "optimizer.decay_norm": Field(True, "Apply weight decay to batch norms' scale and shift too."),
    "optimizer.decay_bias": Field(True, "Apply weight decay to the classifier's bias too."),
    "optimizer.loss": Field(
        "cross_entropy",
        "Training loss: softmax cross-entropy, or binary cross-entropy of each class (bce).",
        one_of("cross_entropy", "bce"),
    ),
    "optimizer.target_threshold": Field(
        None,
        "bce only: targets above this are 1, all others 0; None: shares of mixed images stay.",
        BELOW_ONE,
        kind=float,
    ),
    "optimizer.drop_path": Field(
        0.0,
        "Stochastic depth: probability of dropping the last block's residual function; it grows "
        "linearly from 0 at the first block.",
        BELOW_ONE,
    ),
    "optimizer.label_smoothing": Field(
        0.0, "Label smoothing: probability mass spread over all classes.", BELOW_ONE
    ),
    "optimizer.clip_norm": Field(
        None,
        "Clip the gradient's global L2 norm to this; None: no clipping.",
        POSITIVE,
        kind=float,
        resume=MAY_CHANGE,
    ),
    "schedule.name": Field(
        "step",
        "Learning-rate schedule: divided by factor at each boundary, or cosine or linear decay to "
        "zero.",
        name_in("resnext_jax.optim.optimizers:SCHEDULES"),
    ),
    "schedule.boundaries": Field(
        (30.0, 60.0, 90.0), "Epochs at which the rate drops; step only.", numbers(positive=True)
    ),
    "schedule.factor": Field(10.0, "Divisor of the rate at each boundary; step only.", DIVISOR),
    "schedule.warmup_epochs": Field(0.0, "Epochs of linear warm-up from zero.", NOT_NEGATIVE),
    "ema.decay": Field(
        None,
        "Decay of an exponential moving average of the weights, which is tested too; None: no "
        "average.",
        BELOW_ONE,
        kind=float,
    ),
    "ema.every_steps": Field(1, "Steps between updates of the average.", AT_LEAST_ONE),
    "ema.warmup": Field(
        False,
        "Start the average with a smaller decay: min(decay, (1 + n) / (10 + n)) in update n.",
    ),
    "guard.on_nonfinite": Field(
        "stop",
        "On a non-finite loss: stop the run, or skip the step.",
        one_of("stop", "skip"),
        resume=MAY_CHANGE,
    ),
    "guard.spike_factor": Field(
        None,
        "Skip steps whose loss exceeds this times the running mean loss; None: skip none.",
        ABOVE_ONE,
        kind=float,
        resume=MAY_CHANGE,
    ),
    "guard.max_skipped": Field(
        10, "Consecutive skipped steps tolerated before the run stops.", NOT_NEGATIVE, **_STORE
    ),
    "init_from": Field(
        None,
        "Initial weights of all layers but the classifier: the workdir of a run, a PyTorch weight "
        "file (.safetensors, .pth), or a name such as timm/resnext50_32x4d.a1_in1k.",
        PATH,
        kind=str,
        resume=MAY_CHANGE,
        per_host=True,
    ),
    "finetune.frozen_stages": Field(
        0, "Number of frozen stages: 1 the stem (conv1), 2 conv2 too, ...", NOT_NEGATIVE
    ),
    "finetune.frozen_norms": Field(
        False,
        "Freeze batch norms: scale, shift and running statistics; they normalise as in evaluation.",
    ),
    "finetune.backbone_rate": Field(
        1.0, "Learning-rate multiplier of all layers but the classifier.", NOT_NEGATIVE
    ),
    "finetune.layer_decay": Field(
        1.0,
        "Layer-wise rate decay: the learning-rate multiplier from a block to the one before it; "
        "the classifier has 1, the stem the smallest.",
        POSITIVE_AT_MOST_ONE,
    ),
    "data.name": Field("", "Name of the data set, see docs/data.md."),
    "data.data_dir": Field(
        None,
        "Folder of prepared data sets; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
        PATH,
        kind=str,
        per_host=True,
        **_STORE,
    ),
    "data.manual_dir": Field(
        None,
        "Folder of the raw files, for data sets that are prepared on first use.",
        PATH,
        kind=str,
        per_host=True,
        **_STORE,
    ),
    "data.on_error": Field(
        "stop",
        "On an undecodable image: stop the run, or skip it (training takes the next one).",
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
    "data.size_epochs": Field(
        (),
        "Epochs from which training images have the sides data.sizes; one compilation per size.",
        INCREASING,
    ),
    "data.sizes": Field(
        (), "Sides of training images from each of data.size_epochs.", numbers(positive=True)
    ),
    "data.crop": Field(
        "random_sized",
        "Train on a random crop of the image, or on the whole image resized to a square.",
        name_in("resnext_jax.data.transforms:CROPS"),
    ),
    "data.interpolation": Field(
        "bicubic",
        "Interpolation of training images.",
        name_in("resnext_jax.data.resize:INTERPOLATIONS"),
    ),
    "data.train_antialias": Field(
        False, "Antialias training images when downscaling; torch7 never does."
    ),
    "data.eval_image_size": Field(
        None,
        "Side of the test images, in pixels; None: image_size. Table 5 tests at 320.",
        AT_LEAST_ONE,
        kind=int,
        **_EVAL,
    ),
    "data.eval_short_side": Field(
        None,
        "Short side that test images are resized to before the centre crop; None: 8/7 of their "
        "side (256 for 224). crop=whole has no centre crop and allows only None.",
        AT_LEAST_ONE,
        kind=int,
        **_EVAL,
    ),
    "data.eval_interpolation": Field(
        None,
        "Interpolation of test images; None: the same as interpolation.",
        name_in("resnext_jax.data.resize:INTERPOLATIONS"),
        kind=str,
        **_EVAL,
    ),
    "data.eval_antialias": Field(
        True, "Antialias test images when downscaling; ignored with torch7.", **_EVAL
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
        "Test protocol: one centre crop; 10-crop (centre and corners, each also mirrored); dense "
        "evaluation at five scales.",
        one_of("centre", "ten", "dense"),
        **_EVAL,
    ),
    "data.eval_first_classes": Field(
        None,
        "Also evaluate on the first N classes alone (ImageNet-5K: 1000).",
        AT_LEAST_ONE,
        kind=int,
        **_STORE,
    ),
    "data.flip": Field(True, "Flip training images horizontally with probability 0.5."),
    "data.brightness": Field(0.4, "Maximum relative change of brightness.", AT_MOST_ONE),
    "data.contrast": Field(0.4, "Maximum relative change of contrast.", AT_MOST_ONE),
    "data.saturation": Field(0.4, "Maximum relative change of saturation.", AT_MOST_ONE),
    "data.lighting": Field(0.1, "Standard deviation of AlexNet's lighting noise.", NOT_NEGATIVE),
    "data.max_shift": Field(
        0, "Padding of the random crop, and so the maximum shift, in pixels.", NOT_NEGATIVE
    ),
    "data.trivial_augment": Field(False, "TrivialAugment (Mueller and Hutter 2021)."),
    "data.rand_augment": Field(
        None,
        "RandAugment: timm's increasing variant, or torchvision's; None: off.",
        name_in("resnext_jax.data.rand_augment:VARIANTS"),
        kind=str,
    ),
    "data.rand_augment_magnitude": Field(
        7.0,
        "Magnitude of RandAugment: up to 10 (increasing), a whole number up to 30 (torchvision).",
        NOT_NEGATIVE,
    ),
    "data.rand_augment_std": Field(
        0.5, "Standard deviation of RandAugment's magnitude; increasing only.", NOT_NEGATIVE
    ),
    "data.repeats": Field(
        1, "Repeated augmentation: copies of each image in a batch, augmented anew.", AT_LEAST_ONE
    ),
    "data.random_erase": Field(0.0, "Probability of random erasing.", AT_MOST_ONE),
    "data.mixup": Field(0.0, "Alpha of mixup; 0: off.", NOT_NEGATIVE),
    "data.cutmix": Field(0.0, "Alpha of CutMix; 0: off.", NOT_NEGATIVE),
    "data.mean": Field(
        (123.675, 116.28, 103.53),
        "Mean per channel, for pixels in 0..255.",
        numbers(3, positive=False),
    ),
    "data.std": Field(
        (58.395, 57.12, 57.375),
        "Standard deviation per channel, for pixels in 0..255.",
        numbers(3, positive=True),
    ),
    "data.num_workers": Field(
        0, "Decoding processes per host; 0: threads.", NOT_NEGATIVE, per_host=True, **_STORE
    ),
    "eval_batch_size": Field(
        256,
        "Images per test batch; a tenth of that with ten crops, images of as many pixels in all "
        "with dense evaluation.",
        AT_LEAST_ONE,
        **_STORE,
    ),
    "eval_every_epochs": Field(1.0, "Epochs between tests.", POSITIVE, **_STORE),
    "checkpoint_every_epochs": Field(
        1.0,
        "Epochs between checkpoints; every test, the end and a signal save one too.",
        POSITIVE,
        **_STORE,
    ),
    "checkpoint_every_steps": Field(
        None, "Steps between checkpoints.", AT_LEAST_ONE, kind=int, **_STORE
    ),
    "checkpoint_every_minutes": Field(
        None, "Minutes between checkpoints.", POSITIVE, kind=float, **_STORE
    ),
    "keep_checkpoints": Field(
        3,
        "Number of most recent checkpoints to keep; the best is kept too.",
        AT_LEAST_ONE,
        **_STORE,
    ),
    "keep_every_epochs": Field(
        None, "Also keep one checkpoint per this many epochs.", POSITIVE, kind=float, **_STORE
    ),
    "log_every_steps": Field(50, "Steps between log records.", AT_LEAST_ONE, **_STORE),
    "profile_steps": Field(
        (),
        "First and last step of a profiler trace, written to WORKDIR/profile; (): no trace.",
        STEPS,
        **_STORE,
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A value of `config.task`.

    Attributes:
      fields: its config fields, by dotted name.
      start: returns a config with its default values.
    """

    fields: Mapping[str, Field]
    start: Callable[[], ConfigDict]


def base_config() -> ConfigDict:
    """Return the paper's ImageNet recipe (Sec. 4) with no data set or model chosen.

    Recipes in `configs/` start from this config and override fields. `config.checks.validate`
    rejects fields that it does not have.
    """
    return defaults(FIELDS)


# By `config.task`. `detection.config` adds its own.
TASKS: dict[str, Task] = {"classification": Task(FIELDS, base_config)}


def defaults(fields: Mapping[str, Field]) -> ConfigDict:
    """Return a config with the default values of the given fields (keys: dotted names)."""
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
    """Return the field table of a config's task; raises ConfigError for an unknown task."""
    return task_of(config).fields


def task_of(config: ConfigDict) -> Task:
    """Return the task of a config; raises ConfigError for an unknown name."""
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
    """Return the fields that must be equal on all hosts, for `distributed.check_hosts_agree`."""
    fields = fields_of(config)
    return {
        f"config.{name}": field(config, name)
        for name in field_names(config)
        if not (name in fields and fields[name].per_host)
    }
