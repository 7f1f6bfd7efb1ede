"""Checkpoints give back what was saved, and say so when they cannot."""

from pathlib import Path

import jax
import numpy as np
import pytest

from resnext_jax.errors import CheckpointError
from resnext_jax.models.variables import split
from resnext_jax.training.checkpoint import Checkpoints
from resnext_jax.training.mesh import replicated_sharding
from resnext_jax.training.state import TrainState
from tests.training.tiny import TinyRun, tiny_model


def state_at(step: int, run: TinyRun) -> TrainState:
    """Make a state whose every array is recognisably of that step."""
    moved = jax.tree.map(lambda array: array + step, run.state)
    return jax.device_put(moved, replicated_sharding(run.mesh))


def saved(workdir: Path, run: TinyRun, *steps: int, keep: int = 3) -> None:
    checkpoints = Checkpoints(workdir, keep=keep)
    for step in steps:
        checkpoints.save(state_at(step, run))
    checkpoints.close()


@pytest.fixture(scope="module")
def run() -> TinyRun:
    return TinyRun(1, None, dtype="float32")


def test_gives_back_every_array_bit_for_bit(tmp_path: Path, run: TinyRun) -> None:
    saved(tmp_path, run, 3, 7)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 7
    restored = checkpoints.restore(run.state)
    checkpoints.close()
    assert int(restored.step) == 7
    same = jax.tree.map(lambda a, b: bool((a == b).all()), restored, state_at(7, run))
    assert all(jax.tree.leaves(same))
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(run.state))


def test_restores_onto_other_devices(tmp_path: Path, run: TinyRun) -> None:
    saved(tmp_path, run, 3)
    eight = TinyRun(8, None, dtype="float32")
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(eight.state)
    checkpoints.close()
    kernel = restored.params["fc.kernel"]
    assert len(kernel.sharding.device_set) == 8
    np.testing.assert_array_equal(kernel, state_at(3, run).params["fc.kernel"])


def test_restores_weights_alone(tmp_path: Path, run: TinyRun) -> None:
    saved(tmp_path, run, 3)
    sharding = replicated_sharding(run.mesh)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (run.state.params, run.state.batch_stats),
    )
    checkpoints = Checkpoints(tmp_path, read_only=True)
    params, batch_stats = checkpoints.restore_weights(*shapes)
    checkpoints.close()
    expected = state_at(3, run)
    assert all((params[name] == array).all() for name, array in expected.params.items())
    assert all((batch_stats[name] == array).all() for name, array in expected.batch_stats.items())


def test_keeps_the_last_few(tmp_path: Path, run: TinyRun) -> None:
    saved(tmp_path, run, 1, 2, 3, 4, keep=2)
    left = {folder.name for folder in (tmp_path / "checkpoints").iterdir() if folder.is_dir()}
    assert left == {"3", "4"}


def test_no_checkpoint_is_one_sentence(tmp_path: Path, run: TinyRun) -> None:
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; train first"):
        checkpoints.restore(run.state)


def test_another_model_is_one_sentence(tmp_path: Path, run: TinyRun) -> None:
    saved(tmp_path, run, 3)
    _, params, batch_stats = split(tiny_model("float32", None))
    params = jax.device_put(params, replicated_sharding(run.mesh))
    params["extra"] = params.pop("fc.bias")
    params["fc.kernel"] = params["fc.kernel"][:, :3]
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore_weights(params, batch_stats)
    message = str(caught.value)
    assert "1 arrays missing (such as params.extra)" in message
    assert "1 arrays unexpected (such as params.fc.bias)" in message
    assert "1 arrays of another shape (such as params.fc.kernel)" in message
    assert "\n" not in message


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, run: TinyRun) -> None:
    saved(tmp_path, run, 3)
    folder = tmp_path / "checkpoints" / "3"
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint .*/3 cannot be read") as caught:
        checkpoints.restore(run.state)
    assert "\n" not in str(caught.value)
