"""Which run stands where."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from resnext_jax.configs import cifar, imagenet, imagenet5k
from resnext_jax.reports.matching import (
    CROP_224,
    CROP_320,
    WHOLE_32,
    Crop,
    Slot,
    departures,
    scored_crop,
)
from resnext_jax.reports.runs import Run
from tests.reports.workdirs import changed, digits, imagenet_run

RESNET50 = Slot("resnet50", "imagenet2012")


def run(config: ConfigDict) -> Run:
    return Run("somewhere", config, 10, "", ())


@pytest.mark.parametrize(
    ("config", "slot"),
    [
        (imagenet_run(), RESNET50),
        (imagenet_run("resnet50_1x64d"), RESNET50),
        (imagenet_run(**{"model.form": "a"}), RESNET50),
        (imagenet_run(num_epochs=1.0), RESNET50),
        (imagenet_run("resnet50,no_residual"), Slot("resnet50", "imagenet2012", residual=False)),
        (imagenet_run("resnet50,crop320"), Slot("resnet50", "imagenet2012", CROP_320)),
        (imagenet5k.get_config("resnet50"), Slot("resnet50", "imagenet5k")),
        (
            cifar.get_config("cifar100,resnext29_8x64d"),
            Slot("resnext29_8x64d", "cifar100", WHOLE_32),
        ),
        (
            cifar.get_config("cifar10,wide_resnet28_10"),
            Slot("wide_resnet28_10", "cifar10", WHOLE_32),
        ),
    ],
)
def test_accepts(config: ConfigDict, slot: Slot) -> None:
    assert slot.accepts(run(config))


@pytest.mark.parametrize(
    "config",
    [
        imagenet_run("resnext50_32x4d"),
        imagenet_run("resnet50,no_residual"),
        imagenet_run("resnet50,crop320"),
        imagenet_run(**{"data.eval_crops": "ten"}),
        imagenet_run(**{"data.eval_short_side": 232}),
        imagenet_run(**{"model.template_width": 64}),
        imagenet_run(**{"model.stem_width": 32}),
        imagenet_run(**{"model.preactivation": True}),
        *(imagenet_run(**{"model.name": name}) for name in ("seresnet50", "resnet50d")),
        imagenet_run(**{"data.name": "folder"}),
        imagenet5k.get_config("resnet50"),
        digits(),
    ],
)
def test_accepts_no_other(config: ConfigDict) -> None:
    assert not RESNET50.accepts(run(config))


def test_crops() -> None:
    assert scored_crop(imagenet.get_config()) == CROP_224
    assert scored_crop(imagenet.get_config("resnet50,crop320")) == CROP_320
    assert scored_crop(cifar.get_config()) == WHOLE_32
    assert scored_crop(digits()) == Crop(16, None)
    assert scored_crop(imagenet_run(**{"data.eval_crops": "dense"})) is None


@pytest.mark.parametrize(
    "config",
    [
        imagenet.get_config(),
        imagenet.get_config("resnet200,no_residual"),
        imagenet.get_config("resnext101_64x4d,crop320"),
        imagenet5k.get_config(),
        cifar.get_config(),
        cifar.get_config("cifar100,wide_resnet28_10"),
    ],
)
def test_the_recipes_of_the_paper_depart_in_nothing(config: ConfigDict) -> None:
    """So the recipe here is that of configs/."""
    assert departures(config) == []
    assert departures(changed(config, {"seed": 5, "data.num_workers": 3})) == []


def test_departures_name_the_field_and_both_values() -> None:
    config = imagenet_run(
        num_epochs=90.0,
        **{"optimizer.clip_norm": 1.0, "schedule.name": "cosine", "model.dtype": "bfloat16"},
    )
    assert departures(config) == [
        "model.dtype=bfloat16 (float32)",
        "num_epochs=90.0 (100.0)",
        "optimizer.clip_norm=1.0 (None)",
        "schedule.name=cosine (step)",
    ]


def test_an_older_preprints_network_is_another(tmp_path: Path) -> None:
    config = cifar.get_config("cifar10,resnext29_8x64d,preact")
    assert not Slot("resnext29_8x64d", "cifar10", WHOLE_32).accepts(run(config))
