"""The code of docs/extending.md runs, and does what the page says."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resnext_jax.models import complexity
from resnext_jax.models.variables import merge, split
from tests.numerics import relative_difference

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """Return what the page's code defines."""
    defined: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code, defined)
    return defined


def test_a_block_of_one_s_own_in_two_forms(page: dict[str, Any]) -> None:
    model, branches = page["model"], page["branches"]
    assert type(branches.stages["conv3"][0]) is page["ECABottleneckA"]
    parts = split(model), split(branches)
    name = "stages.conv2.0.eca.conv.kernel"
    assert parts[0][1][name].shape == (3, 1, 1)
    np.testing.assert_array_equal(parts[0][1][name], parts[1][1][name])
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    logits, others = jax.jit(lambda images: [merge(*each)(images) for each in parts])(images)
    assert logits.shape == (2, 10)
    assert relative_difference(others, logits) < 1e-4


def test_its_cost_is_counted(page: dict[str, Any]) -> None:
    sizes = {"stem_width": 16, "template_width": 32}
    plain = complexity("resnext11_4x4d", **sizes)
    own = complexity("resnext11_4x4d", block=page["ECA_BOTTLENECK"], **sizes)
    channels = 32 + 64 + 128
    assert own.params - plain.params == 3 * 3
    assert own.macs - plain.macs == 3 * channels
