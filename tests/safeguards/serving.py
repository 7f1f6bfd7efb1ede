"""Commands run one after the other, in forks of a process that has imported what takes seconds."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

_SERVER = """
import json, os, runpy, signal, sys, traceback
import jax, flax.nnx, optax, orbax.checkpoint, tensorflow_datasets, cv2, ml_collections
from tests.safeguards import where

for line in sys.stdin:
    arguments, *files = json.loads(line)
    process = os.fork()
    if process == 0:
        signal.alarm(300)
        for number, name in zip((0, 1, 2), (os.devnull, *files)):
            os.dup2(os.open(name, os.O_RDWR), number)
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


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str


class Server:
    """Runs commands in a folder."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path):
        """Use a process that runs `_SERVER`."""
        self._process, self._folder = process, folder

    def run(self, *arguments: str) -> Result:
        """Run Python with arguments: a script's or `-m`, and a module's."""
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        outputs = [self._folder / name for name in (".stdout", ".stderr")]
        for path in outputs:
            path.write_text("")
        print(json.dumps([arguments, *map(str, outputs)]), file=asked, flush=True)
        status = int(answered.readline())
        texts = [path.read_text() for path in outputs]
        for path in outputs:
            path.unlink()
        return Result(status, *texts)


def environment() -> dict[str, str]:
    """Return variables with which commands do the same on all machines, from any test."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("JAX_")},
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Give a server whose commands run in a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Server(process, folder)
        assert process.stdin is not None
        process.stdin.close()
