"""Two processes with four virtual devices each train as one with eight does."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from resnext_jax.data.sources import open_source
from resnext_jax.errors import STOP_SIGNALS
from resnext_jax.runs.log import read_metrics
from tests.data.raw import write_cifar_archive
from tests.programs import run
from tests.training.hosts import Finished, run_hosts, start_hosts
from tests.training.runs import SHORT_RUN_FLAGS, stored_arrays, stored_steps, without_timings

# Double precision, where only the order of sums differs between the two.
FLOAT64 = {"JAX_ENABLE_X64": "1"}
FLOAT64_FLAGS = ["--config.model.dtype=float64", "--config.model.param_dtype=float64"]


@pytest.fixture(scope="module")
def prepared(data_dir: Path) -> str:
    """The flag that names the folder of the prepared digits."""
    open_source("digits", "train", str(data_dir))
    return f"--config.data.data_dir={data_dir}"


def assert_equal_runs(actual: Path, expected: Path, tolerance: float = 1e-8) -> None:
    """Compare the last checkpoints and all records."""
    arrays, wanted = stored_arrays(actual), stored_arrays(expected)
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(
            arrays[name], array, rtol=tolerance, atol=tolerance, err_msg=name
        )
    records = [without_timings(read_metrics(workdir)) for workdir in (actual, expected)]
    for mine, other in zip(*records, strict=True):
        words = {name for name, value in other.items() if isinstance(value, str)}
        assert {name: mine.pop(name) for name in words} == {n: other.pop(n) for n in words}
        assert mine == pytest.approx(other, rel=1e-6)


def succeeded(finished: list[Finished]) -> list[Finished]:
    for number, host in enumerate(finished):
        assert host.returncode == 0, f"process {number}: {host.stdout}\n{host.stderr}"
    return finished


def test_two_hosts_train_and_evaluate_as_one(prepared: str, tmp_path: Path) -> None:
    command = ["train.py", *SHORT_RUN_FLAGS, *FLOAT64_FLAGS, prepared, "--config.num_epochs=0.5"]
    first, second = succeeded(
        run_hosts([*command, f"--workdir={tmp_path / 'two'}"], env=FLOAT64, timeout=300)
    )
    assert "8 cpu device(s) on 2 hosts" in first.stdout
    assert "epoch" not in second.stdout  # the first host speaks and writes for both
    alone = run(*command, f"--workdir={tmp_path / 'one'}", devices=8, env=FLOAT64)
    assert alone.returncode == 0, alone.stderr
    assert_equal_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_hosts_evaluate_as_one(prepared: str, tmp_path: Path) -> None:
    command = [*SHORT_RUN_FLAGS, prepared, f"--workdir={tmp_path}", "--config.num_epochs=0.5"]
    alone = run("train.py", *command, devices=8)
    assert alone.returncode == 0, alone.stderr
    table = run("eval.py", *command, devices=8).stdout
    assert "step 6 " in table
    first, second = succeeded(run_hosts(["eval.py", *command], timeout=300))
    assert table in first.stdout
    assert "step" not in second.stdout


@pytest.mark.slow
def test_a_small_cifar_archive(tmp_path: Path) -> None:
    """Prepared by whichever host is first, read in parts by both."""
    archives = tmp_path / "archives"
    archives.mkdir()
    write_cifar_archive(archives / "cifar-10-binary.tar.gz", "cifar10", train=64, test=24)
    data_dir = tmp_path / "data"
    prepare = run(
        *("-m", "resnext_jax.data.prepare", "--dataset=cifar10", f"--data_dir={data_dir}"),
        *("--trust_archives", f"--manual_dir={archives}"),
        devices=8,
    )
    assert prepare.returncode == 0, prepare.stderr
    command = [
        "train.py",
        "--config=configs/cifar10_resnext29_8x64d.py",
        "--config.model.name=resnext11_2x4d",
        "--config.model.stem_width=8",
        "--config.model.template_width=16",
        "--config.batch_size=32",
        "--config.bn_group_size=8",
        "--config.num_epochs=3.0",
        "--config.log_every_steps=2",
        "--config.data.num_workers=1",
        f"--config.data.data_dir={data_dir}",
        *FLOAT64_FLAGS,
    ]
    succeeded(run_hosts([*command, f"--workdir={tmp_path / 'two'}"], env=FLOAT64, timeout=300))
    alone = run(*command, f"--workdir={tmp_path / 'one'}", devices=8, env=FLOAT64)
    assert alone.returncode == 0, alone.stderr
    assert_equal_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_many_signals_on_both_hosts_stop_them_once_with_one_status(
    prepared: str, tmp_path: Path
) -> None:
    """To the whole process groups, with their workers, until the last one has ended."""
    command = ["train.py", *SHORT_RUN_FLAGS, prepared, "--config.num_epochs=100.0"]
    command += ["--config.data.num_workers=1", f"--workdir={tmp_path}"]
    command += ["--config.eval_every_epochs=100.0"]
    with start_hosts(command, devices=1) as hosts:
        hosts.wait_for(0, "epoch", timeout=200)
        hosts.send(1, signal.SIGUSR1)
        hosts.wait_for(1, "SIGUSR1: the run ends")
        while any(process.poll() is None for process in hosts.processes.values()):
            for process in hosts.processes.values():
                for number in STOP_SIGNALS:
                    if number != signal.SIGINT:  # it could last for the 2 seconds
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(process.pid, number)
            time.sleep(0.01)
        finished = hosts.finish()
    for host in finished:
        assert host.returncode in (128 + signal.SIGUSR1, 128 + signal.SIGTERM), host.stderr
        assert "Traceback" not in host.stderr
    assert finished[0].returncode == finished[1].returncode
    assert {told_step(host.stderr) for host in finished} == stored_steps(tmp_path)


@pytest.mark.slow
def test_a_signal_on_one_host_stops_all_at_one_step_and_one_host_goes_on(
    prepared: str, tmp_path: Path
) -> None:
    """What two wrote is continued by one with 8 devices, and by one with 2, in micro-batches."""
    command = ["train.py", *SHORT_RUN_FLAGS, *FLOAT64_FLAGS, prepared, "--config.num_epochs=8.0"]
    command += ["--config.log_every_steps=1"]  # a request is heard with any step, recorded or not
    workdir = tmp_path / "two"
    with start_hosts([*command, f"--workdir={workdir}"], env=FLOAT64) as hosts:
        hosts.wait_for(0, "epoch", timeout=200)
        hosts.send(1, signal.SIGTERM)
        finished = hosts.finish(timeout=120)
    assert [host.returncode for host in finished] == [143, 143]
    steps = {told_step(host.stderr) for host in finished}
    assert len(steps) == 1
    (step,) = steps
    assert 1 <= step < 80
    assert max(stored_steps(workdir)) == step

    whole = run(*command, f"--workdir={tmp_path / 'one'}", devices=8, env=FLOAT64)
    assert whole.returncode == 0, whole.stderr
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for folder, devices, parts in ((workdir, 8, 1), (copy, 2, 2)):
        more = run(
            *(*command, f"--workdir={folder}", f"--config.accumulate_steps={parts}"),
            devices=devices,
            env=FLOAT64,
        )
        assert more.returncode == 0, more.stderr
        assert f"resuming after step {step}" in more.stdout
        assert_equal_runs(folder, tmp_path / "one", tolerance=1e-6)


def told_step(stderr: str) -> int:
    (line,) = [line for line in stderr.splitlines() if "stopped by" in line]
    return int(line.split("after step ")[1].split(";")[0])


@pytest.mark.slow
def test_a_killed_host_ends_the_others_and_nothing_is_lost(prepared: str, tmp_path: Path) -> None:
    command = [
        *("train.py", *SHORT_RUN_FLAGS, prepared, f"--workdir={tmp_path}"),
        "--config.num_epochs=8.0",
        "--config.checkpoint_every_steps=5",
        "--distributed_timeout=60",
    ]
    with start_hosts(command) as hosts:
        hosts.wait_for(0, "epoch   2", timeout=200)
        hosts.kill(1)
        first, second = hosts.finish(timeout=60)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode not in (0, 143)
    assert "process 1" in first.stderr
    step = max(stored_steps(tmp_path))
    assert step >= 20
    again = run_hosts(command, timeout=300)
    assert [host.returncode for host in again] == [0, 0], again[0].stderr
    steps = [r["step"] for r in read_metrics(tmp_path) if r["split"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 90


@pytest.mark.slow
def test_a_bad_image_on_one_host_stops_all_at_one_step(tmp_path: Path) -> None:
    """One of the hosts has decoded it, none trains on it, and all that was trained is saved."""
    flags = write_folder_with_a_bad_image(tmp_path)
    command = ["train.py", *flags, f"--workdir={tmp_path / 'run'}"]
    finished = run_hosts(command, timeout=300)
    assert [host.returncode for host in finished] == [2, 2]
    messages = [told_error(host.stderr) for host in finished]
    own = [message for message in messages if "cannot be decoded" in message]
    others = [message for message in messages if "another host has no images for" in message]
    assert (len(own), len(others)) == (1, 1)
    saved = max(stored_steps(tmp_path / "run"))
    assert f"the state after step {saved} is saved" in others[0]
    skipping = succeeded(run_hosts([*command, "--config.data.on_error=skip"], timeout=300))
    assert f"resuming after step {saved}" in skipping[0].stdout


@pytest.mark.parametrize("program", ["train.py", pytest.param("eval.py", marks=pytest.mark.slow)])
def test_hosts_with_other_data_end_at_once_with_the_same_sentence(
    program: str, tmp_path: Path
) -> None:
    """After a copy that was interrupted, say; they would wait for each other for ever."""
    flags = write_folder_with_a_bad_image(tmp_path)
    command = [program, *flags, f"--workdir={tmp_path / 'run'}"]
    if program == "eval.py":
        config = ["--config.num_epochs=0.2", "--config.data.on_error=skip"]
        trained = run("train.py", *command[1:], *config)
        assert trained.returncode == 0, trained.stderr
    shutil.copytree(tmp_path / "images", tmp_path / "part")
    for split in ("train", "val"):
        (tmp_path / "part" / split / "a" / "07.png").unlink()
    other = [f"--config.data.manual_dir={tmp_path / 'part'}", "--config.seed=1"]
    with start_hosts(command, more={1: other}) as hosts:
        finished = hosts.finish(timeout=200)
    assert [host.returncode for host in finished] == [2, 2], finished
    messages = [told_error(host.stderr) for host in finished]
    for message in messages:
        assert "config.seed: 0 on 0; 1 on 1" in message
        assert "images of split test: 16 on 0; 15 on 1" in message or "And " in message
    assert not list((tmp_path / "run").glob("checkpoints/*")) or program == "eval.py"


def told_error(stderr: str) -> str:
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line


def write_folder_with_a_bad_image(tmp_path: Path) -> list[str]:
    """Make 48 images in two classes; return the flags to train on them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f"{number:02}.png"), image)
    (tmp_path / "images" / "train" / "b" / "05.png").write_bytes(b"\x89PNG no image")
    return [
        "--config=configs/folder.py:resnext11_2x4d",
        "--config.model.stem_width=8",
        "--config.model.template_width=16",
        "--config.data.image_size=8",
        f"--config.data.manual_dir={tmp_path / 'images'}",
        "--config.batch_size=8",
        "--config.bn_group_size=4",
        "--config.num_epochs=4.0",
        "--config.data.num_workers=0",
        f"--config.data.data_dir={tmp_path / 'data'}",
    ]
