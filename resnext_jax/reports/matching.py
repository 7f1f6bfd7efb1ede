"""Rules for matching runs to the cells of the paper's tables.

A run matches a cell if these agree:

1. the network: its architecture at the paper's widths, whatever its name and block form (`resnet50`
   is `resnet50_1x64d`),
2. with or without shortcuts,
3. the data set, and
4. the test images: one centre crop of 224 (short side 256) or of 320 (short side 320), or CIFAR's
   whole image of 32. They are those of the `config.data` in its `config.json`, or those of an
   evaluation in its `eval.json` that is otherwise made in the same way.

The run must be finished: its last test was made at its last step. The error is that of this test,
or of an evaluation of that step, because the paper reports final and not best errors. Runs whose
configs differ only in the seed (and in fields that do not affect results, `fields.IMMATERIAL`) are
averaged; of several with the same seed, the first counts. Runs with another recipe than the paper's
are included, with a star and their differences below the table.
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
    """A single test crop.

    Attributes:
      size: side of the crop, in pixels.
      short_side: short side that the image is resized to before the crop; None: the whole image is
        resized to a square.
    """

    size: int
    short_side: int | None


CROP_224 = Crop(224, 256)
CROP_320 = Crop(320, 320)
WHOLE_32 = Crop(32, None)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The runs that match a cell of the paper's tables.

    Attributes:
      model: name of the network.
      data: name of the data set.
      crop: the test crop.
      residual: whether the network has shortcuts.
    """

    model: str
    data: str
    crop: Crop = CROP_224
    residual: bool = True

    def accepts(self, run: Run) -> bool:
        """Whether the run matches, finished or not."""
        return (
            run.config.data.name == self.data
            and run.config.model.residual == self.residual
            and (scored_crop(run.config) == self.crop or bool(self.tests(run)))
            and run.architecture == parse_name(self.model)
        )

    def tests(self, run: Run) -> Tests:
        """Return the run's final test records on this crop, by weights; {} if there are none."""
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
    """Return the config's test protocol with this crop, in the format of `eval.json`."""
    interpolation = config.data.eval_interpolation or config.data.interpolation
    return {
        "crops": "centre",
        "image_size": crop.size,
        "short_sides": None if crop.short_side is None else [crop.short_side],
        "interpolation": interpolation,
        "antialias": config.data.eval_antialias and interpolation != "torch7",
    }


def scored_crop(config: ConfigDict) -> Crop | None:
    """Return the test crop of a config; None for protocols of several crops."""
    data = config.data
    if data.eval_crops != "centre":
        return None
    size = data.eval_image_size or data.image_size
    return Crop(size, None if data.crop == "whole" else build.eval_short_side(config))


# The paper's recipes: Sec. 4 for ImageNet, which is `base_config`, and the differences from it.
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

# Compared by `Slot.accepts`, not as a part of the recipe.
_MATCHED_SEPARATELY = frozenset(
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
    """List the fields in which a recipe differs from the paper's, as in "num_epochs=90.0 (100.0)".

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
        if name not in _MATCHED_SEPARATELY and ours[name] != papers.get(name)
    ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace("null", "None")
