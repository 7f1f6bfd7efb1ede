"""The demo: a detector trained on scenes of digits, as `make detection-demo` trains it."""

import json
from pathlib import Path

import jax
import pytest

from resnext_jax.configs import digit_scenes_fast_rcnn
from resnext_jax.detection import training
from resnext_jax.detection.detector import Detector
from resnext_jax.detection.evaluate import coco_metrics
from resnext_jax.detection.proposals import StoredProposals
from resnext_jax.detection.setup import open_split
from resnext_jax.detection.testing import find_objects
from tests.programs import run

pytestmark = pytest.mark.slow


def succeed(*arguments: str) -> None:
    process = run(*arguments, timeout=900)
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifier, RPN and proposals."""
    folder = tmp_path_factory.mktemp("demo")
    data = f"--config.data.data_dir={folder}"
    succeed("train.py", "--config=configs/digit_scenes.py", data, f"--workdir={folder}/classifier")
    succeed(
        "train.py",
        "--config=configs/digit_scenes_rpn.py",
        f"--config.data.data_dir={folder}/scenes",
        f"--config.init_from={folder}/classifier",
        f"--workdir={folder}/rpn",
    )
    succeed(
        "-m",
        "resnext_jax.detection.proposals",
        f"--workdir={folder}/rpn",
        f"--out={folder}/proposals",
    )
    return folder


def fast_rcnn_flags(folder: Path) -> list[str]:
    return [
        "--config=configs/digit_scenes_fast_rcnn.py",
        f"--config.data.data_dir={folder}/scenes",
        f"--config.data.proposals={folder}/proposals",
    ]


def test_the_rpn_covers_the_objects(folder: Path) -> None:
    succeed(
        "eval.py",
        "--config=configs/digit_scenes_rpn.py",
        f"--config.data.data_dir={folder}/scenes",
        f"--workdir={folder}/rpn",
    )
    scores = json.loads((folder / "rpn" / "detection_scores.json").read_text())["scores"]
    assert scores["recall100"] >= 90


def test_before_training_nothing_is_found(folder: Path) -> None:
    config = digit_scenes_fast_rcnn.get_config()
    config.data.data_dir = str(folder / "scenes")
    config.data.proposals = str(folder / "proposals")
    task, state = training.prepare(config, training.training_mesh(config))
    split = open_split(config, "test")
    rows = find_objects(
        Detector(config, task.graphdef, task.mesh),
        split,
        jax.device_get((state.params, state.batch_stats)),
        proposals=StoredProposals(folder / "proposals", "test", split),
    )
    assert coco_metrics(split, rows)["AP50"] <= 0.05


@pytest.mark.parametrize(("kind", "least"), [("pool", 0.35), ("align", 0.50)])
def test_fast_rcnn_finds_them(folder: Path, kind: str, least: float) -> None:
    workdir = folder / kind
    flags = [*fast_rcnn_flags(folder), f"--config.roi.kind={kind}", f"--workdir={workdir}"]
    succeed("train.py", *flags, f"--config.init_from={folder}/classifier")
    succeed("eval.py", *flags)
    scores = json.loads((workdir / "detection_scores.json").read_text())["scores"]
    assert scores["AP50"] >= least
    assert json.loads((workdir / "detections_test.json").read_text())
