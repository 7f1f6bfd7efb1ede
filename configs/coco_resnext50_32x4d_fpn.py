"""ResNeXt-50 (32x4d) on COCO, both stages as one network on a feature pyramid; beyond the paper.

Source: Lin et al. 2017 (feature pyramid networks), and Detectron's schedule: 90,000 steps of 16
images with a short side of 800, at a rate of .02, after 60,000 of .002, after 80,000 of .0002.
Unlike there, only anchors wholly inside an image are trained, as in the other recipes here.
Command: python train.py --config=configs/coco_resnext50_32x4d_fpn.py --workdir=WORKDIR
--config.init_from=CLASSIFIER --config.data.data_dir=COCO
Expected: the paper has no figure for it; not run here.
"""

from ml_collections import ConfigDict

from resnext_jax.detection.config import faster_rcnn_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = faster_rcnn_config(pyramid=True)
    config.model.name = "resnext50_32x4d"
    config.data.num_workers = 8
    return config
