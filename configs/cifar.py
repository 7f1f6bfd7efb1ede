"""The paper's CIFAR recipe (Sec. 5.3, Appendix A), for any model of its Table 7 and Figure 7.

Source: paper Sec. 5.3 and Appendix A. (The authors' published code divides the rate at
epochs 148 and 223: --config.schedule.boundaries='(148.0,223.0)'.)
Command: python train.py --config=configs/cifar.py:cifar100,resnext29_16x64d --workdir=WORKDIR
Figure 7's series are resnext29_{C}x64d (cardinality) and resnet29_1x{W}d (width). The option
`preact` (cifar10,resnext29_8x64d,preact) gives an older preprint's pre-activation blocks and
batch of 256.
Expected, test error in percent, mean of 10 runs, the paper's figures (not run here):
resnext29_8x64d 3.65 (CIFAR-10) and 17.77 (CIFAR-100), resnext29_16x64d 3.58 and 17.31,
wide_resnet28_10 4.17 and 20.50.
Data: downloaded and prepared on first use (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.config.fields import base_config
from resnext_jax.errors import ConfigError


def get_config(choice: str = "cifar10,resnext29_8x64d") -> ConfigDict:
    """Return the recipe for "DATASET,MODEL" or "DATASET,MODEL,preact"."""
    dataset, _, rest = choice.partition(",")
    model, *options = rest.split(",")
    if dataset not in ("cifar10", "cifar100") or not model or options not in ([], ["preact"]):
        raise ConfigError(
            "configs/cifar.py takes cifar10 or cifar100, a model, and perhaps preact, as in "
            f"configs/cifar.py:cifar10,resnext29_8x64d; got {choice!r}."
        )
    config = base_config()
    config.model.name = model
    # 128 images on 8 GPUs: each normalised over its own 16.
    config.batch_size = 128
    config.bn_group_size = 16
    config.num_epochs = 300.0
    config.optimizer.base_batch_size = 128
    if options:
        config.model.preactivation = True
        config.batch_size = 256
        config.bn_group_size = 32
        config.optimizer.base_batch_size = 256
    config.optimizer.weight_decay = 5e-4
    config.schedule.boundaries = (150.0, 225.0)
    config.data.name = dataset
    config.data.image_size = 32
    config.data.crop = "whole"
    config.data.brightness = config.data.contrast = config.data.saturation = 0.0
    config.data.lighting = 0.0
    config.data.max_shift = 4
    config.data.mean = (125.3, 123.0, 113.9)
    config.data.std = (63.0, 62.1, 66.7)
    return config
