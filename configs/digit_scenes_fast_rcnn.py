"""Fast R-CNN on the digit scenes: a small version of the paper's App. B.

Source: none; recipe of the paper, with rates and schedule lengths for small images.
Command: python train.py --config=configs/digit_scenes_fast_rcnn.py --workdir=WORKDIR
--config.init_from=CLASSIFIER --config.data.proposals=PROPOSALS; make detection-demo runs all three.
Expected: AP50 of at least .35 with RoI pooling, .50 with --config.roi.kind=align (measured figures
in docs/results.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import digit_scenes
from resnext_jax.detection.config import fast_rcnn_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = fast_rcnn_config()
    digit_scenes.set_detection(config)
    config.optimizer.learning_rate = 0.02
    config.data.train_proposals = 300
    config.data.test_proposals = 100
    config.targets.samples = 32
    config.targets.foregrounds = 16
    config.roi.size = 8
    return config
