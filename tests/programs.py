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


# Imports what takes seconds, without starting JAX, and runs each program in a fork of itself.
_SERVER = """
import importlib, json, os, runpy, signal, sys, traceback

for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    arguments, flags, *files = json.loads(line)
    process = os.fork()
    if process == 0:
        signal.alarm(300)
        for number, name in zip((0, 1, 2), (os.devnull, *files)):
            os.dup2(os.open(name, os.O_RDWR), number)
        os.environ["XLA_FLAGS"] = flags
        status = 0
        try:
            if arguments[0] == "-m":
                sys.argv = arguments[1:]
                sys.modules.pop(sys.argv[0], None)
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            else:
                sys.argv = arguments
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

Served = Callable[..., subprocess.CompletedProcess[str]]


@contextlib.contextmanager
def serving(
    *imports: str, folder: Path = ROOT, env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Give a `run` that does not import the same modules each time.

    Args:
      *imports: modules that take seconds to import; they must not start JAX.
      folder: to run in.
      env: all variables; None: this process's own, on the CPU, and XLA's flags as `run` has them.
    """
    with (
        tempfile.TemporaryDirectory(prefix="commands-") as outputs_folder,
        subprocess.Popen(
            [sys.executable, "-c", _SERVER, *imports],
            cwd=folder,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} if env is None else env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server,
    ):
        asked, answered = server.stdin, server.stdout
        assert asked is not None
        assert answered is not None
        outputs = [Path(outputs_folder, name) for name in ("stdout", "stderr")]

        def run(*arguments: str | Path, devices: int = 1) -> subprocess.CompletedProcess[str]:
            for path in outputs:
                path.write_text("")
            words = [str(argument) for argument in arguments]
            flags = xla_flags(devices) if env is None else env["XLA_FLAGS"]
            task = json.dumps([words, flags, *map(str, outputs)])
            print(task, file=asked, flush=True)
            status = int(answered.readline())
            return subprocess.CompletedProcess(words, status, *(p.read_text() for p in outputs))

        yield run
        asked.close()
