"""A run that is killed again and again ends as one that was left alone, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from resnext_jax.data.sources import open_source
from resnext_jax.runs.log import read_metrics
from tests.programs import ROOT
from tests.training.runs import SHORT_RUN_FLAGS, stored_arrays, stored_steps, without_timings

KILLS = 20


def environment(cache: Path) -> dict[str, str]:
    """One device, and compiled programs kept: what is repeated here is not compiling."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(flags: list[str], cache: Path, output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "train.py", *flags],
            cwd=ROOT,
            env=environment(cache),
            stdout=file,
            stderr=file,
        )


def wait_until(
    process: subprocess.Popen[bytes], condition: str, place: Path, seconds: float
) -> bool:
    """Wait for text in a file, or for a name in a folder; tell whether it came."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if place.is_dir():
            if any(condition in path.name for path in place.iterdir()):
                return True
        elif place.exists() and condition in place.read_text():
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
def test_twenty_kills_change_nothing(data_dir: Path, tmp_path: Path) -> None:
    """In the middle of steps, of saving, of starting: wherever they fall."""
    open_source("digits", "train", str(data_dir))
    flags = [
        *SHORT_RUN_FLAGS,
        f"--config.data.data_dir={data_dir}",
        "--config.num_epochs=80.0",  # longer than all lives together, however fast the machine
        "--config.eval_every_epochs=10.0",
        "--config.checkpoint_every_steps=4",
        "--config.ema.decay=0.9",
    ]
    cache, killed, whole = (tmp_path / name for name in ("cache", "killed", "whole"))
    output = tmp_path / "whole.txt"
    assert start([*flags, f"--workdir={whole}"], cache, output).wait(600) == 0, output.read_text()

    rng = np.random.default_rng(6)
    flags = [*flags, f"--workdir={killed}"]
    moments: Counter[str] = Counter()
    for number in range(KILLS):
        output = tmp_path / f"{number}.txt"
        process = start(flags, cache, output)
        moment = ("starting", "training", "saving")[number % 3]
        if moment == "starting":
            time.sleep(rng.uniform(0.5, 12.0))
        else:
            assert wait_until(process, "learning rate", output, 120), output.read_text()
            time.sleep(rng.uniform(0.0, 2.0))
            if moment == "saving":
                wait_until(process, ".saving", killed / "checkpoints", 20)
        if process.poll() is None:
            moments[moment] += 1
            process.send_signal(signal.SIGKILL)
        process.wait()
    assert sum(moments.values()) == KILLS, moments
    output = tmp_path / "last.txt"
    assert start(flags, cache, output).wait(600) == 0, output.read_text()
    assert "resuming after step" in output.read_text()

    arrays, expected = stored_arrays(killed), stored_arrays(whole)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    assert without_timings(read_metrics(killed)) == without_timings(read_metrics(whole))


@pytest.mark.slow
def test_worker_processes_do_not_outlive_a_run_that_is_killed(
    data_dir: Path, tmp_path: Path
) -> None:
    open_source("digits", "train", str(data_dir))
    flags = [
        *SHORT_RUN_FLAGS,
        f"--config.data.data_dir={data_dir}",
        "--config.num_epochs=1000.0",
        "--config.data.num_workers=2",
        f"--workdir={tmp_path / 'run'}",
    ]
    output = tmp_path / "output.txt"
    process = start(flags, tmp_path / "cache", output)
    assert wait_until(process, "epoch   1", output, 200), output.read_text()
    children = [pid for pid in running() if parent(pid) == process.pid]
    assert len(children) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while running() & set(children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running() & set(children)


def running() -> set[int]:
    return {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}


def parent(process: int) -> int | None:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None  # it has ended
    return int(status.rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_the_checkpoint_before_is_whole(
    data_dir: Path, tmp_path: Path
) -> None:
    """A limit to the size of files stands for a disk without room."""
    open_source("digits", "train", str(data_dir))
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    flags = [
        *SHORT_RUN_FLAGS,
        f"--config.data.data_dir={data_dir}",
        "--config.num_epochs=40.0",
        "--config.eval_every_epochs=40.0",  # before the first test a checkpoint is due
        "--config.checkpoint_every_steps=5",
        f"--workdir={workdir}",
    ]
    first = tmp_path / "first.txt"
    process = start(flags, cache, first)
    assert wait_until(process, "epoch   1", first, 200), first.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    saved = max(stored_steps(workdir))
    before = stored_arrays(workdir, saved)
    result = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", sys.executable, "train.py", *flags],
        cwd=ROOT,
        env=environment(cache) | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "could not be written" in line
    assert f"goes on from checkpoint {saved}, which is intact" in line
    assert saved in stored_steps(workdir)
    after = stored_arrays(workdir, saved)
    assert all(np.array_equal(after[name], array) for name, array in before.items())
    process = start(flags, cache, tmp_path / "more.txt")
    assert wait_until(process, f"resuming after step {saved}", tmp_path / "more.txt", 100)
    process.kill()
    process.wait()
