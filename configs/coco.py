"""Faster R-CNN on COCO: both stages, for any network of the paper's ImageNet design.

Source: the paper's Sec. 5.4 and App. B, and what it takes from py-faster-rcnn and He et al. 2016
(docs/detection.md). Anchors, losses and schedules are in resnext_jax/detection/config.py: 180,000
steps of 16 images for the RPN, with learning rate .02, and .002 after 120,000 steps; the same
number of steps of 8 images for Fast R-CNN, with .005 and .0005. Rate and steps are scaled with
--config.batch_size.
Command: python train.py --config=configs/coco.py:rpn,resnext101_64x4d --workdir=WORKDIR
--config.init_from=CLASSIFIER --config.data.data_dir=COCO
For the second stage, fast_rcnn,... instead of rpn,..., and --config.data.proposals=PROPOSALS.
Expected: see the files of the paper's four networks; not run here.
"""

from ml_collections import ConfigDict

from resnext_jax.detection.config import fast_rcnn_config, rpn_config
from resnext_jax.errors import ConfigError

_STAGES = {"rpn": rpn_config, "fast_rcnn": fast_rcnn_config}


def get_config(stage_and_model: str = "rpn,resnext50_32x4d") -> ConfigDict:
    """Return the recipe of "rpn" or "fast_rcnn" for a network, as in `rpn,resnet50`."""
    stage, _, model = stage_and_model.partition(",")
    if stage not in _STAGES or not model:
        raise ConfigError(
            f"configs/coco.py:{stage_and_model} names no stage and network; write for example "
            "configs/coco.py:rpn,resnext50_32x4d or configs/coco.py:fast_rcnn,resnext50_32x4d."
        )
    config = _STAGES[stage]()
    config.model.name = model
    config.data.num_workers = 8
    return config
