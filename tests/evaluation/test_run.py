"""Evaluation by eval.py, from a checkpoint to the line that it prints."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import digits_resnext29
from resnext_jax.data.sources import open_split
from resnext_jax.errors import CheckpointError, ConfigError
from resnext_jax.evaluation.run import Evaluation, evaluate_workdir
from resnext_jax.training import setup
from resnext_jax.training.checkpoint import Checkpoints
from resnext_jax.training.mesh import make_mesh

ROOT = Path(__file__).parent.parent.parent
CHANGES = {
    "model.name": "resnext11_2x4d",
    "model.stem_width": 8,
    "model.template_width": 16,
    "data.image_size": 8,
    "data.crop": "random_sized",
}


@pytest.fixture(scope="module")
def config(data_dir: Path) -> ConfigDict:
    """Digits in crops, as they would be trained on with random sized ones."""
    config = digits_resnext29.get_config()
    config.update_from_flattened_dict(CHANGES)
    config.data.data_dir = str(data_dir)
    open_split(config, "test")  # preparing would print its progress
    return config


@pytest.fixture(scope="module")
def workdir(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that has learned nothing."""
    optimizer = setup.build_optimizer(config, lambda step: jnp.asarray(0.1))
    _, state = setup.build_state(config, 10, optimizer, make_mesh(8, None))
    folder = tmp_path_factory.mktemp("run")
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(state, {})
    return folder


@pytest.mark.parametrize(
    ("crops", "protocol"),
    [
        ("centre", ""),
        ("ten", " in ten crops each, logits averaged"),
        ("dense", " at five scales each, logits averaged over positions and scales"),
    ],
)
def test_eval_says_how_it_tests(
    config: ConfigDict, workdir: Path, crops: str, protocol: str
) -> None:
    fields = CHANGES | {"data.data_dir": config.data.data_dir, "data.eval_crops": crops}
    result = subprocess.run(
        [
            *(sys.executable, "eval.py", "--config=configs/digits_resnext29.py"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
            f"--workdir={workdir}",
        ],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    number = r"\d+\.\d+"
    line = (
        f"step 0: 359 test images{protocol}, loss {number}, "
        f"top-1 error {number} %, top-5 error {number} %\n"
    )
    assert re.fullmatch(line, result.stdout), result.stdout


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("7", "there is no checkpoint .*7; the steps that have one: 0"),
        ("newest", "'newest' must be latest, best or a step"),
        ("best", "best.json is missing"),
    ],
)
def test_a_checkpoint_that_is_not_there(
    config: ConfigDict, workdir: Path, checkpoint: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        evaluate_workdir(config, workdir, checkpoint)


@pytest.mark.parametrize("crops", ["centre", "ten", "dense"])
def test_more_first_classes_than_there_are(config: ConfigDict, crops: str) -> None:
    changed = config.copy_and_resolve_references()
    changed.data.eval_crops, changed.data.eval_first_classes = crops, 11
    with pytest.raises(ConfigError, match="=11 is more than the 10 classes of 'digits'"):
        Evaluation(changed, open_split(config, "test"), None, make_mesh(8, None))
