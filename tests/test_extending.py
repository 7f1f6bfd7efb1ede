"""The code of docs/extending.md runs, and does what the page says."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from resnext_jax.models import complexity, create_model
from resnext_jax.models.variables import merge, split
from resnext_jax.ops.grouped_conv import grouped_conv
from tests.numerics import relative_difference
from tests.programs import run

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


SIZES: dict[str, Any] = {"stem_width": 16, "template_width": 32}


def codes() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """Return what the page's code of a block and of a lowering defines."""
    defined: dict[str, Any] = {}
    block, *_, lowering = codes()
    exec(block, defined)
    exec(lowering, defined)
    return defined


def test_a_block_is_trained_by_name_from_a_recipe(tmp_path: Path) -> None:
    block, by_name, choice, *_ = codes()
    recipe = tmp_path / "eca.py"
    recipe.write_text("".join([block, by_name, choice]))
    changes = ["--config.num_epochs=0.03", "--config.model.stem_width=4", "--config.model.form=a"]
    flags = [f"--config={recipe}", f"--workdir={tmp_path}/run", *changes]
    flags.append("--config.model.template_width=8")
    result = run("train.py", *flags, f"--config.data.data_dir={tmp_path}/data")
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["model"]["name"] == "myresnext29_8x4d"


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


def test_a_lowering_is_the_same_function(page: dict[str, Any]) -> None:
    images = jax.random.normal(jax.random.key(0), (2, 5, 6, 8))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 12))
    both = [
        grouped_conv(images, kernel, groups=4, strides=(2, 1), implementation=name)
        for name in ("by_group", "native")
    ]
    assert relative_difference(*both) < 1e-6
    model = create_model(
        "resnext11_4x4d", **SIZES, conv_implementation="by_group", rngs=nnx.Rngs(0)
    )
    block: Any = model.stages["conv2"][0]
    assert block.conv2.implementation == "by_group"


def test_a_recipe_with_optimiser_schedule_data_set_and_metric_of_its_own(tmp_path: Path) -> None:
    """In the recipe's file, which is all that is written."""
    *_, optimizer, schedule, data, metric, _ = codes()
    recipe = tmp_path / "squares.py"
    choice = """
from resnext_jax.config.fields import base_config


def get_config():
    config = base_config()
    config.model.name = "resnext11_4x4d"
    config.model.stem_width = config.model.template_width = 16
    config.optimizer.name, config.schedule.name = "lion", "quadratic"
    config.optimizer.learning_rate, config.optimizer.base_batch_size = 1e-3, 16
    config.batch_size, config.num_epochs = 16, 3.0
    config.data.name, config.data.image_size, config.data.crop = "squares", 16, "whole"
    config.data.flip = False
    return config
"""
    recipe.write_text("".join([optimizer, schedule, data, metric, choice]))
    arguments = [f"--config={recipe}", f"--workdir={tmp_path}/run"]
    arguments.append(f"--config.data.data_dir={tmp_path}/data")
    result = run("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    records = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().split("\n")[:-1]
    ]
    (*_, tested) = (record for record in records if record["split"] == "test")
    assert tested["top3_error"] == 0  # of two classes
    rates = [record["learning_rate"] for record in records if record["split"] == "train"]
    assert rates[-1] == pytest.approx(1e-3 * (1 - 11 / 12) ** 2)
    assert "--config.optimizer.b2=0.99\n" in run("train.py", "--help", arguments[0]).stdout
    evaluated = run("eval.py", *arguments, "--config.optimizer.b2=1.0")
    assert "config.optimizer.b2=1.0 must be at least 0 and less than 1" in evaluated.stderr


def test_its_cost_is_counted(page: dict[str, Any]) -> None:
    plain = complexity("resnext11_4x4d", **SIZES)
    own = complexity("resnext11_4x4d", block=page["ECA_BOTTLENECK"], **SIZES)
    channels = 32 + 64 + 128
    assert own.params - plain.params == 3 * 3
    assert own.macs - plain.macs == 3 * channels
