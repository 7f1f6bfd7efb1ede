"""Programs of the project, run as users run them."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
_DEVICES = "--xla_force_host_platform_device_count="


def xla_flags(devices: int = 1) -> str:
    """Return this process's own XLA_FLAGS, with another number of virtual CPU devices."""
    others = re.sub(rf"{_DEVICES}\S*", "", os.environ["XLA_FLAGS"])
    return " ".join([*others.split(), f"{_DEVICES}{devices}"])


def run(
    *arguments: str | Path,
    devices: int = 1,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run Python in the project's folder, with so many virtual CPU devices, to its end.

    Args:
      arguments: of Python: a script and its arguments, say.
      devices: of the process.
      env: variables besides this process's own.
      timeout: in seconds.
    """
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | settings | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# Imports what takes seconds, which starts nothing of JAX, and runs each script in a fork of itself.
_SERVER = """
import json, os, runpy, signal, sys, traceback
import resnext_jax.evaluation.run, resnext_jax.training.loop

for line in sys.stdin:
    arguments, flags, *files = json.loads(line)
    process = os.fork()
    if process == 0:
        signal.alarm(300)
        for number, name in zip((0, 1, 2), (os.devnull, *files)):
            os.dup2(os.open(name, os.O_RDWR), number)
        os.environ["XLA_FLAGS"] = flags
        sys.argv, status = arguments, 0
        try:
            runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@contextlib.contextmanager
def serving() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Give a `run` for scripts that end before JAX computes: without importing it each time."""
    with (
        tempfile.TemporaryDirectory(prefix="commands-") as folder,
        subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server,
    ):
        asked, answered = server.stdin, server.stdout
        assert asked is not None
        assert answered is not None
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]

        def run(*arguments: str | Path, devices: int = 1) -> subprocess.CompletedProcess[str]:
            for path in outputs:
                path.write_text("")
            words = [str(argument) for argument in arguments]
            task = json.dumps([words, xla_flags(devices), *map(str, outputs)])
            print(task, file=asked, flush=True)
            status = int(answered.readline())
            return subprocess.CompletedProcess(words, status, *(p.read_text() for p in outputs))

        yield run
        asked.close()
