"""Every field of a detector's configuration, and its default: the paper's Sec. 5.4 and App. B.

The two stages are a run each, with fields of `config.fields` and some of their own; both as one
network, in one run, is beyond the paper. What the papers count in steps of a batch is here in
epochs of a thousand such steps, so that another batch of B images trains at B / B0 times the rate
for B0 / B times the steps, as it should.
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

# Steps of the paper's batch that are called an epoch.
STEPS_PER_EPOCH = 1000

# Of a classifier's fields those that a detector has not: its batch norms are fixed, and its images
# are prepared in their own way.
_ABSENT = {"bn_group_size", "optimizer.label_smoothing"} | {
    name for name in FIELDS if name.startswith("data.") and name not in ("data.mean", "data.std")
}


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
        2.0, "What multiplies the rate of the new layers' biases.", NOT_NEGATIVE
    ),
    "data.name": Field(
        "coco",
        "Annotations and images of data_dir, in COCO's format; or scenes made of digits.",
        one_of("coco", "digit_scenes"),
    ),
    "data.data_dir": dataclasses.replace(
        FIELDS["data.data_dir"],
        meaning="Where the data set is; None: for the digit scenes only, which are made in "
        "runs/digit_scenes then.",
    ),
    "data.train_annotations": Field(
        "annotations/instances_train2017.json", "File in data_dir, in COCO's format."
    ),
    "data.train_images": Field("train2017", "Folder in data_dir."),
    "data.test_annotations": Field(
        "annotations/instances_val2017.json", "File in data_dir, in COCO's format."
    ),
    "data.test_images": Field("val2017", "Folder in data_dir."),
    "data.short_side": Field(600, "Images are resized to this short side, ...", AT_LEAST_ONE),
    "data.long_side": Field(1000, "... or to this long side, if less.", AT_LEAST_ONE),
    "data.flip": Field(True, "Mirror every second training image."),
    "data.keep_empty": Field(
        False, "Train on images without objects (crowds aside) too: all is background."
    ),
    "data.max_boxes": Field(
        None,
        "Places for an image's objects; None: as many as the annotations need.",
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
        (0.5, 1.0, 2.0), "Height by width of the anchors.", numbers(positive=True, least=1)
    ),
    "anchors.scales": Field(
        (4.0, 8.0, 16.0, 32.0), "Sides of the anchors, in bases.", numbers(positive=True, least=1)
    ),
    # What the RPN proposes, to train Fast R-CNN on and to test it on.
    "proposals.width": Field(512, "Channels of the RPN's head.", AT_LEAST_ONE),
    "proposals.nms_iou": Field(0.7, "Overlap above which the worse one is dropped.", AT_MOST_ONE),
    "proposals.min_side": Field(
        16.0, "Smallest side, in pixels of the image as it is stored.", NOT_NEGATIVE
    ),
    "proposals.train_before": Field(
        None,
        "In training the best so many go into suppression; None: all.",
        AT_LEAST_ONE,
        kind=int,
    ),
    "proposals.train": Field(2000, "In training so many come out of it, at most.", AT_LEAST_ONE),
    "proposals.test_before": Field(6000, "In testing the best so many go in.", AT_LEAST_ONE),
    "proposals.test": Field(300, "In testing so many come out, at most.", AT_LEAST_ONE),
    # Which anchors are learned from, see targets.RpnTargetSpec.
    "targets.samples": Field(256, "Anchors of an image that are learned from.", AT_LEAST_ONE),
    "targets.positives": Field(128, "Positive ones among them, at most.", AT_LEAST_ONE),
    "targets.positive_iou": Field(0.7, "Overlap with an object of a positive one.", AT_MOST_ONE),
    "targets.negative_iou": Field(0.3, "Below it an anchor is negative.", AT_MOST_ONE),
    "targets.crowds": Field(
        "ignore",
        "Anchors on crowds are not learned from; legacy: they are negative ones.",
        name_in("resnext_jax.detection.targets:CROWDS"),
    ),
}

# Which regions are learned from, see targets.RegionTargetSpec.
_REGIONS: dict[str, Field] = {
    "samples": Field(64, "Regions of an image that are learned from.", AT_LEAST_ONE),
    "foregrounds": Field(16, "Foreground ones among them, at most.", AT_LEAST_ONE),
    "foreground_iou": Field(0.5, "Overlap with an object of a foreground one.", AT_MOST_ONE),
    "background_iou": Field(
        0.0, "Overlap of a background one, at least (py-faster-rcnn: .1).", AT_MOST_ONE
    ),
}

_HEAD: dict[str, Field] = {
    "roi.kind": Field(
        "pool",
        "How regions are cut out of the shared map: pooled, or aligned (He et al. 2017).",
        one_of("pool", "align"),
    ),
    "roi.size": Field(14, "Side of a region's cells.", AT_LEAST_ONE),
    "roi.sampling_ratio": Field(2, "Samples of a cell along each side; align only.", AT_LEAST_ONE),
    "detections.score": Field(0.05, "Least score of a detection.", AT_MOST_ONE),
    "detections.nms_iou": Field(0.3, "Overlap above which the worse one is dropped.", AT_MOST_ONE),
    "detections.most": Field(100, "Detections of an image, at most.", AT_LEAST_ONE),
}

_FAST_RCNN: dict[str, Field] = {
    **_COMMON,
    "data.proposals": Field(
        None,
        "Folder of the proposals for both splits, of python -m resnext_jax.detection.proposals.",
        PATH,
        kind=str,
        per_host=True,
    ),
    "data.train_proposals": Field(
        2000, "Of a training image the best so many are read.", AT_LEAST_ONE
    ),
    "data.test_proposals": Field(300, "Of a test image.", AT_LEAST_ONE),
    **{f"targets.{name}": row for name, row in _REGIONS.items()},
    **_HEAD,
}

_FASTER_RCNN: dict[str, Field] = {
    **_RPN,
    # `targets` are the anchors'; these are the regions'.
    **{f"regions.{name}": row for name, row in _REGIONS.items()},
    **_HEAD,
    # Features of all four stages, see pyramid.PyramidSpec. With them anchors.base is that at
    # stride 16, twice as large at stride 32, and so on.
    "pyramid.enabled": Field(False, "Whether features of all four stages are used."),
    "pyramid.width": Field(256, "Channels of each level.", AT_LEAST_ONE),
    "pyramid.canonical_side": Field(
        224.0, "Side of the regions that level 4 is for, in pixels.", POSITIVE
    ),
    "pyramid.head_width": Field(1024, "Channels of the regions' head.", AT_LEAST_ONE),
}


def rpn_config() -> ConfigDict:
    """Return the region proposal network's run, with no model chosen."""
    config = defaults(_RPN)
    config.task = "rpn"
    _set_batch(config, 16, rate=0.02)
    return config


def fast_rcnn_config() -> ConfigDict:
    """Return Fast R-CNN's run, with no model and no proposals chosen."""
    config = defaults(_FAST_RCNN)
    config.task = "fast_rcnn"
    _set_batch(config, 8, rate=0.005)
    return config


def faster_rcnn_config(*, pyramid: bool = False) -> ConfigDict:
    """Return the run of both stages as one network, with no model chosen; beyond the paper.

    Args:
      pyramid: start from the defaults of a feature pyramid. The fields are the same.
    """
    config = defaults(_FASTER_RCNN)
    config.task = "faster_rcnn"
    # No source trains this on so many devices: batch, rate and length of the paper's Fast R-CNN,
    # the anchors of its RPN, and proposals as in the end-to-end variant of py-faster-rcnn.
    _set_batch(config, 8, rate=0.005)
    config.proposals.train_before = 12_000  # of a pyramid: on each level, as test_before
    if pyramid:
        config.pyramid.enabled = True
        _set_pyramid(config)
    return config


def _set_pyramid(config: ConfigDict) -> None:
    """Set what Lin et al. 2017 (Sec. 4 and 5.2) have, and Detectron where they do not say."""
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
