"""ResNet-50 on ImageNet-1K, the counterpart of ResNeXt-50.

Source: paper Table 3; the recipe is in configs/imagenet.py.
Command: python train.py --config=configs/imagenet_resnet50.py --workdir=WORKDIR
Expected: 23.9 % top-1 error, single 224 crop (the paper's figure, not run here).
Data: python -m resnext_jax.data.prepare --dataset=imagenet2012 ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet


def get_config() -> ConfigDict:
    """Return the recipe."""
    return imagenet.get_config("resnet50")
