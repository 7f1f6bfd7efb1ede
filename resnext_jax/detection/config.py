"""Config fields of the detectors and their defaults: the paper's Sec. 5.4 and App. B.

Each of the two stages is trained in its own run, with fields of `config.fields` and some of its
own; joint training of both stages as one network is beyond the paper. The papers' schedules, in
steps at batch size B0, are written as epochs of a thousand such steps. A run with batch size B
therefore uses B / B0 times the learning rate for B0 / B times the steps (linear scaling).
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from resnext_jax.config.fields import FIELDS, MAY_CHANGE, TASKS, Field, Task, defaults
from resnext_jax.config.rules import (
    AT_LEAST_ONE,
    AT_MOST_ONE,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    name_in,
    numbers,
    one_of,
)

# Length of an epoch, in steps at the paper's batch size.
STEPS_PER_EPOCH = 1000

# The classifier's fields that detectors do not have: their batch norms are frozen, and they have
# their own image preprocessing.
_ABSENT = {
    "bn_group_size",
    "finetune.layer_decay",
    "optimizer.drop_path",
    "optimizer.label_smoothing",
    "optimizer.loss",
    "optimizer.target_threshold",
} | {name for name in FIELDS if name.startswith("data.") and name not in ("data.mean", "data.std")}


def _changed(values: dict[str, Any]) -> dict[str, Field]:
    return {name: dataclasses.replace(FIELDS[name], default=x) for name, x in values.items()}


_COMMON: dict[str, Field] = {
    **{name: row for name, row in FIELDS.items() if name not in _ABSENT},
    **_changed(
        {
            "finetune.frozen_norms": True,
            "finetune.frozen_stages": 2,
            "optimizer.nesterov": False,
            "eval_batch_size": 8,
            "eval_every_epochs": 60.0,
            "checkpoint_every_epochs": 5.0,
        }
    ),
    "optimizer.new_bias_rate": Field(
        2.0, "Learning-rate multiplier of the new layers' biases.", NOT_NEGATIVE
    ),
    "data.name": Field(
        "coco",
        "Data set: COCO-format annotations and images in data_dir, or generated digit scenes.",
        one_of("coco", "digit_scenes"),
    ),
    "data.data_dir": dataclasses.replace(
        FIELDS["data.data_dir"],
        meaning="Folder of the data set; None (digit scenes only): runs/digit_scenes, where the "
        "scenes are generated.",
    ),
    "data.train_annotations": Field(
        "annotations/instances_train2017.json",
        "Training annotations: a COCO-format file in data_dir.",
    ),
    "data.train_images": Field("train2017", "Training images: a folder in data_dir."),
    "data.test_annotations": Field(
        "annotations/instances_val2017.json", "Test annotations: a COCO-format file in data_dir."
    ),
    "data.test_images": Field("val2017", "Test images: a folder in data_dir."),
    "data.short_side": Field(
        600, "Short side that images are resized to, in pixels.", AT_LEAST_ONE
    ),
    "data.long_side": Field(
        1000,
        "Maximum long side, in pixels; images that would exceed it are resized to it instead.",
        AT_LEAST_ONE,
    ),
    "data.flip": Field(
        True, "Add a horizontally flipped copy of every training image to the training set."
    ),
    "data.keep_empty": Field(
        False, "Also train on images without objects other than crowds, as pure background."
    ),
    "data.max_boxes": Field(
        None,
        "Boxes per image after padding; None: the maximum in the annotations.",
        AT_LEAST_ONE,
        kind=int,
        resume=MAY_CHANGE,
    ),
    "data.num_workers": FIELDS["data.num_workers"],
}

_RPN: dict[str, Field] = {
    **_COMMON,
    "anchors.base": Field(16, "Side of an anchor of scale 1, in pixels.", AT_LEAST_ONE),
    "anchors.ratios": Field(
        (0.5, 1.0, 2.0),
        "Aspect ratios of the anchors (height / width).",
        numbers(positive=True, least=1),
    ),
    "anchors.scales": Field(
        (4.0, 8.0, 16.0, 32.0),
        "Scales of the anchors, as multiples of anchors.base.",
        numbers(positive=True, least=1),
    ),
    # The RPN's proposals, on which Fast R-CNN is trained and tested.
    "proposals.width": Field(512, "Channels of the RPN's head.", AT_LEAST_ONE),
    "proposals.nms_iou": Field(0.7, "IoU threshold of NMS.", AT_MOST_ONE),
    "proposals.min_side": Field(
        16.0, "Minimum side of a proposal, in pixels of the original image.", NOT_NEGATIVE
    ),
    "proposals.train_before": Field(
        None,
        "Top-scoring proposals kept before NMS in training; None: all.",
        AT_LEAST_ONE,
        kind=int,
    ),
    "proposals.train": Field(
        2000, "Maximum number of proposals after NMS in training.", AT_LEAST_ONE
    ),
    "proposals.test_before": Field(
        6000, "Top-scoring proposals kept before NMS in testing.", AT_LEAST_ONE
    ),
    "proposals.test": Field(300, "Maximum number of proposals after NMS in testing.", AT_LEAST_ONE),
    # Sampling of anchors for the loss, see targets.RpnTargetSpec.
    "targets.samples": Field(256, "Anchors sampled per image for the loss.", AT_LEAST_ONE),
    "targets.positives": Field(128, "Maximum number of positive anchors among them.", AT_LEAST_ONE),
    "targets.positive_iou": Field(
        0.7, "Minimum IoU of a positive anchor with an object.", AT_MOST_ONE
    ),
    "targets.negative_iou": Field(
        0.3, "Anchors below this IoU with every object are negative.", AT_MOST_ONE
    ),
    "targets.crowds": Field(
        "ignore",
        "Anchors on crowds are excluded from the loss; legacy: they are negative.",
        name_in("resnext_jax.detection.targets:CROWDS"),
    ),
}

# Sampling of regions for the loss, see targets.RegionTargetSpec.
_REGIONS: dict[str, Field] = {
    "samples": Field(64, "Regions sampled per image for the loss.", AT_LEAST_ONE),
    "foregrounds": Field(16, "Maximum number of foreground regions among them.", AT_LEAST_ONE),
    "foreground_iou": Field(0.5, "Minimum IoU of a foreground region with an object.", AT_MOST_ONE),
    "background_iou": Field(
        0.0, "Minimum IoU of a background region (py-faster-rcnn: .1).", AT_MOST_ONE
    ),
}

_HEAD: dict[str, Field] = {
    "roi.kind": Field(
        "pool",
        "Region features: RoI pooling, or RoIAlign (He et al. 2017).",
        one_of("pool", "align"),
    ),
    "roi.size": Field(14, "Output cells per side of a region.", AT_LEAST_ONE),
    "roi.sampling_ratio": Field(2, "Samples per cell along each side; align only.", AT_LEAST_ONE),
    "detections.score": Field(0.05, "Minimum score of a detection.", AT_MOST_ONE),
    "detections.nms_iou": Field(0.3, "IoU threshold of NMS.", AT_MOST_ONE),
    "detections.most": Field(100, "Maximum number of detections per image.", AT_LEAST_ONE),
}

_FAST_RCNN: dict[str, Field] = {
    **_COMMON,
    "data.proposals": Field(
        None,
        "Folder with the proposals of both splits, written by python -m "
        "resnext_jax.detection.proposals.",
        PATH,
        kind=str,
        per_host=True,
    ),
    "data.train_proposals": Field(
        2000, "Top-scoring proposals used per training image.", AT_LEAST_ONE
    ),
    "data.test_proposals": Field(300, "Top-scoring proposals used per test image.", AT_LEAST_ONE),
    **{f"targets.{name}": row for name, row in _REGIONS.items()},
    **_HEAD,
}

_FASTER_RCNN: dict[str, Field] = {
    **_RPN,
    # The anchors have `targets`, the regions these.
    **{f"regions.{name}": row for name, row in _REGIONS.items()},
    **_HEAD,
    # Feature pyramid, see pyramid.PyramidSpec. With it, anchors.base is the base at stride 16; it
    # doubles at stride 32, and so on.
    "pyramid.enabled": Field(False, "Use a feature pyramid over all four stages."),
    "pyramid.width": Field(256, "Channels of each pyramid level.", AT_LEAST_ONE),
    "pyramid.canonical_side": Field(
        224.0, "Side of the regions assigned to level 4, in pixels.", POSITIVE
    ),
    "pyramid.head_width": Field(1024, "Channels of the region head.", AT_LEAST_ONE),
}


def rpn_config() -> ConfigDict:
    """Return the config that trains a region proposal network, with no model chosen."""
    config = defaults(_RPN)
    config.task = "rpn"
    _set_batch(config, 16, rate=0.02)
    return config


def fast_rcnn_config() -> ConfigDict:
    """Return the config that trains Fast R-CNN, with no model and no proposals chosen."""
    config = defaults(_FAST_RCNN)
    config.task = "fast_rcnn"
    _set_batch(config, 8, rate=0.005)
    return config


def faster_rcnn_config(*, pyramid: bool = False) -> ConfigDict:
    """Return the config of joint training (beyond the paper), with no model chosen.

    Args:
      pyramid: use the defaults of a feature pyramid. The fields are the same.
    """
    config = defaults(_FASTER_RCNN)
    config.task = "faster_rcnn"
    # No paper gives a recipe for 8 devices: batch, rate and length are those of the paper's Fast
    # R-CNN, the anchors its RPN's, the proposals those of py-faster-rcnn's end-to-end variant.
    _set_batch(config, 8, rate=0.005)
    config.proposals.train_before = 12_000  # with a pyramid: per level, like test_before
    if pyramid:
        config.pyramid.enabled = True
        _set_pyramid(config)
    return config


def _set_pyramid(config: ConfigDict) -> None:
    """Set the values of Lin et al. 2017 (Sec. 4 and 5.2), or Detectron's where they give none."""
    _set_batch(config, 16, rate=0.02)
    # Detectron's schedule of 90,000 steps.
    config.num_epochs = 90.0
    config.schedule.boundaries = (60.0, 80.0)
    config.schedule.warmup_epochs = 0.5
    config.eval_every_epochs = 30.0
    # Squares of 32 pixels on P2, to 512 on P6.
    config.anchors.scales = (8.0,)
    config.proposals.train_before = config.proposals.train = 2000
    config.proposals.test_before = config.proposals.test = 1000
    config.proposals.min_side = 0.0
    config.proposals.width = 256
    config.regions.samples = 512
    config.regions.foregrounds = 128
    config.roi.kind = "align"
    config.roi.size = 7
    config.detections.nms_iou = 0.5
    config.data.short_side = 800
    config.data.long_side = 1333


def _set_batch(config: ConfigDict, batch_size: int, *, rate: float) -> None:
    config.batch_size = config.optimizer.base_batch_size = batch_size
    config.optimizer.learning_rate = rate
    config.images_per_epoch = STEPS_PER_EPOCH * batch_size
    config.num_epochs = 180.0
    config.schedule.boundaries = (120.0,)


TASKS.update(
    rpn=Task(_RPN, rpn_config),
    fast_rcnn=Task(_FAST_RCNN, fast_rcnn_config),
    faster_rcnn=Task(_FASTER_RCNN, faster_rcnn_config),
)
