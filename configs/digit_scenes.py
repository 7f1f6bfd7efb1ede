"""The digit scenes: settings shared by the three runs, and the classifier.

Scenes of 128x128 with one to four handwritten digits (see resnext_jax.detection.synthetic), and a
network of the paper's ImageNet design with one block per stage and a quarter of the widths. This
config is the first of the three runs: a classifier of the same digits, which initialises the two
detection stages.

Source: none.
Command: python train.py --config=configs/digit_scenes.py --workdir=WORKDIR
make detection-demo runs all three.
Expected: measured figures in docs/results.md.
"""

from ml_collections import ConfigDict

from resnext_jax.configs import digits_resnext29

MEAN, STD = (77.8, 77.8, 77.8), (95.9, 95.9, 95.9)


def get_config() -> ConfigDict:
    """Return the classifier's recipe."""
    config = digits_resnext29.get_config()
    set_model(config)
    config.data.image_size = 64
    config.data.max_shift = 8
    config.num_epochs = 8.0
    return config


def set_model(config: ConfigDict) -> None:
    """Choose the small network."""
    config.model.name = "resnext14_8x4d"
    config.model.stem_width = 16
    config.model.template_width = 64


def set_detection(config: ConfigDict) -> None:
    """Choose the scenes, the small network, and a short run."""
    set_model(config)
    config.data.name = "digit_scenes"
    config.data.short_side = config.data.long_side = 128
    config.data.flip = False  # a mirrored digit is a different symbol
    config.data.mean, config.data.std = MEAN, STD
    config.finetune.frozen_stages = 0
    config.batch_size = config.optimizer.base_batch_size = 8
    config.images_per_epoch = 512
    config.num_epochs = 10.0
    config.schedule.name = "cosine"
    config.eval_batch_size = 16
    config.eval_every_epochs = 10.0
    config.checkpoint_every_epochs = 5.0
    config.log_every_steps = 32
