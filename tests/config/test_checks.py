"""A wrong value ends in one sentence that names the field, the value and what is allowed."""

import math
import re
from typing import Any

import pytest
from ml_collections import ConfigDict

import resnext_jax.detection.config  # noqa: F401  its tasks
from resnext_jax.config.checks import check_fields, check_start, validate
from resnext_jax.config.fields import FIELDS, TASKS, base_config, field, field_names, set_field
from resnext_jax.detection.config import fast_rcnn_config, faster_rcnn_config, rpn_config
from resnext_jax.errors import ConfigError


def complete_config() -> ConfigDict:
    config = base_config()
    config.model.name = "resnext50_32x4d"
    config.data.name = "digits"
    return config


def sentence(config: ConfigDict) -> str:
    with pytest.raises(ConfigError) as error:
        validate(config)
    message = str(error.value)
    assert "\n" not in message
    return message


# Wrong values of the right type, and a part of the sentence that says what is allowed.
WRONG: dict[str, tuple[list[Any], str]] = {
    "seed": ([-1, 2**32], "must be at least 0 and less than 2**32"),
    "batch_size": ([0, -8], "must be at least 1"),
    "bn_group_size": ([0, -1], "must be None or at least 1"),
    "accumulate_steps": ([0, -2], "must be at least 1"),
    "num_epochs": ([0.0, -1.0], "must be greater than 0"),
    "images_per_epoch": ([0, -1], "must be None or at least 1"),
    "model.form": (["", "d", "C"], "must be one of "),
    "model.dtype": (["float16", "", "int32"], "must be one of float32, bfloat16, float64"),
    "model.param_dtype": (["bfloat16", "double"], "must be one of float32, float64"),
    "model.stem_width": ([0, -64], "must be None or at least 1"),
    "model.template_width": ([0, -256], "must be None or at least 1"),
    "optimizer.name": (["", "SGD"], "must be one of sgd"),
    "optimizer.learning_rate": (
        [0.0, -0.1],
        "must be greater than 0",
    ),
    "optimizer.base_batch_size": ([0], "must be at least 1"),
    "optimizer.momentum": ([1.0, -0.1], "must be at least 0 and less than 1"),
    "optimizer.betas": ([(0.9,), (0.9, 1.0), (-0.1, 0.9)], "must be a tuple of 2 numbers"),
    "optimizer.eps": ([0.0], "must be greater than 0"),
    "optimizer.trust_coefficient": ([0.0], "must be greater than 0"),
    "optimizer.weight_decay": ([-1e-4], "must be at least 0"),
    "optimizer.loss": (["", "softmax"], "must be one of cross_entropy, bce"),
    "optimizer.target_threshold": ([1.0, -0.1], "must be None or at least 0 and less than 1"),
    "optimizer.drop_path": ([1.0, -0.1], "must be at least 0 and less than 1"),
    "data.rand_augment": (["", "timm"], "must be None or one of increasing, torchvision"),
    "data.rand_augment_magnitude": ([-1.0], "must be at least 0"),
    "data.rand_augment_std": ([-1.0], "must be at least 0"),
    "data.repeats": ([0], "must be at least 1"),
    "data.size_epochs": ([(0.0,), (3.0, 2.0), (2.0, 2.0)], "must be a tuple of positive numbers"),
    "data.sizes": ([(0,)], "must be a tuple of positive numbers"),
    "optimizer.label_smoothing": ([1.0, -0.1], "must be at least 0 and less than 1"),
    "optimizer.clip_norm": ([0.0, -1.0], "must be None or greater than 0"),
    "schedule.name": (["polynomial", "", "Step"], "must be one of step, cosine, linear"),
    "schedule.boundaries": (
        [(0.0, 30.0), (-1.0,), ("a", "b"), (30.0, None)],
        "must be a tuple of positive numbers",
    ),
    "schedule.factor": ([0.0, -10.0, 0.1], "must be at least 1: the rate is divided by it"),
    "schedule.warmup_epochs": ([-1.0], "must be at least 0"),
    "ema.decay": ([1.0, -0.1], "must be None or at least 0 and less than 1"),
    "ema.every_steps": ([0], "must be at least 1"),
    "guard.on_nonfinite": (["", "ignore"], "must be one of stop, skip"),
    "guard.spike_factor": ([1.0, 0.5], "must be None or greater than 1"),
    "guard.max_skipped": ([-1], "must be at least 0"),
    "finetune.frozen_stages": ([-1], "must be at least 0"),
    "finetune.backbone_rate": ([-0.1], "must be at least 0"),
    "finetune.layer_decay": ([0.0, 1.1], "must be greater than 0 and at most 1"),
    "data.exif": (["", "true"], "must be one of ignore, follow"),
    "data.image_size": ([0], "must be at least 1"),
    "data.eval_image_size": ([0, -1], "must be None or at least 1"),
    "data.eval_short_side": ([0, -1], "must be None or at least 1"),
    "data.eval_crops": (["", "center", "10"], "must be one of centre, ten, dense"),
    "data.eval_first_classes": ([0, -1], "must be None or at least 1"),
    "data.on_error": (["", "ignore"], "must be one of stop, skip"),
    "data.crop": (["", "centre"], "must be one of random_sized, whole"),
    "data.interpolation": (["cubic", ""], "must be one of bicubic, bilinear, torch7"),
    "data.eval_centre": (["", "caffe"], "must be None or one of torch7, torchvision"),
    "data.eval_interpolation": (
        ["cubic", ""],
        "must be None or one of bicubic, bilinear, torch7",
    ),
    "data.brightness": ([-0.1, 1.1], "must be at least 0 and at most 1"),
    "data.contrast": ([-0.1, 1.1], "must be at least 0 and at most 1"),
    "data.saturation": ([-0.1, 1.1], "must be at least 0 and at most 1"),
    "data.lighting": ([-0.1], "must be at least 0"),
    "data.max_shift": ([-1], "must be at least 0"),
    "data.random_erase": ([-0.1, 1.1], "must be at least 0 and at most 1"),
    "data.mixup": ([-0.1], "must be at least 0"),
    "data.cutmix": ([-0.1], "must be at least 0"),
    "data.mean": (
        [(), (1.0,), (1.0, 2.0), (1.0, 2.0, 3.0, 4.0), ("1", "2", "3")],
        "must be a tuple of 3 numbers",
    ),
    "data.std": (
        [(1.0, 2.0), (1.0,) * 4, (1.0, 0.0, 1.0), (1.0, -1.0, 1.0)],
        "must be a tuple of 3 positive numbers",
    ),
    "data.num_workers": ([-1], "must be at least 0"),
    "eval_batch_size": ([0], "must be at least 1"),
    "eval_every_epochs": ([0.0, -1.0], "must be greater than 0"),
    "checkpoint_every_epochs": ([0.0], "must be greater than 0"),
    "checkpoint_every_steps": ([0, -1], "must be None or at least 1"),
    "checkpoint_every_minutes": ([0.0], "must be None or greater than 0"),
    "keep_checkpoints": ([0], "must be at least 1"),
    "keep_every_epochs": ([0.0, -1.0], "must be None or greater than 0"),
    "log_every_steps": ([0], "must be at least 1"),
    **dict.fromkeys(
        ("init_from", "data.data_dir", "data.manual_dir"),
        (
            ["", " ", "gs://bucket/run", "https://example.org/x.pth", "s3:/b"],
            "must be None or a local path",
        ),
    ),
    "profile_steps": (
        [(1,), (0, 2), (3, 2), (1.5, 2), (1, 2, 3), ("a", "b")],
        "must be two whole numbers, as in =10,12, or ()",
    ),
}


def test_the_base_config_is_valid_once_model_and_data_are_named() -> None:
    validate(complete_config())


def test_the_base_config_alone_lacks_a_model() -> None:
    assert "config.model.name: unknown model ''" in sentence(base_config())


def test_every_rule_is_tested_here() -> None:
    assert WRONG.keys() == {name for name, row in FIELDS.items() if row.rule}
    # Names of a network and a data set have checks of their own.
    without = {
        name
        for name, row in FIELDS.items()
        if not (row.rule or bool in (type(row.default), row.kind))
    }
    assert without == {"task", "model.name", "data.name"}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [(name, value, allowed) for name, (values, allowed) in WRONG.items() for value in values],
)
def test_wrong_value(name: str, value: Any, allowed: str) -> None:
    config = complete_config()
    set_field(config, name, value)
    message = sentence(config)
    assert message.startswith(f"config.{name}={value!r} ")
    assert allowed in message


def test_no_number_of_any_task_may_be_infinite_or_nan() -> None:
    tried = 0
    for task in TASKS.values():
        for name in task.fields:
            value = field(task.start(), name)
            for wrong in (math.inf, -math.inf, math.nan):
                config = task.start()
                try:
                    set_field(
                        config, name, (*value[1:], wrong) if isinstance(value, tuple) else wrong
                    )
                except TypeError:
                    continue  # the field takes no fraction
                with pytest.raises(ConfigError, match=re.escape(f"config.{name}=")) as error:
                    check_fields(config)
                assert "must be finite" in str(error.value)
                tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 1),
        ("bn_group_size", 32),
        ("images_per_epoch", 1),
        ("num_epochs", 0.5),
        ("model.form", "a"),
        ("model.form", "b"),
        ("model.dtype", "bfloat16"),
        ("model.preactivation", True),
        ("model.preactivation", False),
        ("model.stem_width", 16),
        ("optimizer.momentum", 0.0),
        ("optimizer.weight_decay", 0.0),
        ("optimizer.label_smoothing", 0.1),
        ("schedule.name", "cosine"),
        ("schedule.factor", 1.0),
        ("init_from", "~/run"),
        ("data.data_dir", "a b/C:d"),
        ("schedule.boundaries", ()),
        ("schedule.boundaries", (150, 225)),
        ("schedule.warmup_epochs", 5.0),
        ("data.mean", (0.0, -1.0, 0.0)),
        ("data.num_workers", 2),
        ("data.eval_crops", "ten"),
        ("data.eval_crops", "dense"),
        ("data.eval_interpolation", "torch7"),
    ],
)
def test_right_value(name: str, value: Any) -> None:
    config = complete_config()
    set_field(config, name, value)
    validate(config)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnext50_32xd", ["unknown model 'resnext50_32xd'", "did you mean ", "resnext50_32x4d"]),
        ("ResNet50", ["unknown model 'ResNet50'", "resnet50"]),
        ("resnext50", ["'resnext50'", "resnext50_"]),
        ("vgg", ["unknown model 'vgg'"]),
        ("resnext50_0x4d", ["impossible model 'resnext50_0x4d'", "C=0", "at least 1"]),
        ("resnext50_32x0d", ["impossible model 'resnext50_32x0d'", "d=0", "at least 1"]),
        ("resnet50_2x40d", ["impossible model 'resnet50_2x40d'", "'resnext50_2x40d'"]),
        ("resnext51_32x4d", ["impossible model 'resnext51_32x4d'", "depth 51"]),
    ],
)
def test_unknown_and_impossible_models(name: str, parts: list[str]) -> None:
    config = complete_config()
    config.model.name = name
    message = sentence(config)
    assert message.startswith("config.model.name: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "field_name", "value", "parts"),
    [
        ("resnet200", "preactivation", False, ["'resnet200'", "pre-activation"]),
        ("wide_resnet28_10", "form", "a", ["'wide_resnet28_10'", "form 'a'"]),
    ],
)
def test_model_fields_that_exclude_each_other(
    name: str, field_name: str, value: Any, parts: list[str]
) -> None:
    config = complete_config()
    config.model.name = name
    validate(config)
    config.model[field_name] = value
    message = sentence(config)
    assert message.startswith("config.model")
    for part in parts:
        assert part in message


def test_forms_exist_only_without_preactivation() -> None:
    config = complete_config()
    config.model.form = "b"
    validate(config)
    config.model.preactivation = True
    assert "form 'b'" in sentence(config)


def test_warm_up_must_end_before_a_cosine_does() -> None:
    config = complete_config()
    config.schedule.name = "cosine"
    config.num_epochs = 5.0
    config.schedule.warmup_epochs = 5.0
    message = sentence(config)
    assert "config.schedule.warmup_epochs=5.0 must be less than config.num_epochs=5.0" in message
    config.schedule.warmup_epochs = 4.5
    validate(config)


@pytest.mark.parametrize("name", ["model.dtype", "model.param_dtype"])
def test_float64_needs_double_precision(name: str) -> None:
    config = complete_config()
    set_field(config, name, "float64")
    assert "JAX_ENABLE_X64=1" in sentence(config)


@pytest.mark.usefixtures("float64")
def test_float64_with_double_precision() -> None:
    config = complete_config()
    config.model.dtype = config.model.param_dtype = "float64"
    validate(config)


@pytest.mark.parametrize("name", ["seed", "model.stem_width", "optimizer.nesterov"])
def test_missing_field(name: str) -> None:
    config = complete_config()
    *sections, last = name.split(".")
    del (config[sections[0]] if sections else config)[last]
    message = sentence(config)
    assert f"lacks the field {name!r}" in message
    assert "base_config()" in message


def test_missing_section() -> None:
    config = complete_config()
    del config["schedule"]
    assert "lacks the field 'schedule.boundaries'" in sentence(config)


def test_fields_by_dotted_name() -> None:
    config = complete_config()
    assert field(config, "seed") == 0
    assert field(config, "model.name") == "resnext50_32x4d"
    names = field_names(config)
    assert {"seed", "bn_group_size", "data.data_dir", "optimizer.learning_rate"} <= set(names)
    assert "model" not in names
    assert len(names) == len(set(names))


def test_every_call_gives_a_config_of_its_own() -> None:
    base_config().model.name = "resnet50"
    assert base_config().model.name == ""


def test_a_field_that_nothing_reads_is_refused() -> None:
    """Recipes are programs: a typo in one must not pass silently."""
    config = complete_config()
    config.optimizer.learning_rte = 5.0
    message = sentence(config)
    assert "an unknown field 'optimizer.learning_rte'" in message
    assert "did you mean optimizer.learning_rate" in message


def test_a_task_that_there_is_not_is_told() -> None:
    config = complete_config()
    config.task = "clasification"
    assert sentence(config) == (
        "config.task='clasification' must be one of classification, rpn, fast_rcnn, faster_rcnn."
    )


def test_fields_that_may_be_none_are_those_whose_default_is_none() -> None:
    for task in TASKS.values():
        for name, row in task.fields.items():
            assert (field(task.start(), name) is None) <= (row.kind is not None), name
            assert (row.default is None) == (row.kind is not None), name


@pytest.mark.parametrize(
    ("name", "form", "preactivation", "part"),
    [
        ("resnet200", "a", None, "form 'a' does not exist for the pre-activation"),
        ("resnext29_8x64d", "b", True, "form 'b' does not exist for the pre-activation"),
        ("wide_resnet28_10", "c", False, "it has no other variant"),
    ],
)
def test_impossible_combinations(
    name: str, form: str, preactivation: bool | None, part: str
) -> None:
    config = complete_config()
    config.model.name, config.model.form = name, form
    config.model.preactivation = preactivation
    message = sentence(config)
    assert message.startswith("config.model: ")
    assert part in message


@pytest.mark.parametrize("crops", ["ten", "dense"])
def test_whole_images_are_tested_in_one_crop(crops: str) -> None:
    config = complete_config()
    config.data.crop, config.data.eval_crops = "whole", crops
    message = sentence(config)
    assert message.startswith(f"config.data.eval_crops={crops!r} needs config.data.crop=")
    assert "set eval_crops to 'centre'" in message
    config.data.eval_crops = "centre"
    validate(config)


def test_dense_testing_has_short_sides_of_its_own() -> None:
    config = complete_config()
    config.data.eval_short_side = 256
    for crops in ("ten", "centre"):
        config.data.eval_crops = crops
        validate(config)
    config.data.eval_crops = "dense"
    message = sentence(config)
    assert message.startswith("config.data.eval_short_side=256 has no effect with ")
    assert "set it to None" in message


def test_whole_images_have_no_short_side() -> None:
    config = complete_config()
    config.data.crop, config.data.eval_short_side = "whole", 256
    message = sentence(config)
    assert message.startswith("config.data.eval_short_side=256 has no effect with ")
    assert "config.data.crop='whole'" in message
    assert "set it to None" in message
    config.data.eval_short_side = None
    validate(config)


def test_torch7_never_antialiases() -> None:
    config = complete_config()
    config.data.train_antialias = True
    validate(config)
    config.data.interpolation = "torch7"
    message = sentence(config)
    assert message.startswith("config.data.train_antialias=True has no effect with ")
    assert "config.data.interpolation='torch7'" in message
    assert "set it to False" in message
    # Test images may have the filter, and have it by default.
    config.data.train_antialias = False
    assert config.data.eval_antialias
    validate(config)


def test_mixed_images_come_in_pairs() -> None:
    config = complete_config()
    config.batch_size = 9
    validate(config)
    config.data.cutmix = 1.0
    assert "config.data.cutmix=1.0 mixes images in pairs, but config.batch_size=9 is" in sentence(
        config
    )
    config.batch_size = 12
    validate(config)
    config.accumulate_steps = 4
    assert "config.batch_size=12 in 4 parts is not a whole number of pairs" in sentence(config)


def test_training_does_not_freeze_random_weights() -> None:
    for base in (complete_config(), rpn_config(), fast_rcnn_config(), faster_rcnn_config()):
        for stages, norms in ((2, False), (0, True)):
            config = base.copy_and_resolve_references()
            config.finetune.frozen_stages, config.finetune.frozen_norms = stages, norms
            name = "frozen_stages=2" if stages else "frozen_norms=True"
            with pytest.raises(ConfigError, match=f"{name} would freeze random weights"):
                check_start(config)
            config.init_from = "runs/other"
            check_start(config)
    # To look at it, or to evaluate, is another matter.
    config = complete_config()
    config.finetune.frozen_stages = 2
    validate(config)


def test_only_stages_that_exist_are_frozen() -> None:
    config = complete_config()
    config.finetune.frozen_stages = 6
    assert (
        "must be at most 5, the number of stages of resnext50_32x4d (conv1 to conv5)"
        in sentence(config)
    )
    config.model.name = "resnext29_8x64d"
    config.finetune.frozen_stages = 5
    assert "must be at most 4, the number of stages of resnext29_8x64d" in sentence(config)
