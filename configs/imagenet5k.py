"""The paper's ImageNet-5K recipe (Sec. 5.2), for the four models of its Table 6.

Source: paper Sec. 5.2: 5,000 classes, 6.8 million images, and as many mini-batches
as ImageNet-1K training, with rate drops at the same steps.
Command: python train.py --config=configs/imagenet5k.py:resnext101_32x4d --workdir=WORKDIR
Expected, 5K-way top-1 error in percent, the paper's figures (not run here):
resnet50 45.5, resnext50_32x4d 42.3, resnet101 42.4, resnext101_32x4d 40.1.
Data: python -m resnext_jax.data.prepare --dataset=imagenet5k ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet


def get_config(model: str = "resnext50_32x4d") -> ConfigDict:
    """Return the recipe for a model name."""
    config = imagenet.get_config(model)
    config.data.name = "imagenet5k"
    # Epochs are counted in ImageNet-1K's images, so that steps are the same.
    config.images_per_epoch = 1_281_167
    # Tested on ImageNet-1K's validation images, among all classes and among theirs.
    config.data.eval_first_classes = 1000
    return config
