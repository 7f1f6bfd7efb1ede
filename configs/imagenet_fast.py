"""ImageNet-1K in 16 to 88 epochs, after ffcv-imagenet: small images first, linear decay of rates.

Source: github.com/libffcv/ffcv-imagenet, rn50_configs (Leclerc et al. 2022).
Command: python train.py --config=configs/imagenet_fast.py:16 --workdir=WORKDIR
Epochs, and a network if wanted: --config=configs/imagenet_fast.py:88,resnext50_32x4d
Expected, resnet50, top-1 error in percent, ffcv-imagenet's figures (not run here): 16 epochs 26.2,
24 24.4, 32 23.4, 40 22.8, 56 22.0, 88 21.6.
Differences from ffcv-imagenet, by which the expected error is higher:
- no blur pooling, and no averaging over mirrored test images;
- the side of the images goes from 160 to 192 in one step at 75 % of the epochs (theirs in a ramp
  around it, rounded to multiples of 32);
- their rate of 1.7 is used for a batch of 1024 in batch-norm groups of 128: their files do not say
  which batch, over all GPUs, it belongs to.
Data: python -m resnext_jax.data.prepare --dataset=imagenet2012 ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet
from resnext_jax.errors import ConfigError


def get_config(choice: str = "16") -> ConfigDict:
    """Return the recipe for "EPOCHS" or "EPOCHS,MODEL"."""
    epochs, _, model = choice.partition(",")
    if not epochs.isdecimal() or int(epochs) <= 2:
        raise ConfigError(
            f"configs/imagenet_fast.py:{choice} must begin with a number of epochs above 2, as in "
            "configs/imagenet_fast.py:16."
        )
    config = imagenet.get_config(model or "resnet50")
    config.batch_size = 1024
    config.bn_group_size = 128
    config.num_epochs = float(epochs)

    config.optimizer.learning_rate = 1.7
    config.optimizer.base_batch_size = 1024
    config.optimizer.nesterov = False
    config.optimizer.decay_norm = False
    config.optimizer.label_smoothing = 0.1
    config.schedule.name = "linear"
    config.schedule.warmup_epochs = 2.0

    config.data.image_size = 160
    config.data.size_epochs = (0.75 * config.num_epochs,)
    config.data.sizes = (192,)
    config.data.eval_image_size = 256
    config.data.eval_short_side = 292
    config.data.brightness = config.data.contrast = config.data.saturation = 0.0
    config.data.lighting = 0.0
    return config
