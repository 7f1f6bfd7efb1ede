"""Running a sweep: one train.py after another.

What has been finished is not run again: a run whose last test was made at its last step. All others
are run as they would be by hand, and resume where their workdir has a checkpoint. What becomes of
the sweep when a run ends:

- status 0, with the last test in its log: the next run starts,
- a signal (stopped by Ctrl-C or SIGTERM, say, or killed for memory): the sweep stops,
- status 2 (a mistake in config, data or workdir, or a loss that diverged) or 75 (a lost host): the
  sweep stops, because the runs that follow would mostly end so too; with `keep_going` it goes on,
- any other status (a crash): the next run starts.

The sweep's own status is 0 when all runs are finished, and otherwise that of the first that is not.
The signals that stop a run (`STOP_SIGNALS`) are passed on to it, and it saves its state; then the
sweep stops.
"""

import contextlib
import dataclasses
import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import resnext_jax
from resnext_jax.config.checks import check_start, validate
from resnext_jax.config.cli import last_overrides
from resnext_jax.config.fields import base_config, field_names, set_field
from resnext_jax.errors import (
    EXIT_LOST_HOST,
    EXIT_USER_ERROR,
    STOP_SIGNALS,
    ConfigError,
    did_you_mean,
    drop_lost_output,
)
from resnext_jax.reports.errors import ReportError
from resnext_jax.reports.runs import read_run
from resnext_jax.reports.sweeps import Setting, Sweep
from resnext_jax.runs.workdir import CONFIG_FILE, check_same_run

EXIT_FAILED = 1
_FIRST_SIGNAL_STATUS = 128

# What the sweep itself sets.
_OWN_FLAGS = ("config", "workdir", "config.seed", "config.model.name", "config.data.name")

Say = Callable[[str], None]


def repository() -> Path:
    """Return the folder of train.py and configs/.

    Raises:
      ReportError: the package is installed without them.
    """
    root = Path(resnext_jax.__file__).resolve().parents[1]
    for name in ("train.py", "configs"):
        if not (root / name).exists():
            raise ReportError(
                f"{root / name} does not exist: sweeps are run from a clone of the repository, "
                "which has train.py and configs/."
            )
    return root


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
      name: of its setting, and its seed.
      arguments: flags of train.py.
      workdir: its folder.
      command: program and arguments, to be run in this folder.
    """

    name: str
    arguments: tuple[str, ...]
    workdir: Path
    command: tuple[str, ...]

    @property
    def shown(self) -> str:
        """The command for a shell."""
        return shlex.join(self.command)

    @property
    def state(self) -> str:
        """What its workdir says: "finished", "unfinished", or "" where nothing was begun.

        Raises:
          WorkdirError: the workdir is damaged.
        """
        if not (self.workdir / CONFIG_FILE).exists():
            return ""
        return "finished" if read_run(str(self.workdir)).finished else "unfinished"


def make_jobs(
    sweep: Sweep, folder: Path, *, seeds: int | None = None, extra: Sequence[str] = ()
) -> list[Job]:
    """List the runs of a sweep: every setting with seed 0, then with seed 1, and so on.

    Args:
      sweep: of `sweeps.SWEEPS`.
      folder: the workdir of a run is FOLDER/SETTING/seedN.
      seeds: how many, None for the sweep's number.
      extra: further flags for every train.py.

    Raises:
      ReportError: a flag is the sweep's own, or a field is unknown.
      UserError: a config is not valid, or a workdir holds another run.
    """
    for argument in extra:
        _check_flag(argument)
    root = repository()
    jobs = [
        _job(root, setting, seed, folder, extra)
        for seed in range(sweep.seeds if seeds is None else seeds)
        for setting in sweep.settings
    ]
    # All of them now: a mistake in the last shall not be told after days.
    for job in jobs:
        config = load_config(job)
        validate(config)
        check_start(config)
        if (job.workdir / CONFIG_FILE).exists():
            check_same_run(config, job.workdir)
    return jobs


def _job(root: Path, setting: Setting, seed: int, folder: Path, extra: Sequence[str]) -> Job:
    workdir = folder / setting.name / f"seed{seed}"
    prefix = "" if Path.cwd() == root else f"{root}/"
    arguments = (
        f"--config={prefix}{setting.config}",
        *setting.overrides,
        f"--config.seed={seed}",
        f"--workdir={workdir}",
        *extra,
    )
    command = (_python(), f"{prefix}train.py", *arguments)
    return Job(f"{setting.name}, seed {seed}", arguments, workdir, command)


def _python() -> str:
    """Return this Python, as short as it works in this folder."""
    # Not resolved: in a virtual environment it is a link, and has to stay one.
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _check_flag(argument: str) -> None:
    match = re.match(r"--?([\w.]+)(=|$)", argument)
    if match is None:
        raise ReportError(
            f"{argument!r} after -- is no flag for train.py; give flags such as "
            "--config.num_epochs=2, each with its value after a '='."
        )
    name = match[1]
    if name in _OWN_FLAGS:
        raise ReportError(f"--{name} is set by the sweep, for each run; leave it out after --.")
    if name.startswith("config."):
        known = field_names(base_config())
        wanted = name.removeprefix("config.")
        if wanted not in known and wanted.removeprefix("no") not in known:
            hint = did_you_mean(wanted, known, "see resnext_jax/config/fields.py.")
            raise ReportError(f"the config has no field {wanted!r}; {hint}")


def load_config(job: Job) -> ConfigDict:
    """Make the config that train.py will make of a job's flags.

    Raises:
      UserError: it cannot be made.
    """
    given = [word for word in job.arguments if re.match(r"--?(no)?config[.=]", word)]
    files = [word for word in given if re.match(r"--?config=", word)]
    try:
        with _importable(repository()):
            arguments, nones = last_overrides(["train.py", *given], _plain_config(*files))
            config = _config_of(arguments)
        for name in nones:
            set_field(config, name, None)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"train.py cannot take the flags of {job.name}: {error}.") from error
    return config


@functools.cache
def _plain_config(*files: str) -> ConfigDict:
    """Return what config files make without further flags; not to be changed."""
    return _config_of(["train.py", *files])


def _config_of(arguments: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    config: ConfigDict = holder.value
    return config


@contextlib.contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Let config files import one another, as train.py lets them from its folder."""
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


def run_sweep(jobs: Sequence[Job], *, keep_going: bool = False, say: Say = print) -> int:
    """Run what is not finished, one after another.

    Args:
      jobs: of `make_jobs`.
      keep_going: whether also after a run that ends with status 2 or 75.
      say: is told what is done.

    Returns:
      Exit status, see the module's docstring.

    Raises:
      WorkdirError: a workdir is damaged.
    """
    failures: list[tuple[Job, int]] = []
    left = [job for job in jobs if job.state != "finished"]
    say(f"{len(jobs)} runs, of which {len(jobs) - len(left)} are finished")
    begin = time.monotonic()
    with _Runner() as runner:
        for number, job in enumerate(left, 1):
            resuming = " (unfinished, so it resumes where it has a checkpoint)" if job.state else ""
            say(f"[{number}/{len(left)}] {job.name}{resuming}: {job.shown}")
            status = runner.run(job)
            if status == 0 and job.state != "finished":
                say(f"{job.name} ended with status 0, but without its last test")
                status = EXIT_FAILED
            elif status:
                say(f"{job.name} ended with status {status}")
            if status:
                failures.append((job, status))
            if runner.stopped_by is not None and number < len(left):
                say(f"stopped by {runner.stopped_by.name}; the same command goes on")
                return _FIRST_SIGNAL_STATUS + runner.stopped_by
            if status >= _FIRST_SIGNAL_STATUS:
                say("stopped there; the same command goes on")
                return status
            if status in (EXIT_USER_ERROR, EXIT_LOST_HOST) and not keep_going:
                say("stopped there, as what follows may end so too; --keep-going goes on")
                return status
    for job, status in failures:
        say(f"not finished, status {status}: {job.name}")
    minutes = (time.monotonic() - begin) / 60
    say(f"{len(jobs) - len(failures)} of {len(jobs)} runs are finished; {minutes:.1f} minutes")
    return failures[0][1] if failures else 0


class _Runner:
    """Runs commands, and passes signals on to them while open.

    Attributes:
      stopped_by: the first signal that came.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Runner":
        if threading.current_thread() is not threading.main_thread():
            return self  # others cannot take signals
        for number in STOP_SIGNALS:
            # Whoever started the sweep with nohup wants it to go on.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, job: Job) -> int:
        """Run a job; return its exit status, 128 and the signal where one killed it."""
        if self.stopped_by is not None:
            return _FIRST_SIGNAL_STATUS + self.stopped_by
        # In a session of its own, so that Ctrl-C reaches it once, and through here.
        self._process = subprocess.Popen(job.command, start_new_session=True)
        self._pass_on()
        status = self._process.wait()
        self._process = None
        drop_lost_output()  # SIGHUP is what a lost terminal sends
        return _FIRST_SIGNAL_STATUS - status if status < 0 else status

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or signal.Signals(number)
        self._pending = number
        self._pass_on()

    def _pass_on(self) -> None:
        if self._process is not None and self._pending is not None:
            number, self._pending = self._pending, None
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
