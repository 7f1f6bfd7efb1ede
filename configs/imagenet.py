"""The paper's ImageNet-1K recipe (Sec. 4), for any model of its Tables 3, 4 and 5.

Source: paper Sec. 4 and the authors' published Torch code.
Command: python train.py --config=configs/imagenet.py:resnext50_4x24d --workdir=WORKDIR
Options follow the model's name: `resnext50_32x4d,no_residual` is the ablation of Sec. 5.1,
`resnext101_64x4d,crop320` tests on 320x320 crops (Table 5).
Expected, single 224 crop, top-1 error in percent, the paper's figures (not run here):
resnet50 23.9, resnext50_2x40d 23.0, resnext50_4x24d 22.6, resnext50_8x14d 22.3,
resnext50_32x4d 22.2, resnet101 22.0, resnext101_2x40d 21.7, resnext101_4x24d 21.4,
resnext101_8x14d 21.3, resnext101_32x4d 21.2, resnet200 21.7, resnet101_1x100d 21.3,
resnext101_2x64d 20.7, resnext101_64x4d 20.4. Without residual: resnet50 31.2,
resnext50_32x4d 26.1. At 320: resnet200 20.1, resnext101_64x4d 19.1.
Data: python -m resnext_jax.data.prepare --dataset=imagenet2012 ... first (docs/data.md).
"""

from ml_collections import ConfigDict

from resnext_jax.config.fields import base_config
from resnext_jax.errors import ConfigError


def get_config(choice: str = "resnext50_32x4d") -> ConfigDict:
    """Return the recipe for "MODEL" or "MODEL,OPTION,..."."""
    model, *options = choice.split(",")
    config = base_config()
    config.model.name = model
    # 256 images on 8 GPUs: each normalised over its own 32.
    config.batch_size = 256
    config.bn_group_size = 32
    config.data.name = "imagenet2012"
    config.data.num_workers = 8
    for option in options:
        if option == "no_residual":
            config.model.residual = False
        elif option == "crop320":
            config.data.eval_image_size = 320
            config.data.eval_short_side = 320
        else:
            raise ConfigError(
                f"configs/imagenet.py knows no option {option!r}; "
                "after the model's name it takes no_residual and crop320."
            )
    return config
