"""Detectors small enough to train many times in a test, and scenes for them."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from resnext_jax.configs import digit_scenes_fast_rcnn, digit_scenes_rpn
from resnext_jax.detection.coco import read_coco
from resnext_jax.detection.proposals import store
from resnext_jax.detection.synthetic import SceneSpec, make_scenes
from resnext_jax.interop.files import write_state_dict
from resnext_jax.interop.torch import to_state_dict
from resnext_jax.models import create_model

SCENES = SceneSpec(train=12, test=5, side=64, smallest=16, largest=40, most_digits=2)
NETWORK: dict[str, Any] = {"name": "resnext14_2x4d", "stem_width": 8, "template_width": 16}
CLASSIFIER = "classifier.safetensors"
# Every so many steps of a short run a checkpoint is saved.
STEPS = 6


def small_scenes(folder: Path) -> Path:
    """Make a few scenes of 64x64, and weights of a classifier to start from beside them."""
    make_scenes(folder, SCENES)
    network = create_model(**NETWORK, num_classes=10, rngs=nnx.Rngs(7))
    write_state_dict(to_state_dict(network), folder / CLASSIFIER)
    return folder


def small_config(task: str, scenes: Path) -> ConfigDict:
    """Make a config of a short run of "rpn" or "fast_rcnn"; the latter needs `small_proposals`."""
    recipe = digit_scenes_rpn if task == "rpn" else digit_scenes_fast_rcnn
    config = recipe.get_config()
    config.model.update(NETWORK)
    config.init_from = str(scenes / CLASSIFIER)
    config.data.name = "coco"
    config.data.data_dir = str(scenes)
    for split in ("train", "test"):
        config.data[f"{split}_annotations"] = f"annotations/instances_{split}.json"
        config.data[f"{split}_images"] = split
    config.data.short_side = config.data.long_side = 64
    config.data.max_boxes = 4
    config.batch_size = config.optimizer.base_batch_size = 8
    config.images_per_epoch = 8
    config.num_epochs = float(STEPS)
    config.eval_every_epochs = float(STEPS)
    config.checkpoint_every_epochs = 1.0
    config.log_every_steps = 2
    config.finetune.frozen_stages = 2
    if task == "rpn":
        config.anchors.scales = (1.0, 2.0)
        config.proposals.width = 16
        config.proposals.train = config.proposals.test = 24
        config.proposals.min_side = 4.0
    else:
        config.data.train_proposals = config.data.test_proposals = 24
        config.data.proposals = str(scenes / "proposals")
        config.targets.samples = 8
        config.targets.foregrounds = 4
        config.roi.size = 4
    return config


def small_proposals(scenes: Path) -> None:
    """Store proposals at random, and some at the objects, beside the scenes."""
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        split = read_coco(
            scenes / "annotations" / f"instances_{name}.json", scenes / name, quiet=True
        )
        found = []
        for index in range(len(split)):
            corners = rng.uniform(0, 40, (20, 2))
            boxes = np.concatenate([corners, corners + rng.uniform(8, 24, (20, 2))], axis=1)
            near = split.ground_truth(index).boxes + rng.uniform(-2, 2, 4)
            boxes = np.concatenate([near, boxes]).clip(0, 64).astype(np.float32)
            found.append((index, boxes, np.linspace(1, 0, len(boxes), dtype=np.float32)))
        store(scenes / "proposals" / name, split, 24, found)
