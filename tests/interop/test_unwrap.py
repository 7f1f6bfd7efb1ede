"""What trainings save around a state dict."""

from typing import Any

import pytest

from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import unwrap

WEIGHTS = {"conv1.weight": 1, "fc.bias": 2}
AVERAGE = {"conv1.weight": 3, "fc.bias": 4}


def parallel(weights: dict[str, int]) -> dict[str, int]:
    return {f"module.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "saved",
    [
        WEIGHTS,
        parallel(WEIGHTS),
        {"epoch": 1, "state_dict": WEIGHTS, "optimizer": {"lr": 1}},
        {"epoch": 1, "state_dict": parallel(WEIGHTS)},
        {"model": WEIGHTS, "model_ema": {"n_averaged": 5, **parallel(AVERAGE)}},
        {"state_dict": WEIGHTS, "state_dict_ema": AVERAGE},
        {"model_ema": WEIGHTS},
        {"model_state_dict": WEIGHTS, "epoch": 1},
        {"net": WEIGHTS, "epoch": 1},
        {"model": {"state_dict": WEIGHTS}, "args": None},
        {"teacher": WEIGHTS},
        {f"module._orig_mod.backbone.{name}": value for name, value in WEIGHTS.items()},
    ],
)
def test_weights_are_found(saved: dict[str, Any]) -> None:
    assert unwrap(saved) == WEIGHTS


@pytest.mark.parametrize(
    "saved",
    [
        {"model": WEIGHTS, "model_ema": {"n_averaged": 5, **parallel(AVERAGE)}, "epoch": 1},
        {"state_dict": WEIGHTS, "state_dict_ema": AVERAGE},
        {"student": WEIGHTS, "teacher": AVERAGE},
        {"model": WEIGHTS, "model_ema": {"state_dict": AVERAGE}},
    ],
)
def test_averages_are_found(saved: dict[str, Any]) -> None:
    assert unwrap(saved, ema=True) == AVERAGE


def test_a_prefix_of_some_names_stays() -> None:
    mixed = WEIGHTS | {"module.fc.weight": 1}
    assert unwrap(mixed) == mixed
    assert unwrap(WEIGHTS | {"n_averaged": 1}) == WEIGHTS | {"n_averaged": 1}


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([1, 2], "^FILE is no state dict but a list"),
        ({}, "it holds nothing"),
        ({"nets": WEIGHTS, "epoch": 1}, r"it holds 'nets', 'epoch'; save the weights alone"),
        ({"model": {}, "epoch": 1}, "it holds nothing"),
        ({0: 1, "a": 2}, "it holds 0, 'a'"),
    ],
)
def test_other_things_are_refused(saved: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        unwrap(saved, source="FILE")


@pytest.mark.parametrize("saved", [WEIGHTS, {"state_dict": WEIGHTS}])
def test_an_average_must_be_there(saved: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="no averaged weights"):
        unwrap(saved, ema=True)


def test_a_prefix_that_is_taken_off_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    unwrap(parallel(WEIGHTS), source="FILE")
    assert capsys.readouterr().err == "note: FILE: 'module.' is taken off all names\n"
    unwrap(WEIGHTS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("part", ["layer1", "features", "conv1"])
def test_a_part_of_a_scheme_is_no_prefix(part: str) -> None:
    names = {f"{part}.0.conv1.weight": 1, f"{part}.0.conv2.weight": 2}
    assert unwrap(names) == names
