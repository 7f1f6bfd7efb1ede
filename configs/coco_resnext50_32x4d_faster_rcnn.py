"""ResNeXt-50 (32x4d) on COCO, both stages as one network, in one run; beyond the paper.

Source: Ren et al. 2017 (approximate joint training), 12,000 anchors before and 2,000 proposals
after suppression as in py-faster-rcnn's end-to-end variant; batch, rate and length are those of
the paper's Fast R-CNN, anchors those of its RPN (App. B): 180,000 steps of 8 images, at a rate of
.005 and after 120,000 of .0005.
Command: python train.py --config=configs/coco_resnext50_32x4d_faster_rcnn.py --workdir=WORKDIR
--config.init_from=CLASSIFIER --config.data.data_dir=COCO
Expected: no paper has a figure for it; not run here.
"""

from ml_collections import ConfigDict

from resnext_jax.detection.config import faster_rcnn_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = faster_rcnn_config()
    config.model.name = "resnext50_32x4d"
    config.data.num_workers = 8
    return config
