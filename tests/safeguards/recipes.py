"""Command lines of the tiny runs that safeguards train, relative to a folder of their own."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run.

    Attributes:
      config: file of configs/, without its ending.
      workdir: of the run.
      steps: of the whole run; a checkpoint is saved after every second.
      fields: of the config, changed.
    """

    config: str
    workdir: str
    steps: int
    fields: dict[str, object]

    def flags(self, root: Path) -> list[str]:
        """Return the flags of `--config` and its fields."""
        changes = [f"--config.{name}={value}" for name, value in self.fields.items()]
        return [f"--config={root / 'configs' / self.config}.py", *changes]

    def train(self, root: Path) -> list[str]:
        """Return the script and arguments that train it."""
        return [str(root / "train.py"), *self.flags(root), f"--workdir={self.workdir}"]


NETWORK = {"model.name": "resnext14_2x1d", "model.stem_width": 4, "model.template_width": 4}


def length(steps: int, batch_size: int) -> dict[str, object]:
    """Return the fields of a run of so many steps, tested at its middle and end."""
    return {
        "batch_size": batch_size,
        "optimizer.base_batch_size": batch_size,
        "images_per_epoch": batch_size,
        "num_epochs": float(steps),
        "eval_every_epochs": float(steps // 2),
        "checkpoint_every_epochs": 2.0,
        "log_every_steps": 1,
    }


CLASSIFIER = Recipe(
    "digits_resnext29",
    "classifier",
    4,
    {
        **NETWORK,
        **length(4, 32),
        "bn_group_size": 16,
        "ema.decay": 0.5,
        "data.data_dir": "tfds",
        "data.image_size": 32,
    },
)

_SCENES = {
    **NETWORK,
    "init_from": "classifier",
    "data.name": "coco",
    "data.data_dir": "scenes",
    "data.train_annotations": "annotations/instances_train.json",
    "data.test_annotations": "annotations/instances_test.json",
    "data.train_images": "train",
    "data.test_images": "test",
    "data.short_side": 64,
    "data.long_side": 64,
    "data.max_boxes": 4,
    "eval_batch_size": 4,
    "finetune.frozen_stages": 1,
}
_PROPOSALS = {
    "anchors.scales": "(1.0,2.0)",
    "proposals.width": 8,
    "proposals.min_side": 4.0,
    "proposals.train_before": 100,
    "proposals.train": 24,
    "proposals.test_before": 100,
    "proposals.test": 24,
    "targets.samples": 32,
    "targets.positives": 16,
}

RPN = Recipe("digit_scenes_rpn", "rpn", 4, {**_SCENES, **_PROPOSALS, **length(4, 4)})

PROPOSALS = ["-m", "resnext_jax.detection.proposals", "--workdir=rpn", "--out=proposals"]

FAST_RCNN = Recipe(
    "digit_scenes_fast_rcnn",
    "fast_rcnn",
    4,
    {
        **_SCENES,
        **length(4, 4),
        "data.proposals": "proposals",
        "data.train_proposals": 24,
        "data.test_proposals": 24,
        "targets.samples": 8,
        "targets.foregrounds": 4,
        "roi.size": 4,
    },
)

_REGIONS = {"regions.samples": 8, "regions.foregrounds": 4, "roi.size": 4}

DETECTOR = Recipe(
    "digit_scenes_faster_rcnn",
    "detector",
    4,
    {**_SCENES, **_PROPOSALS, **_REGIONS, **length(4, 4)},
)

PYRAMID = Recipe(
    "digit_scenes_fpn",
    "pyramid",
    4,
    {
        **_SCENES,
        **_PROPOSALS,
        **_REGIONS,
        **length(4, 4),
        "anchors.scales": "(2.0,)",
        "pyramid.width": 8,
        "pyramid.head_width": 16,
        "pyramid.canonical_side": 16.0,
    },
)
