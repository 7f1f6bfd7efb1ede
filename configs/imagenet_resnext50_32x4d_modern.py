"""ResNeXt-50 32x4d on ImageNet-1K, torchvision's recipe of 2021: longer, more augmentation.

Source: https://github.com/pytorch/vision/issues/3995#new-recipe, which torchvision names as the
recipe of its second weights (ResNeXt50_32X4D_Weights.IMAGENET1K_V2), and the defaults of its
references/classification/train.py of that time, on 8 GPUs with 128 images each.
Command: python train.py --config=configs/imagenet_resnext50_32x4d_modern.py --workdir=WORKDIR
Expected: 18.802 % top-1 and 4.660 % top-5 error with the averaged weights, test images resized to
232 and cropped to 224 (torchvision's figures, pull request 4900 of that repository; not run here).
That issue's second recipe, "with FixRes mitigations", trains on crops of 176 and tests as above:
--config.data.image_size=176 --config.data.eval_image_size=224. With it torchvision had 18.884 % and
4.522 % first (pull request 4836; not run here). Repeated augmentation, which the recipe of its
ResNet-50 got later, is part of neither.
Differences from torchvision:
- the classifier's bias has no weight decay (--config.optimizer.decay_bias=True adds it);
- the learning rate changes every step, starting at 0 (theirs every epoch, from 0.005);
- mixup and CutMix are drawn per pair of neighbouring images (theirs once per GPU);
- shears keep the upper left corner (so does later torchvision; then, the centre);
- the aspect ratio of crops is drawn as in the other recipes here (theirs is log-uniform);
- running statistics are the mean of all groups of 128 images (theirs the first GPU's).
Data: python -m resnext_jax.data.prepare --dataset=imagenet2012 ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = imagenet.get_config("resnext50_32x4d")
    config.batch_size = 1024
    config.bn_group_size = 128
    config.num_epochs = 600.0

    config.optimizer.learning_rate = 0.5
    config.optimizer.base_batch_size = 1024
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-5
    config.optimizer.decay_norm = False
    config.optimizer.decay_bias = False
    config.optimizer.label_smoothing = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 5.0
    # Theirs is 0.99998, adjusted for batch size, epochs and update interval: 0.9989.
    config.ema.decay = 1 - (1 - 0.99998) * 1024 * 32 / 600
    config.ema.every_steps = 32

    config.data.interpolation = "bilinear"
    config.data.train_antialias = True
    config.data.eval_short_side = 232
    config.data.brightness = config.data.contrast = config.data.saturation = 0.0
    config.data.lighting = 0.0
    config.data.trivial_augment = True
    config.data.random_erase = 0.1
    config.data.mixup = 0.2
    config.data.cutmix = 1.0
    return config
