"""ResNeXt-50 (32x4d) on COCO, first stage: the region proposal network (the paper's Table 8).

Source: the paper's Sec. 5.4, App. B and Table 8; see configs/coco.py. Trained on train2017 (the
paper's trainval35k), tested on val2017 (its minival), from an ImageNet-1K classifier.
Command: python train.py --config=configs/coco_resnext50_32x4d_rpn.py --workdir=WORKDIR
--config.init_from=CLASSIFIER --config.data.data_dir=COCO
then: python -m resnext_jax.detection.proposals --workdir=WORKDIR --out=PROPOSALS
Expected: the proposals of which Fast R-CNN makes AP@.5 49.7 and AP 27.5
(the paper's figures; not run here).
"""

from ml_collections import ConfigDict

from resnext_jax.configs import coco


def get_config() -> ConfigDict:
    """Return the recipe."""
    return coco.get_config("rpn,resnext50_32x4d")
