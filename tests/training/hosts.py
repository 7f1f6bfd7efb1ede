"""Several hosts on one machine: processes with virtual CPU devices, over jax.distributed.

for host in run_hosts(["train.py", CONFIG, WORKDIR]):
assert host.returncode == 0, host.stderr

with start_hosts(["train.py", CONFIG, WORKDIR]) as hosts:
hosts.wait_for(0, "step     10")
hosts.kill(1)
first, second = hosts.finish(timeout=60)
"""

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.programs import ROOT, xla_flags


@dataclasses.dataclass(frozen=True)
class Finished:
    """What became of a process: its exit status (negative for a signal) and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Hosts:
    """Processes that are running; in a `with` block, which kills those that are left."""

    def __init__(self, folder: tempfile.TemporaryDirectory[str], address: str):
        """Begin with none; output goes to files in `folder`."""
        self.address = address
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._folder = folder

    def start(self, number: int, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start one more."""
        stdout, stderr = self._outputs(number)
        with stdout.open("wb") as out, stderr.open("wb") as err:
            # A session of its own, so that its workers can be killed with it.
            self.processes[number] = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=os.environ | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def wait_for(self, number: int, text: str, timeout: float = 60.0) -> None:
        """Wait until a process has written `text`."""
        deadline = time.monotonic() + timeout
        while not any(text in path.read_text() for path in self._outputs(number)):
            ended = self.processes[number].poll() is not None
            if ended or time.monotonic() > deadline:
                written = "\n".join(path.read_text() for path in self._outputs(number))
                raise AssertionError(f"process {number} did not write {text!r} but:\n{written}")
            time.sleep(0.01)

    def send(self, number: int, signal_number: int) -> None:
        """Send a signal to a process, and to nothing that it started."""
        self.processes[number].send_signal(signal_number)

    def kill(self, number: int) -> None:
        """End a process as a power cut would, with all that it started."""
        os.killpg(self.processes[number].pid, signal.SIGKILL)

    def finish(self, timeout: float = 120.0) -> list[Finished]:
        """Wait until all have ended.

        Raises:
          AssertionError: one did not, within `timeout` seconds; with all output.
        """
        deadline = time.monotonic() + timeout
        try:
            for process in self.processes.values():
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            running = [n for n, process in self.processes.items() if process.poll() is None]
            outputs = "\n".join(
                f"--- process {n}\n{path.read_text()}"
                for n in self.processes
                for path in self._outputs(n)
            )
            raise AssertionError(
                f"processes {running} still run after {timeout:g} seconds\n{outputs}"
            ) from None
        return [
            Finished(process.returncode, *(path.read_text() for path in self._outputs(n)))
            for n, process in self.processes.items()
        ]

    def __enter__(self) -> "Hosts":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill what is left."""
        for number, process in self.processes.items():
            with contextlib.suppress(ProcessLookupError):  # it ended, and left nothing
                self.kill(number)
            process.wait()
        self._folder.cleanup()

    def _outputs(self, number: int) -> tuple[Path, Path]:
        folder = Path(self._folder.name)
        return folder / f"{number}.out", folder / f"{number}.err"


def start_hosts(
    command: Sequence[str],
    hosts: int = 2,
    devices: int = 4,
    *,
    env: Mapping[str, str] | None = None,
    only: Collection[int] | None = None,
    more: Mapping[int, Sequence[str]] | None = None,
) -> Hosts:
    """Start a program of ours as the hosts of one run.

    Args:
      command: arguments of Python; --coordinator_address, --num_processes and
        --process_id are added.
      hosts: processes of the run.
      devices: virtual CPU devices of each.
      env: variables besides this process's own.
      only: start only these of them; all by default.
      more: arguments of single hosts.
    """
    folder = tempfile.TemporaryDirectory(prefix="hosts-")
    started = Hosts(folder, f"127.0.0.1:{free_port()}")
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": str(ROOT),
    }
    for number in range(hosts) if only is None else only:
        flags = [
            f"--coordinator_address={started.address}",
            f"--num_processes={hosts}",
            f"--process_id={number}",
        ]
        started.start(
            number, [*command, *(more or {}).get(number, ()), *flags], settings | dict(env or {})
        )
    return started


def run_hosts(
    command: Sequence[str],
    hosts: int = 2,
    devices: int = 4,
    *,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    only: Collection[int] | None = None,
) -> list[Finished]:
    """Run a program as the hosts of one run to its end; see `start_hosts`.

    Raises:
      AssertionError: not all ended within `timeout` seconds; they are killed.
    """
    with start_hosts(command, hosts, devices, env=env, only=only) as started:
        return started.finish(timeout)


def free_port() -> int:
    """Find a port where nobody listens, outside of the range that connections take theirs from."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
