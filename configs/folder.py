"""The paper's ImageNet recipe (Sec. 4) on your own images, in one folder per class.

Source: paper Sec. 4; the recipe, its models and options are in configs/imagenet.py.
Command: python train.py --config=configs/folder.py --config.data.manual_dir=DIR --workdir=WORKDIR
DIR holds train/CLASS/ and val/CLASS/ (docs/data.md). For another model and options:
--config=configs/folder.py:resnet50 or configs/folder.py:resnext101_64x4d,crop320.
Expected: not measured; depends on your images.
"""

from ml_collections import ConfigDict

from resnext_jax.configs import imagenet


def get_config(choice: str = "resnext50_32x4d") -> ConfigDict:
    """Return the recipe for "MODEL" or "MODEL,OPTION,..."."""
    config = imagenet.get_config(choice)
    config.data.name = "folder"
    return config
