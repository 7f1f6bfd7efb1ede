"""ResNeXt-50 (32x4d) on COCO, second stage: Fast R-CNN on stored proposals (the paper's Table 8).

Source: the paper's Sec. 5.4, App. B and Table 8; see configs/coco.py. Trained on train2017 (the
paper's trainval35k), tested on val2017 (its minival), from an ImageNet-1K classifier.
Command: python train.py --config=configs/coco_resnext50_32x4d_fast_rcnn.py --workdir=WORKDIR
--config.init_from=CLASSIFIER --config.data.data_dir=COCO
--config.data.proposals=PROPOSALS
Expected: AP@.5 49.7 and AP 27.5 (the paper's figures; not run here).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import coco


def get_config() -> ConfigDict:
    """Return the recipe."""
    return coco.get_config("fast_rcnn,resnext50_32x4d")
