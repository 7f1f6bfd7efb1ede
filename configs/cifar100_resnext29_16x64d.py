"""ResNeXt-29 16x64d on CIFAR-100.

Source: paper Table 7; the recipe is in configs/cifar.py.
Command: python train.py --config=configs/cifar100_resnext29_16x64d.py --workdir=WORKDIR
Expected: 17.31 % test error, mean of 10 runs (the paper's figure, not run here).
Data: downloaded and prepared on first use (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import cifar


def get_config() -> ConfigDict:
    """Return the recipe."""
    return cifar.get_config("cifar100,resnext29_16x64d")
