"""Neither a full disk nor a kill while a checkpoint is written costs the one before it."""

import contextlib
import dataclasses
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnext_jax.errors import CheckpointError
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.training.state import TrainState
from tests.training.tiny import restore_state, save_state

KILLS = 15
_ROOT = Path(__file__).parents[2]
# What does not compress: arrays of 16 MB take some 0.1 s to save.
_PARTS, _NUMBERS = 8, 250_000


def make_state(step: int, parts: int = _PARTS, numbers: int = _NUMBERS) -> TrainState:
    """Make a state that is a function of its step."""
    noise = np.random.default_rng(step).random((parts, numbers), dtype=np.float32)
    params = {f"w{part}": jnp.asarray(noise[part]) for part in range(parts)}
    state = TrainState.create(params, {"m": jnp.ones(3)}, optax.sgd(0.1, momentum=0.9))
    return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))


def fill_the_disk(workdir: Path, limit: int) -> None:
    """Save, then save what no longer fits; runs in a process of its own."""
    checkpoints = Checkpoints(workdir, keep=1)
    save_state(checkpoints, make_state(1, numbers=20_000), {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    save_state(checkpoints, make_state(2, numbers=20_000), {})
    try:
        checkpoints.wait()
    except CheckpointError as error:
        print(error)
    checkpoints.close()
    print("closed")


def save_until_killed(workdir: Path) -> None:
    """Save again and again, and tell which steps are whole; runs in a process of its own."""
    checkpoints = Checkpoints(workdir, keep=2, keep_forever=lambda step: step % 10 == 0)
    step = checkpoints.latest_step() or 0
    states = {number: make_state(number) for number in range(step + 1, step + 41)}
    print("ready", flush=True)
    for number, state in states.items():
        save_state(checkpoints, state, {"step": number})
        if number > step + 1:
            print(number - 1, flush=True)  # was waited for


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runs.test_full_disk", *arguments],
        cwd=_ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Smaller than any file of arrays, and than any file at all.
@pytest.mark.parametrize("limit", [50_000, 10])
def test_a_full_disk_is_one_sentence_and_the_earlier_one_is_whole(
    tmp_path: Path, limit: int
) -> None:
    process = start("fill_the_disk", str(tmp_path), str(limit))
    output, errors = process.communicate(timeout=120)
    assert errors == ""
    assert process.returncode == 0
    assert output.splitlines() == [
        f"checkpoint 2 could not be written to {tmp_path}/checkpoints (File too large); raise the "
        "limit on the size of files (ulimit -f), and run the same command again: it goes on from "
        "checkpoint 1, which is intact.",
        "closed",
    ]
    assert not (tmp_path / "checkpoints" / "2").exists()
    warnings: list[str] = []
    with contextlib.closing(Checkpoints(tmp_path, warn=warnings.append)) as checkpoints:
        restored, _ = restore_state(checkpoints, make_state(0, numbers=20_000))
    assert not warnings
    expected = make_state(1, numbers=20_000)
    assert int(restored.step) == 1
    assert all((restored.params[name] == array).all() for name, array in expected.params.items())


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_newest_whole(tmp_path: Path) -> None:
    delays = random.Random(0)
    reported = 0
    like = make_state(0)
    stages = set()
    for _ in range(KILLS):
        process = start("save_until_killed", str(tmp_path))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delays.uniform(0.0, 2.0))
        process.kill()
        output, _ = process.communicate(timeout=60)
        reported = max([reported, *map(int, output.split())])

        warnings: list[str] = []
        left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        stages |= {name.partition(".")[2] for name in left}
        with contextlib.closing(Checkpoints(tmp_path, warn=warnings.append)) as checkpoints:
            step = checkpoints.latest_step()
            if step is None:
                assert reported == 0
                continue
            assert step >= reported
            restored, run = restore_state(checkpoints, like)
        assert not warnings
        assert int(restored.step) == step
        assert run == {"step": step}
        expected = make_state(step)
        for name, array in expected.params.items():
            np.testing.assert_array_equal(restored.params[name], array)
        steps = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert all(name.isdecimal() for name in steps)
        assert {str(kept) for kept in range(10, step + 1, 10)} <= steps
    assert not (tmp_path / "damaged").exists()
    # Some must have hit a save, or this shows nothing.
    assert any(stage.startswith("saving") for stage in stages)
    assert reported > KILLS


if __name__ == "__main__":
    if sys.argv[1] == "fill_the_disk":
        fill_the_disk(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        save_until_killed(Path(sys.argv[2]))
