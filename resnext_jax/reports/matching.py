"""Which run stands in which place of the paper's tables: the rule.

A run stands where the paper has a figure for

1. its network: the architecture, whatever the name and the block form (`resnet50` is
   `resnet50_1x64d`), at the paper's widths,
2. with or without shortcuts, as there,
3. its data set, and
4. its test: one centre crop of 224 (short side 256) or of 320 (short side 320), or CIFAR's whole
   image of 32, by the `config.data` of its `config.json`; or an evaluation on such a crop,
   otherwise made as that test, in its `eval.json`,

if it is finished: its last test was made at its last step. That test counts, or an evaluation of
that step, as the paper reports the errors at the end, and not the best one. Runs whose configs
differ in nothing but the seed (and in fields that change no result, `workdir.IMMATERIAL`) are
averaged; the first of several with the same seed counts. A recipe other than the paper's keeps no
run out, but its figure has a star, and what differs is named below the table.
"""

import dataclasses
import json
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.fields import base_config, set_field
from resnext_jax.models.registry import parse_name
from resnext_jax.reports.runs import Run, Tests, settings


class Crop(NamedTuple):
    """What of a test image is scored, in one piece.

    Attributes:
      size: side, in pixels.
      short_side: of the image the crop is cut from; None where the whole image is made square.
    """

    size: int
    short_side: int | None


CROP_224 = Crop(224, 256)
CROP_320 = Crop(320, 320)
WHOLE_32 = Crop(32, None)


@dataclasses.dataclass(frozen=True)
class Place:
    """What a run must be to stand beside a figure of the paper.

    Attributes:
      model: name of the network.
      data: name of the data set.
      crop: the test images.
      residual: whether it has shortcuts.
    """

    model: str
    data: str
    crop: Crop = CROP_224
    residual: bool = True

    def takes(self, run: Run) -> bool:
        """Whether the run is of this kind; finished or not."""
        return (
            run.config.data.name == self.data
            and run.config.model.residual == self.residual
            and (scored_crop(run.config) == self.crop or bool(self.tests(run)))
            and run.architecture == parse_name(self.model)
        )

    def tests(self, run: Run) -> Tests:
        """Return the records of the run's end on this crop, by weights; {} where there is none."""
        if scored_crop(run.config) == self.crop:
            return run.last_test
        found = {}
        for evaluation in run.evaluations:
            member, *others = evaluation["members"]
            end = run.last_test.get(member["weights"], {}).get("step")
            data = evaluation["data"]
            if (
                not others
                and evaluation["protocol"] == _protocol(run.config, self.crop)
                and (data["name"], data["version"]) == (run.config.data.name, run.data_version)
                and member["step"] == end
            ):
                found[str(member["weights"])] = evaluation
        return found


def _protocol(config: ConfigDict, crop: Crop) -> dict[str, Any]:
    """Return the protocol of testing as a config says, but on this crop; as `eval.json` has it."""
    interpolation = config.data.eval_interpolation or config.data.interpolation
    return {
        "crops": "centre",
        "image_size": crop.size,
        "short_sides": None if crop.short_side is None else [crop.short_side],
        "interpolation": interpolation,
        "antialias": config.data.eval_antialias and interpolation != "torch7",
    }


def scored_crop(config: ConfigDict) -> Crop | None:
    """Return what of a test image a run scores; None where that is several pieces."""
    data = config.data
    if data.eval_crops != "centre":
        return None
    size = data.eval_image_size or data.image_size
    return Crop(size, None if data.crop == "whole" else build.eval_short_side(config))


# The paper's recipe: Sec. 4 for ImageNet, which is `base_config`, and what differs elsewhere.
_CIFAR: dict[str, Any] = {
    "batch_size": 128,
    "bn_group_size": 16,
    "num_epochs": 300.0,
    "optimizer.base_batch_size": 128,
    "optimizer.weight_decay": 5e-4,
    "schedule.boundaries": (150.0, 225.0),
    "data.image_size": 32,
    "data.crop": "whole",
    "data.brightness": 0.0,
    "data.contrast": 0.0,
    "data.saturation": 0.0,
    "data.lighting": 0.0,
    "data.max_shift": 4,
    "data.mean": (125.3, 123.0, 113.9),
    "data.std": (63.0, 62.1, 66.7),
}
_RECIPES: dict[str, dict[str, Any]] = {
    "imagenet2012": {"bn_group_size": 32},
    "imagenet5k": {"bn_group_size": 32, "images_per_epoch": 1_281_167},
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
}

# The rule looks at these itself.
_OF_THE_PLACE = frozenset(
    {
        "model.name",
        "model.preactivation",
        "model.residual",
        "model.stem_width",
        "model.template_width",
        "data.name",
        "data.eval_crops",
        "data.eval_image_size",
        "data.eval_short_side",
    }
)


def departures(config: ConfigDict) -> list[str]:
    """List what of a run's recipe is not the paper's, as in "num_epochs=90.0 (100.0)".

    Raises:
      KeyError: the paper has no recipe for this data set.
    """
    recipe = base_config()
    for name, value in _RECIPES[config.data.name].items():
        set_field(recipe, name, value)
    papers, ours = settings(recipe), settings(config)
    return [
        f"{name}={_shown(ours[name])} ({_shown(papers.get(name))})"
        for name in ours
        if name not in _OF_THE_PLACE and ours[name] != papers.get(name)
    ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace("null", "None")
