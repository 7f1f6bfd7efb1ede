"""ResNeXt-101 32x4d on ImageNet-1K.

Source: paper Table 3; the recipe is in configs/imagenet.py.
Command: python train.py --config=configs/imagenet_resnext101_32x4d.py --workdir=WORKDIR
Expected: 21.2 % top-1 error and 5.6 % top-5, single 224 crop (the paper's figure, not run here).
Data: python -m resnext_jax.data.prepare --dataset=imagenet2012 ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet


def get_config() -> ConfigDict:
    """Return the recipe."""
    return imagenet.get_config("resnext101_32x4d")
