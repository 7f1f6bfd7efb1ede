"""Faster R-CNN with a feature pyramid on the digit scenes, trained jointly.

Source: none; a small version of Lin et al. 2017 (feature pyramid networks): anchors have half
their sides, and the canonical side of regions is 64.
Command: python train.py --config=configs/digit_scenes_fpn.py --workdir=WORKDIR
--config.init_from=CLASSIFIER, the workdir of configs/digit_scenes.py.
Expected: AP50 of at least .50 (measured figures in docs/results.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import digit_scenes, digit_scenes_faster_rcnn
from resnext_jax.detection.config import faster_rcnn_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = faster_rcnn_config(pyramid=True)
    digit_scenes.set_detection(config)
    config.schedule.warmup_epochs = 0.5
    config.optimizer.learning_rate = 0.02
    config.anchors.scales = (4.0,)
    digit_scenes_faster_rcnn.set_samples(config)
    config.proposals.train_before = config.proposals.test_before = 300
    config.detections.nms_iou = 0.3
    config.proposals.width = 64
    config.pyramid.width = 64
    config.pyramid.canonical_side = 64.0
    config.pyramid.head_width = 128
    return config
