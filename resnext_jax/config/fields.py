"""Every field of a run's configuration, and its default."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict

from resnext_jax.errors import ConfigError

# Fields that may differ from host to host: where things are, and how they are read. What is there
# is compared.
PER_HOST = frozenset(
    {"data.data_dir", "data.manual_dir", "data.num_workers", "data.proposals", "init_from"}
)


def base_config() -> ConfigDict:
    """Return the paper's ImageNet recipe (Sec. 4) with no data set or model chosen.

    Recipes in `configs/` start from this and change what differs. Fields that
    it does not have are refused by `config.checks.validate`.
    """
    config = ConfigDict()
    # What is trained: "classification", or a stage of a detector (see detection.config).
    config.task = "classification"
    config.seed = 0

    # Images a step over all devices, and how many consecutive ones of them
    # share batch-norm statistics (None: all). Part of the recipe, whatever the
    # number of devices.
    config.batch_size = 256
    config.bn_group_size = config_dict.placeholder(int)
    # Micro-batches of a batch, one after the other: the same training in less memory.
    config.accumulate_steps = 1

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
    config.optimizer.weight_decay = 1e-4  # coupled
    config.optimizer.decay_norm = True  # also of batch norms' scale and shift
    config.optimizer.decay_bias = True  # also of the classifier's bias
    config.optimizer.label_smoothing = 0.0
    # Largest L2 norm of the gradient over all parameters; None: any.
    config.optimizer.clip_norm = config_dict.placeholder(float)

    config.schedule = ConfigDict()
    config.schedule.name = "step"
    config.schedule.boundaries = (30.0, 60.0, 90.0)  # epochs; step only
    config.schedule.factor = 10.0  # the rate is divided by it; step only
    config.schedule.warmup_epochs = 0.0

    # Average of the weights, tested beside them (see optim.ema). None: there is none.
    config.ema = ConfigDict()
    config.ema.decay = config_dict.placeholder(float)
    config.ema.every_steps = 1

    # What becomes of a step whose loss is not finite ("stop", or "skip"), or more than
    # `spike_factor` times the average of late (None: any is taken). More than `max_skipped`
    # skipped in a row stop the run.
    config.guard = ConfigDict()
    config.guard.on_nonfinite = "stop"
    config.guard.spike_factor = config_dict.placeholder(float)
    config.guard.max_skipped = 10

    # Start from these weights, but for the classifier: of the run in a workdir, or a file of
    # PyTorch's (.safetensors, .pth).
    config.init_from = config_dict.placeholder(str)

    config.finetune = ConfigDict()
    # So many stages stay as they are: 1 the stem (the paper's conv1), 2 conv2 too, ...
    config.finetune.frozen_stages = 0
    # Batch norms keep scale, shift and statistics, and normalise as in testing.
    config.finetune.frozen_norms = False
    config.finetune.backbone_rate = 1.0  # what multiplies the rate in front of the classifier

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
    config.data.trivial_augment = False  # see data.trivial_augment
    config.data.random_erase = 0.0  # how probable, see data.erasing
    config.data.mixup = 0.0  # alpha, see data.mixing; 0: none
    config.data.cutmix = 0.0  # alpha, see data.mixing; 0: none
    config.data.mean = (123.675, 116.28, 103.53)  # of each channel, in 0..255
    config.data.std = (58.395, 57.12, 57.375)
    config.data.num_workers = 0  # decoding processes; 0: threads

    # Crops: with ten an image a batch holds a tenth as many images. Dense batches hold as many
    # pixels as so many images of the test images' side.
    config.eval_batch_size = 256
    config.eval_every_epochs = 1.0
    # Checkpoints are also saved at each test, at the end, and where a signal stops the run.
    config.checkpoint_every_epochs = 1.0
    config.checkpoint_every_steps = config_dict.placeholder(int)
    config.checkpoint_every_minutes = config_dict.placeholder(float)
    # The last so many are kept, the best, and (None: no others) one at every so many epochs.
    config.keep_checkpoints = 3
    config.keep_every_epochs = config_dict.placeholder(float)
    config.log_every_steps = 50
    # First and last step of a profiler trace, in WORKDIR/profile; (): none.
    config.profile_steps = ()
    return config


# What makes the defaults of a task, by `config.task`. `detection.config` adds its own.
TASKS: dict[str, Callable[[], ConfigDict]] = {"classification": base_config}


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


def base_of(config: ConfigDict) -> ConfigDict:
    """Return the defaults that a config of its task starts from.

    Raises:
      ConfigError: there is no such task.
    """
    return base_maker(config)()


def base_maker(config: ConfigDict) -> Callable[[], ConfigDict]:
    """Return what makes the defaults of a config's task; raises ConfigError if there is none."""
    name = config.get("task")
    if name not in TASKS:
        raise ConfigError(f"config.task={name!r} must be one of {', '.join(TASKS)}.")
    return TASKS[name]


def optional_fields(config: ConfigDict) -> list[str]:
    """List the fields of a config that may be None."""
    base = base_of(config)
    return [name for name in field_names(base) if field(base, name) is None]


def config_facts(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that all hosts must have alike, for `distributed.check_hosts_agree`."""
    return {f"config.{n}": field(config, n) for n in field_names(config) if n not in PER_HOST}


def field_names(config: ConfigDict) -> list[str]:
    """List the dotted names of all fields."""
    names: list[str] = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            names.extend(f"{key}.{name}" for name in field_names(value))
        else:
            names.append(key)
    return names
