"""ResNeXt-29 on scanned handwritten digits: the embedded demo, no download.

Source: none; a small network of the paper's CIFAR design (Sec. 5.3) with
quarter-width template, on scikit-learn's 1,797 digits enlarged to 16x16.
Command: python train.py --config=configs/digits_resnext29.py --workdir=/tmp/digits
Hardware and time: 2 CPU cores, see docs/results.md.
Expected: test top-1 error of at most 2.0 % (measured figures in docs/results.md).
"""

from ml_collections import ConfigDict

from resnext_jax.config.fields import base_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = base_config()
    config.model.name = "resnext29_8x4d"
    config.model.stem_width = 16
    config.model.template_width = 64

    config.batch_size = 32
    config.num_epochs = 12.0
    config.optimizer.learning_rate = 0.05
    config.optimizer.base_batch_size = 32
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"

    config.data.name = "digits"
    config.data.image_size = 16
    config.data.crop = "whole"
    config.data.eval_antialias = False  # upscaled like the training images
    config.data.brightness = config.data.contrast = config.data.saturation = 0.0
    config.data.lighting = 0.0
    config.data.flip = False  # a mirrored digit is a different symbol
    config.data.max_shift = 2
    # Mean and standard deviation of the training images.
    config.data.mean = (77.8, 77.8, 77.8)
    config.data.std = (95.9, 95.9, 95.9)
    config.log_every_steps = 45
    return config
