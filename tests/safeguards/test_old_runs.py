"""Runs made before code moved are resumed, evaluated, used and started from."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.safeguards import close
from tests.safeguards.old_runs import STORED, Runs, runs
from tests.safeguards.recipes import CLASSIFIER, DETECTOR, RPN, Recipe

_STORED = json.loads(STORED.read_text())

# What a few steps make of another machine's rounding.
assert_close = functools.partial(close.assert_close, rel=1e-3, abs=1e-4)

pytestmark = pytest.mark.slow


@pytest.fixture
def old() -> Iterator[Runs]:
    with runs() as old:
        yield old


def scores_of(old: Runs, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the test records of the step that an old run stopped at."""
    records = old.records(recipe, "metrics.jsonl")
    return [r for r in records if r["step"] == recipe.steps // 2 and r["split"] == "test"]


def test_a_classifier_is_evaluated(old: Runs) -> None:
    evaluations = old.evaluated(CLASSIFIER)["evaluations"].values()
    scored = {row["members"][0]["weights"]: row for row in evaluations}
    for expected in scores_of(old, CLASSIFIER):
        found = scored[expected["weights"]]
        assert found["members"][0]["step"] == expected["step"]
        for name in ("loss", "top1_error", "top5_error"):
            assert_close(found[name], expected[name])


def test_a_detector_is_evaluated(old: Runs) -> None:
    found = old.evaluated(DETECTOR)
    (expected,) = scores_of(old, DETECTOR)
    assert (found["step"], found["weights"]) == (expected["step"], "raw")
    for name in ("AP", "AP50", "AP75"):
        assert_close(100 * found["scores"][name], expected[name])


@pytest.mark.parametrize("recipe", [CLASSIFIER, DETECTOR], ids=["classifier", "detector"])
def test_a_run_is_resumed_to_the_end_it_would_have_had(recipe: Recipe, old: Runs) -> None:
    assert_close(old.trained(recipe), old.records(recipe, "expected.jsonl"))


def test_a_classifier_predicts(old: Runs) -> None:
    assert_close(old.predicted(), _STORED["predicted"])


def test_a_detector_finds(old: Runs) -> None:
    assert_close(old.detected(), _STORED["detected"])


def test_a_detector_starts_from_an_old_classifier(old: Runs) -> None:
    assert_close(old.trained(RPN), _STORED["started"])
