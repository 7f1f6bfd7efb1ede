"""ResNeXt-29 8x64d on CIFAR-10.

Source: paper Table 7; the recipe is in configs/cifar.py.
Command: python train.py --config=configs/cifar10_resnext29_8x64d.py --workdir=WORKDIR
Expected: 3.65 % test error, mean of 10 runs (the paper's figure, not run here).
Data: downloaded and prepared on first use (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import cifar


def get_config() -> ConfigDict:
    """Return the recipe."""
    return cifar.get_config("cifar10,resnext29_8x64d")
