"""Running sweeps, with programs in train.py's place."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resnext_jax.errors import ConfigError, UserError, WorkdirError
from resnext_jax.reports.errors import ReportError
from resnext_jax.reports.sweeping import Job, load_config, make_jobs, repository, run_sweep
from resnext_jax.reports.sweeps import SWEEPS, Setting, Sweep
from tests.reports.workdirs import digits, write_run

# By ml_collections, where it loads a config file.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)

ROOT = Path(__file__).parents[2]
TWO = Sweep(
    "two networks",
    (
        Setting("narrow", "configs/digits_resnext29.py", ("--config.model.name=resnet29_1x4d",)),
        Setting("wide", "configs/digits_resnext29.py", ("--config.model.name=resnet29_1x7d",)),
    ),
    seeds=2,
)

# Trains nothing: makes the workdir from one beside it, and ends as it is told. It notes that it
# was started.
TRAIN = """
import os, shutil, signal, sys, time
STOP_SIGNALS = [signal.Signals[name] for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1')]
workdir, how = sys.argv[1:]
with open(os.path.dirname(workdir) + "/started", "a") as log:
    log.write(os.path.basename(workdir) + "\\n")
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how.startswith("SIG"):  # what stops the sweep: to be passed on, once
    got = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: got.append(number))
    os.kill(os.getppid(), getattr(signal, how))
    for _ in range(500):
        if got:
            time.sleep(0.2)
            sys.exit(128 + sum(got))
        time.sleep(0.01)
    sys.exit(99)
if how.isdigit() and int(how):
    sys.exit(int(how))
if how != "no test":
    shutil.copytree(os.path.dirname(workdir) + "/model", workdir, dirs_exist_ok=True)
"""


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str, str], Job]:
    """Make a job by its name and how it ends."""
    write_run(tmp_path / "model", digits())
    program = tmp_path / "train.py"
    program.write_text(TRAIN)

    def make(name: str, how: str = "0") -> Job:
        workdir = tmp_path / name
        command = (sys.executable, str(program), str(workdir), how)
        return Job(name, (), workdir, command)

    return make


def started(tmp_path: Path) -> list[str]:
    path = tmp_path / "started"
    return path.read_text().split() if path.exists() else []


def test_one_after_another(tmp_path: Path, job: Callable[..., Job]) -> None:
    said: list[str] = []
    jobs = [job("a"), job("b")]
    assert run_sweep(jobs, say=said.append) == 0
    assert started(tmp_path) == ["a", "b"]
    assert said[0] == "2 runs, of which 0 are finished"
    assert said[1].startswith("[1/2] a: ")
    assert said[-1].startswith("2 of 2 runs are finished")
    assert run_sweep(jobs, say=said.append) == 0
    assert started(tmp_path) == ["a", "b"]
    assert "2 runs, of which 2 are finished" in said


def test_unfinished_runs_are_resumed(tmp_path: Path, job: Callable[..., Job]) -> None:
    write_run(tmp_path / "a", digits(), epochs=3)
    said: list[str] = []
    assert job("a").state == "unfinished"
    assert run_sweep([job("a"), job("b")], say=said.append) == 0
    assert started(tmp_path) == ["a", "b"]
    assert said[1].startswith("[1/2] a (unfinished, so it resumes")
    assert job("a").state == "finished"


@pytest.mark.parametrize(("how", "status"), [("2", 2), ("75", 75), ("130", 130), ("killed", 137)])
def test_stops_where_the_rest_would_fail_too(
    tmp_path: Path, job: Callable[..., Job], how: str, status: int
) -> None:
    said: list[str] = []
    assert run_sweep([job("a"), job("b", how), job("c")], say=said.append) == status
    assert started(tmp_path) == ["a", "b"]
    assert f"b ended with status {status}" in said


@pytest.mark.parametrize(("how", "status"), [("1", 1), ("no test", 1)])
def test_goes_on_after_a_crash(
    tmp_path: Path, job: Callable[..., Job], how: str, status: int
) -> None:
    said: list[str] = []
    assert run_sweep([job("a", how), job("b")], say=said.append) == status
    assert started(tmp_path) == ["a", "b"]
    assert said[-2] == f"not finished, status {status}: a"
    assert said[-1].startswith("1 of 2 runs are finished")


def test_keeps_going_where_asked(tmp_path: Path, job: Callable[..., Job]) -> None:
    jobs = [job("a", "2"), job("b", "1"), job("c")]
    assert run_sweep(jobs, keep_going=True, say=lambda line: None) == 2
    assert started(tmp_path) == ["a", "b", "c"]


def test_no_keeping_going_after_a_signal(tmp_path: Path, job: Callable[..., Job]) -> None:
    assert run_sweep([job("a", "killed"), job("b")], keep_going=True, say=lambda line: None) == 137
    assert started(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138)]
)
def test_signals_are_passed_on_once(
    tmp_path: Path, job: Callable[..., Job], name: str, status: int
) -> None:
    """The run ends with what it got; the sweep with what it got itself, and nothing follows."""
    before = signal.getsignal(signal.SIGTERM)
    said: list[str] = []
    # Where the tests themselves are run without them (in a script's background, by nohup).
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    for number in kept:
        signal.signal(number, signal.default_int_handler)
    try:
        result = run_sweep([job("a", name), job("b")], keep_going=True, say=said.append)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert result == status
    assert started(tmp_path) == ["a"]
    assert said[-2] == f"a ended with status {status}"
    assert said[-1] == f"stopped by {name}; the same command goes on"
    assert signal.getsignal(signal.SIGTERM) == before


def test_jobs_are_commands_by_seed_and_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    jobs = make_jobs(TWO, tmp_path, extra=["--config.num_epochs=2", "--config.data.data_dir=None"])
    names = [f"{name}, seed {seed}" for seed in range(2) for name in ("narrow", "wide")]
    assert [job.name for job in jobs] == names
    assert jobs[3].command[1:] == (
        "train.py",
        "--config=configs/digits_resnext29.py",
        "--config.model.name=resnet29_1x7d",
        "--config.seed=1",
        f"--workdir={tmp_path}/wide/seed1",
        "--config.num_epochs=2",
        "--config.data.data_dir=None",
    )
    config = load_config(jobs[3])
    assert (config.seed, config.num_epochs, config.model.name) == (1, 2.0, "resnet29_1x7d")
    assert len(make_jobs(TWO, tmp_path, seeds=3)) == 6


def test_jobs_from_another_folder_name_all_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    job = make_jobs(SWEEPS["table6"], Path("runs"))[0]
    assert repository() == ROOT
    assert job.command[1] == f"{ROOT}/train.py"
    assert job.arguments[0] == f"--config={ROOT}/configs/imagenet5k.py:resnet50"
    assert load_config(job).data.name == "imagenet5k"


def test_flags_that_come_later_win(tmp_path: Path) -> None:
    jobs = make_jobs(SWEEPS["digits"], tmp_path, seeds=1, extra=["--config.num_epochs=1"])
    assert {load_config(job).num_epochs for job in jobs} == {1.0}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--workdir=elsewhere", "--workdir is set by the sweep"),
        ("--config.seed=3", "--config.seed is set by the sweep"),
        ("--config.num_epoch=3", "no field 'num_epoch'; did you mean num_epochs"),
        ("num_epochs=3", "'num_epochs=3' after -- is no flag"),
        ("--config.num_epochs=many", "cannot take the flags of narrow, seed 0"),
        ("--config.batch_size=0", "config.batch_size=0 must be at least 1"),
    ],
)
def test_wrong_flags_are_told_before_anything_runs(
    tmp_path: Path, extra: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_jobs(TWO, tmp_path, extra=[extra])


def test_another_run_in_a_workdir_is_told_before_anything_runs(tmp_path: Path) -> None:
    config = digits("resnet29_1x7d", seed=1)
    write_run(tmp_path / "wide" / "seed1", config)
    assert [job.state for job in make_jobs(TWO, tmp_path)] == ["", "", "", "finished"]
    with pytest.raises(ConfigError, match=r"wide/seed1 holds a run with another config \(num_ep"):
        make_jobs(TWO, tmp_path, extra=["--config.num_epochs=2"])


def test_a_damaged_workdir_is_one_sentence(tmp_path: Path, job: Callable[..., Job]) -> None:
    write_run(tmp_path / "a", digits())
    (tmp_path / "a" / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl is damaged"):
        run_sweep([job("a")])


def test_a_package_without_its_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("resnext_jax.__file__", str(tmp_path / "resnext_jax" / "__init__.py"))
    with pytest.raises(ReportError, match=r"train\.py does not exist: sweeps are run from a clone"):
        repository()


def test_the_shown_command_is_a_shells(tmp_path: Path) -> None:
    job = Job("a", (), tmp_path, ("python", "train.py", "--config=a b"))
    assert job.shown == "python train.py '--config=a b'"
    assert json.loads(json.dumps(job.command)) == list(job.command)
