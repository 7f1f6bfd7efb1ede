"""ImageNet-1K, procedure A3 of "ResNet strikes back": 100 epochs at 160 pixels.

Source: Wightman, Touvron, Jégou 2021 (arXiv:2110.00476), Table 2; see configs/imagenet_a1.py, also
for the differences from timm.
Command: python train.py --config=configs/imagenet_a3.py --workdir=WORKDIR
For another network: --config=configs/imagenet_a3.py:resnext50_32x4d
Expected: 21.9 % top-1 error for resnet50 (the paper's figure, one 224 crop; not run here).
Data: python -m resnext_jax.data.prepare --dataset=imagenet2012 ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet_a2


def get_config(model: str = "resnet50") -> ConfigDict:
    """Return the recipe for a network."""
    config = imagenet_a2.get_config(model)
    config.num_epochs = 100.0
    config.optimizer.learning_rate = 8e-3
    config.optimizer.drop_path = 0.0
    config.data.image_size = 160
    config.data.eval_image_size = 224
    config.data.rand_augment_magnitude = 6.0
    config.data.repeats = 1
    return config
