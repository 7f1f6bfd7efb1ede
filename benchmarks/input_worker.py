"""The processes that `input_pipeline` measures: one a variant, standing still but for its turn.

Runs in TensorFlow's environment too, so it needs nothing but the standard library.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

# Longer than any library takes to end its threads and processes.
_SECONDS_TO_END = 20.0

_ENVIRONMENT = {
    # They measure the host; an accelerator is for the device's part.
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Batches that nobody waits for any more are given up at the end; this flag signals it.
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
}


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a process and its children have done since they started.

    Attributes:
      batches: made when asked for.
      cpu_seconds: processor time, of all threads.
    """

    batches: int
    cpu_seconds: float


class WorkerError(Exception):
    """A measured process failed; what it had to say is on standard error."""


def read_images(folder: Path) -> list[bytes]:
    """Read all JPEG files of a folder, in the order of their names."""
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def serve(batches: Generator[Any, None, None], versions: dict[str, str]) -> None:
    """Make batches whenever standard input asks for some, until it ends.

    Args:
      batches: arrays or tensors, without end.
      versions: of what makes them, by package.
    """
    with contextlib.closing(batches):
        first = next(batches)
        about = {"shape": list(first.shape), "dtype": first.dtype.name, "versions": versions}
        print(json.dumps(about), flush=True)
        for line in sys.stdin:
            for _ in range(int(line)):
                next(batches)
            print("{}", flush=True)


class Worker:
    """A process that runs `serve`.

    Between its turns it is stopped, with all that it has started: otherwise what
    reads ahead would take time from the other variants, and begin its own turn
    with batches that it was not timed for.

    Attributes:
      about: what `serve` says of the first batch, and the versions.
    """

    def __init__(self, command: Sequence[str], cores: Collection[int]) -> None:
        """Start it, and return when it has made its first batch.

        Args:
          command: the program and its arguments.
          cores: all that it and its children may use, by number.

        Raises:
          WorkerError: it ended instead.
        """
        self._name = " ".join(command)
        self._batches = 0
        with _limited_to(cores):
            # A process group that can be stopped as one, in this session: should this process
            # die, the system ends its stopped group.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
                env=os.environ | _ENVIRONMENT,
            )
        try:
            self.about: dict[str, Any] = self._reply()
            self._signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise

    def run(self, batches: int) -> None:
        """Let it make a number of batches.

        Raises:
          WorkerError: it ended instead.
        """
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # then there is no reply either
            self._process.stdin.write(f"{batches}\n")
            self._process.stdin.flush()
        self._reply()
        self._signal(signal.SIGSTOP)
        self._batches += batches

    @property
    def pid(self) -> int:
        """Number of the process, and of its group."""
        return self._process.pid

    def usage(self) -> Usage:
        """Say what it and its children have done so far."""
        total = 0.0
        for entry in os.listdir("/proc"):
            # Processes of others may end while they are looked at.
            with contextlib.suppress(ValueError, OSError):
                if os.getpgid(int(entry)) == self.pid:
                    # Linux's name for a process's clock, as clock_getcpuclockid gives it.
                    total += time.clock_gettime(~int(entry) << 3 | 2)
        return Usage(self._batches, total)

    def close(self) -> None:
        """End it: by the end of its input, so that it can clear up, or by force."""
        self._signal(signal.SIGCONT)
        try:
            self._process.communicate(timeout=_SECONDS_TO_END)
        except (OSError, subprocess.TimeoutExpired):
            self._signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> "Worker":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"a measured process has failed, see above: {self._name}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def _limited_to(cores: Collection[int]) -> Generator[None, None, None]:
    """Limit this thread, and so the processes it starts: libraries count cores when they load."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
