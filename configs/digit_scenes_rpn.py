"""Region proposal network on the digit scenes: a small version of the paper's App. B.

Source: none; recipe of the paper, with anchors, rates and schedule lengths for small images.
Command: python train.py --config=configs/digit_scenes_rpn.py --workdir=WORKDIR
--config.init_from=CLASSIFIER; make detection-demo runs all three.
Expected: recall@100 at IoU .5 of at least 90 % (measured figures in docs/results.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import digit_scenes
from resnext_jax.detection.config import rpn_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = rpn_config()
    digit_scenes.set_detection(config)
    config.optimizer.learning_rate = 0.02
    config.anchors.scales = (2.0, 3.0, 4.0)
    config.proposals.width = 64
    config.proposals.min_side = 8.0
    config.proposals.train = 300
    config.proposals.test_before = 1000
    config.proposals.test = 100
    config.targets.samples = 64
    config.targets.positives = 32
    return config
