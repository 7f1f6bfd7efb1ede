"""Faster R-CNN on the digit scenes: both stages trained jointly as one network.

Source: none; a small version of Ren et al. 2017 (approximate joint training). See
configs/digit_scenes_rpn.py and configs/digit_scenes_fast_rcnn.py for the two stages.
Command: python train.py --config=configs/digit_scenes_faster_rcnn.py --workdir=WORKDIR
--config.init_from=CLASSIFIER, the workdir of configs/digit_scenes.py.
Expected: AP50 of at least .50 (measured figures in docs/results.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import digit_scenes
from resnext_jax.detection.config import faster_rcnn_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = faster_rcnn_config()
    digit_scenes.set_detection(config)
    config.optimizer.learning_rate = 0.02
    config.anchors.scales = (2.0, 3.0, 4.0)
    config.proposals.width = 64
    set_samples(config)
    config.proposals.test_before = 1000
    config.roi.size = 8
    return config


def set_samples(config: ConfigDict) -> None:
    """Choose numbers of proposals, anchors and regions that fit the scenes."""
    config.proposals.min_side = 8.0
    config.proposals.train_before = 1000
    config.proposals.train = 300
    config.proposals.test = 100
    config.targets.samples = 64
    config.targets.positives = 32
    config.regions.samples = 32
    config.regions.foregrounds = 16
