"""The table of published weights, and the sizes that others publish of the networks."""

import csv
import functools
import math
from pathlib import Path

import pytest

import resnext_jax
from resnext_jax.interop.pretrained import is_name, published
from resnext_jax.models.capacity import Complexity, complexity
from resnext_jax.models.registry import list_models, parse_name
from tests.interop.published_page import PAGE, page

SIZES = Path(__file__).parent / "golden" / "published_sizes.csv"


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == page()


def test_names_are_listed() -> None:
    names = resnext_jax.list_models(pretrained=True)
    assert "resnext50_32x4d.a1_in1k" in names
    assert "resnext101_32x8d.tv2_in1k" in names
    assert len(names) == len(set(names)) == 106
    assert resnext_jax.list_models() == list_models()
    for row in published():
        assert is_name(row["name"])
        parse_name(row["name"].partition(".")[0])
        assert 0 < float(row["crop_pct"]) <= 1
        assert row["interpolation"] in ("bicubic", "bilinear")


@functools.cache
def _complexity(name: str, image_size: int) -> Complexity:
    return complexity(name, image_size=image_size)


def _check(row: dict[str, str]) -> None:
    ours = _complexity(row["name"], int(row["image_size"]))
    if row["source"].startswith("torchvision"):
        assert ours.params == int(row["parameters"])
        assert math.isclose(ours.macs / 1e9, float(row["multiply_adds"]), abs_tol=6e-4)
        return
    assert math.isclose(ours.params / 1e6, float(row["parameters"]), abs_tol=0.0051)
    # timm's count has two for each number that a batch norm gives.
    norms = 2 * float(row["activations"]) / 1e3
    assert math.isclose(ours.macs / 1e9 + norms, float(row["multiply_adds"]), abs_tol=0.02)


def _rows() -> list[dict[str, str]]:
    with SIZES.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sizes_are_those_that_others_publish() -> None:
    rows = _rows()
    listed = {row["name"].partition(".")[0] for row in published()}
    assert {row["name"] for row in rows} >= listed
    for row in rows:
        if row["name"] in ("resnext50_32x4d", "seresnet50", "resnet18d"):
            _check(row)


@pytest.mark.slow
def test_all_sizes_are_those_that_others_publish() -> None:
    for row in _rows():
        _check(row)
