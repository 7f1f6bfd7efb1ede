"""ImageNet-1K, procedure A2 of "ResNet strikes back": 300 epochs.

Source: Wightman, Touvron, Jégou 2021 (arXiv:2110.00476), Table 2; see configs/imagenet_a1.py, also
for the differences from timm.
Command: python train.py --config=configs/imagenet_a2.py --workdir=WORKDIR
For another network: --config=configs/imagenet_a2.py:resnext50_32x4d
Expected: 20.2 % top-1 error for resnet50 (the paper's figure, one 224 crop; not run here).
Data: python -m resnext_jax.data.prepare --dataset=imagenet2012 ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet_a1


def get_config(model: str = "resnet50") -> ConfigDict:
    """Return the recipe for a network."""
    config = imagenet_a1.get_config(model)
    config.num_epochs = 300.0
    config.optimizer.weight_decay = 0.02
    config.optimizer.label_smoothing = 0.0
    config.data.mixup = 0.1
    return config
