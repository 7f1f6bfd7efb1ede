"""The detectors' recipes: the paper's figures, and what is refused."""

import functools
import importlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.fields import field_names, set_field
from resnext_jax.detection import training
from resnext_jax.detection.setup import build_fast_rcnn, image_spec
from resnext_jax.detection.validation import validate_detector
from resnext_jax.errors import ConfigError, DataError
from resnext_jax.models.variables import skeleton, split
from tests.detection.coco_files import annotation, categories, image, write_images, write_json
from tests.detection.small import small_config, small_proposals, small_scenes

MODELS = ("resnet50", "resnext50_32x4d", "resnet101", "resnext101_32x4d")
TRAIN2017 = 118_287


def load(name: str) -> ConfigDict:
    config = importlib.import_module(f"resnext_jax.configs.{name}").get_config()
    assert isinstance(config, ConfigDict)
    return config


def named(config: ConfigDict) -> ConfigDict:
    """Name the files, which no recipe knows."""
    config.data.data_dir = "/data/coco"
    if config.task == "fast_rcnn":
        config.data.proposals = "/data/proposals"
    return config


def sentence(config: ConfigDict) -> str:
    with pytest.raises(ConfigError) as error:
        validate_detector(config)
    return str(error.value)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("stage", "batch", "peak"), [("rpn", 16, 0.02), ("fast_rcnn", 8, 0.005)])
def test_the_paper_s_schedule_and_its_scaling(
    stage: str, batch: int, peak: float, model: str
) -> None:
    """App. B: 120k steps, then 60k at a tenth; with another batch as many images."""
    config = named(load(f"coco_{model}_{stage}"))
    validate_detector(config)
    assert (config.task, config.model.name) == (stage, model)
    for scale in (1, 2):
        config.batch_size = scale * batch
        steps = build.num_steps(config, TRAIN2017)
        assert steps == 180_000 // scale
        schedule = build.build_schedule(config, TRAIN2017)
        fall = 120_000 // scale
        for step, rate in ((0, peak), (fall - 1, peak), (fall, peak / 10), (steps - 1, peak / 10)):
            assert float(schedule(step)) == pytest.approx(scale * rate)
    optimizer = config.optimizer
    assert (optimizer.weight_decay, optimizer.momentum, optimizer.nesterov) == (1e-4, 0.9, False)
    assert optimizer.new_bias_rate == 2
    assert (config.finetune.frozen_stages, config.finetune.frozen_norms) == (2, True)
    assert config.schedule.warmup_epochs == 0
    assert image_spec(config).canvases == ((608, 1008), (1008, 608))


def test_biases_of_new_layers_move_twice_as_fast_and_frozen_ones_do_not_decay(
    tmp_path: Path,
) -> None:
    scenes = small_scenes(tmp_path / "scenes")
    small_proposals(scenes)
    config = small_config("fast_rcnn", scenes)
    config.optimizer.weight_decay = 0.1
    model = skeleton(lambda rngs: build_fast_rcnn(config, 11))
    params = {name: jnp.ones(x.shape, x.dtype) for name, x in split(model)[1].items()}
    optimizer = build.build_optimizer(
        config,
        lambda step: jnp.asarray(1.0),
        rate_factor=functools.partial(training.rate_factor, config),
    )
    gradients = {name: jnp.zeros_like(x) for name, x in params.items()}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    moves = {name: float(x.ravel()[0]) for name, x in updates.items()}
    assert moves["cls.kernel"] == pytest.approx(-0.1)
    assert moves["cls.bias"] == moves["box.bias"] == pytest.approx(-0.2)
    assert moves["stages.conv3.0.conv1.kernel"] == pytest.approx(-0.1)
    still = {name for name, move in moves.items() if move == 0}
    assert still == {
        name for name in moves if ".norm" in name or name.startswith(("stem.", "stages.conv2."))
    }


@pytest.mark.parametrize(
    ("stage", "changes", "part"),
    [
        ("rpn", {"data.name": "voc"}, "config.data.name='voc' must be one of coco, digit_scenes"),
        ("rpn", {"data.data_dir": None}, "config.data.data_dir is not set"),
        ("rpn", {"anchors.scales": ()}, "config.anchors.scales=() must be a tuple of one or more"),
        ("rpn", {"anchors.ratios": (1.0, 0.0)}, "one or more positive numbers"),
        ("rpn", {"targets.negative_iou": 0.8}, "must be at most config.targets.positive_iou=0.7"),
        ("rpn", {"targets.positives": 257}, "at most config.targets.samples=256"),
        ("fast_rcnn", {"targets.foregrounds": 65}, "at most config.targets.samples=64"),
        ("rpn", {"data.short_side": 1001}, "must be at most config.data.long_side=1000"),
        ("rpn", {"data.data_dir": "gs://coco"}, "must be None or a local path"),
        ("fast_rcnn", {"data.proposals": ""}, "must be None or a local path"),
        ("rpn", {"targets.crowds": "no"}, "must be one of ignore, legacy"),
        ("rpn", {"proposals.test_before": 0}, "must be at least 1"),
        ("rpn", {"model.name": "resnext29_8x64d"}, "a network of ImageNet's design"),
        ("rpn", {"model.name": "resnet51"}, "config.model.name: impossible model"),
        ("rpn", {"optimizer.new_bias_rate": -1.0}, "must be at least 0"),
        ("fast_rcnn", {"data.proposals": None}, "resnext_jax.detection.proposals"),
        ("fast_rcnn", {"roi.kind": "crop"}, "must be one of pool, align"),
        ("fast_rcnn", {"detections.nms_iou": 1.5}, "must be at least 0 and at most 1"),
        ("fast_rcnn", {"finetune.frozen_stages": 6}, "must be at most 5"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(stage: str, changes: dict[str, Any], part: str) -> None:
    config = named(load(f"coco_resnet50_{stage}"))
    for name, value in changes.items():
        set_field(config, name, value)
    assert part in sentence(config)


def test_fields_of_other_tasks_are_refused() -> None:
    config = named(load("coco_resnet50_rpn"))
    with config.unlocked():
        config.data.mixup = 0.2
    assert "an unknown field 'data.mixup'" in sentence(config)
    assert "bn_group_size" not in field_names(config)


@pytest.mark.parametrize("choice", ["", "rpn", "rpn,", "mask_rcnn,resnet50"])
def test_coco_names_stage_and_network(choice: str) -> None:
    with pytest.raises(ConfigError, match="names no stage and network"):
        importlib.import_module("resnext_jax.configs.coco").get_config(choice)


def test_missing_files_are_told_before_anything_is_made(tmp_path: Path) -> None:
    config = load("coco_resnet50_rpn")
    config.data.data_dir = str(tmp_path)
    with pytest.raises(DataError, match=r"instances_train2017\.json is missing; unpack COCO"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("annotations", [[], [annotation(1, 1, 1, (2, 2, 9, 9), iscrowd=1)]])
def test_a_test_split_without_objects_is_refused(
    annotations: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Whose measure would be NaN after hours of training."""
    config = load("coco_resnet50_rpn")
    config.data.data_dir = str(tmp_path)
    whole = {"images": [image(1)], "categories": categories([1])}
    for name, found in (("train", [annotation(1, 1, 1, (2, 2, 9, 9))]), ("test", annotations)):
        config.data[f"{name}_images"] = "images"
        config.data[f"{name}_annotations"] = f"annotations/{name}.json"
        write_json(tmp_path, whole | {"annotations": found}, f"{name}.json")
    write_images(tmp_path, whole["images"])
    with pytest.raises(DataError, match=r"test\.json has no objects to score against"):
        training.open_splits(config)
