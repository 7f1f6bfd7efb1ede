"""ImageNet-1K, procedure A1 of "ResNet strikes back": 600 epochs, LAMB, binary cross-entropy.

Source: Wightman, Touvron, Jégou 2021 (arXiv:2110.00476), Table 2, and the defaults of timm, in
which it was trained, on 4 GPUs with 512 images each.
Command: python train.py --config=configs/imagenet_a1.py --workdir=WORKDIR
For another network: --config=configs/imagenet_a1.py:resnext50_32x4d
Expected: 19.6 % top-1 error for resnet50 (the paper's figure, one 224 crop; not run here).
Differences from timm:
- the learning rate starts at 0 (theirs at 1e-6), and changes every step (theirs every epoch);
- mixup and CutMix are drawn per pair of neighbouring images (theirs once per GPU);
- the aspect ratio of crops is drawn as in the other recipes here (theirs is log-uniform);
- running statistics are the mean of all groups of 512 images.
Data: python -m resnext_jax.data.prepare --dataset=imagenet2012 ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet


def get_config(model: str = "resnet50") -> ConfigDict:
    """Return the recipe for a network."""
    config = imagenet.get_config(model)
    config.batch_size = 2048
    config.bn_group_size = 512
    config.num_epochs = 600.0

    config.optimizer.name = "lamb"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.base_batch_size = 2048
    config.optimizer.eps = 1e-6
    config.optimizer.clip_norm = 1.0  # inside of timm's LAMB
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_norm = False
    config.optimizer.decay_bias = False
    config.optimizer.loss = "bce"
    config.optimizer.target_threshold = 0.2
    config.optimizer.label_smoothing = 0.1
    config.optimizer.drop_path = 0.05
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 5.0

    config.data.train_antialias = True
    config.data.eval_short_side = 235  # a crop of 95 %
    config.data.brightness = config.data.contrast = config.data.saturation = 0.0
    config.data.lighting = 0.0
    config.data.rand_augment = "increasing"
    config.data.rand_augment_magnitude = 7.0
    config.data.rand_augment_std = 0.5
    config.data.repeats = 3
    config.data.mixup = 0.2
    config.data.cutmix = 1.0
    return config
