"""ResNeXt-50 32x4d on ImageNet-5K.

Source: paper Table 6; the recipe is in configs/imagenet5k.py.
Command: python train.py --config=configs/imagenet5k_resnext50_32x4d.py --workdir=WORKDIR
Expected: 42.3 % top-1 and 16.8 % top-5 error, 5K-way; 24.4 % and 6.6 %, 1K-way
(the paper's figures, not run here).
Data: python -m resnext_jax.data.prepare --dataset=imagenet5k ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet5k


def get_config() -> ConfigDict:
    """Return the recipe."""
    return imagenet5k.get_config("resnext50_32x4d")
