"""Starting from PyTorch's weights; from a run's, see test_options."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.detection.config import faster_rcnn_config, rpn_config
from resnext_jax.errors import ConfigError, UserError
from resnext_jax.interop.state_dicts import Network
from resnext_jax.interop.torch import save_weights
from resnext_jax.models import create_model
from resnext_jax.models.variables import split
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs.workdir import write_config
from resnext_jax.training import setup
from resnext_jax.training.state import TrainState
from resnext_jax.training.warm_start import warm_start
from tests.training.runs import short_run_config


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network like that of the short run, but for 1,000 classes."""
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    save_weights(other_network(), path)
    return path


def other_network() -> Network:
    return create_model(
        "resnext11_2x4d", num_classes=1000, stem_width=8, template_width=16, rngs=nnx.Rngs(7)
    )


@pytest.fixture
def config(tmp_path: Path, weights: Path) -> ConfigDict:
    config = short_run_config(tmp_path)
    config.init_from = str(weights)
    config.ema.decay = 0.9
    return config


def started(config: ConfigDict) -> tuple[TrainState, TrainState, Mesh]:
    """Return the state before and after."""
    mesh = make_mesh(2, 1, jax.devices()[:2])
    optimizer = build.build_optimizer(config, lambda step: jax.numpy.asarray(0.1))
    _, fresh = setup.build_state(config, 10, optimizer, mesh)
    return fresh, warm_start(config, fresh, mesh), mesh


def test_all_but_the_classifier_is_taken_from_a_file(config: ConfigDict) -> None:
    fresh, state, mesh = started(config)
    _, params, batch_stats = split(other_network())
    assert state.params["fc.kernel"].shape == (64, 10)
    for after, expected in ((state.params, params), (state.batch_stats, batch_stats)):
        for name, array in after.items():
            source = fresh.params if name.startswith("fc.") else expected
            assert np.array_equal(array, source[name]), name
            assert array.sharding.device_set == set(mesh.devices.flat), name
    assert state.ema is not None
    assert np.array_equal(state.ema["params"]["stem.conv.kernel"], state.params["stem.conv.kernel"])


def test_what_does_not_fit_is_one_sentence(
    config: ConfigDict, weights: Path, tmp_path: Path
) -> None:
    config.init_from = str(tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"missing\.pth"):
        started(config)
    config.init_from = str(weights)
    config.model.template_width = 32
    with pytest.raises(UserError, match=r"weights file .*other\.safetensors"):
        started(config)


@pytest.mark.parametrize("origin", [None, "runs/imagenet"])
@pytest.mark.parametrize("task", ["rpn", "faster_rcnn"])
def test_a_detector_is_nothing_to_start_from(
    task: str, origin: str | None, config: ConfigDict, tmp_path: Path
) -> None:
    """It would lack conv5 or the classifier; what it started from itself would do."""
    detector = tmp_path / "detector"
    detector.mkdir()
    stored = rpn_config() if task == "rpn" else faster_rcnn_config()
    stored.init_from = origin
    write_config(stored, detector)
    config.init_from = str(detector)
    with pytest.raises(ConfigError) as caught:
        started(config)
    hint = ", such as runs/imagenet, which that run started from" if origin else ""
    assert str(caught.value) == (
        f"config.init_from={detector} holds a detector (config.task={task!r}), and only a "
        "classifier's weights can be taken: give the workdir of one, or a file of PyTorch's "
        f"weights{hint}."
    )
