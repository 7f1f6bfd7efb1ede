"""RandAugment: each operation against torchvision's and timm's, and what is drawn."""

import collections

import numpy as np
import pytest

from resnext_jax.data import rand_augment
from resnext_jax.data.rand_augment import INCREASING, TORCHVISION, VARIANTS, Step
from tests.data.make_golden import (
    GOLDEN,
    SIZE,
    TIMM,
    TIMM_MAGNITUDE,
    TORCHVISION_MAGNITUDE,
    picture,
)
from tests.data.make_golden import TORCHVISION as NAMES


@pytest.mark.parametrize("variant", VARIANTS)
def test_operations_are_torchvisions_and_timms(variant: str) -> None:
    """For given draws, stored: on average within a grey level, nearly everywhere the same."""
    image = picture()
    seen = set()
    with np.load(GOLDEN) as golden:
        for key in golden.files:
            if not key.startswith(f"{variant},"):
                continue
            _, operation, sign = key.split(",")
            if variant == "torchvision":
                step = rand_augment.torchvision_step(
                    operation, TORCHVISION_MAGNITUDE, int(sign), SIZE
                )
            else:
                step = rand_augment.increasing_step(operation, TIMM_MAGNITUDE, int(sign), SIZE)
            made = rand_augment.apply(image, [step], variant)
            difference = np.abs(made.astype(int) - golden[key])
            assert difference.mean() < 0.05, key
            seen.add(operation)
    assert seen == set({"torchvision": NAMES, "increasing": TIMM}[variant].values())


def test_lists_are_theirs_in_their_order() -> None:
    assert tuple(NAMES.values()) == TORCHVISION
    assert tuple(TIMM.values()) == INCREASING


def test_two_operations_are_drawn() -> None:
    """Timm's are applied with probability 1/2 each, at magnitudes around the given one."""
    rng = np.random.default_rng(0)
    draws = [VARIANTS["increasing"].draw(rng, 7.0, 0.5, 224) for _ in range(2000)]
    counts = collections.Counter(map(len, draws))
    assert [counts[n] / 2000 for n in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    steps = [step for draw in draws for step in draw]
    assert {step.operation for step in steps} == set(INCREASING)
    degrees = np.array([step.argument for step in steps if step.operation == "rotate"])
    assert np.abs(degrees).mean() == pytest.approx(21, abs=0.5)
    assert np.abs(degrees).std() == pytest.approx(1.5, abs=0.4)
    assert (degrees > 0).mean() == pytest.approx(0.5, abs=0.15)

    draws = [VARIANTS["torchvision"].draw(rng, 9, 0.5, 224) for _ in range(500)]
    assert set(map(len, draws)) == {2}
    steps = [step for draw in draws for step in draw]
    assert {step.operation for step in steps} == set(TORCHVISION)
    assert {step for step in steps if step.operation == "rotate"} == {
        Step("rotate", 9.0),
        Step("rotate", -9.0),
    }
