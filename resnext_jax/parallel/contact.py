"""TCP connections between the processes of a run, to detect missing and lost processes immediately.

JAX's coordination service monitors the processes too, but it aborts from C++ with a stack trace as
the message, and late: it never names a missing process, and a killed one only after the heartbeat
timeout. Here every process keeps a connection to process 0, and the operating system closes it when
the process dies. Process 0 listens at the coordinator's address until all processes have
connected, and then releases that port to JAX; the connections stay open. Messages are JSON
objects, one per line; an empty object is a heartbeat.
"""

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from resnext_jax.errors import EXIT_LOST_HOST, HostError, UserError

# Seconds that a process has to exit with its own error after another process has reported one.
GRACE = 2.0
_RETRY = 0.2
# Seconds of waiting before the missing processes are printed.
_QUIET_SECONDS = 10.0
# The time limit is divided into this many intervals; a process counts as lost after as many
# consecutive ones without a heartbeat. Several, so that a suspended machine has time to resume.
_HEARTBEATS_PER_LIMIT = 4
_PROTOCOL = "resnext_jax"

Message = dict[str, Any]


@dataclasses.dataclass(eq=False)
class _Peer:
    """The other end of a connection."""

    process: int
    name: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    done: bool = False
    aborted: bool = False
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def send(self, **message: Any) -> None:
        """Send without waiting."""
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.write(json.dumps(message).encode() + b"\n")


class Contact:
    """This process's connections: process 0 is connected to all others, the others to process 0."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        num_processes: int,
        process_id: int,
        time_limit: float,
        on_end: Callable[[str, int], None],
    ):
        """Initialise; `connect` opens the connections.

        Args:
          address: host of process 0, and a port there.
          num_processes: number of processes of the run, at least 2.
          process_id: index of this process, 0 to num_processes - 1.
          time_limit: seconds to wait for the others to connect, and after which a silent process
            counts as lost.
          on_end: called with a sentence and an exit status, in the thread of the connections, when
            another process is lost or has aborted; it must end this process.
        """
        self._address = address
        self._count = num_processes
        self._process = process_id
        self._limit = time_limit
        self._on_end = on_end
        self._peers: dict[int, _Peer] = {}
        self._met = False
        self._waiting_for: list[int] = []  # as last reported by process 0
        self._self_done = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="contact", daemon=True)
        self._closing = threading.Lock()
        self._all_came = asyncio.Event()
        self._all_done = asyncio.Event()
        self._end_heard = asyncio.Event()
        # For the main thread: another process was lost; another was lost or has aborted.
        self.lost = threading.Event()
        self.ended = threading.Event()

    def connect(self) -> None:
        """Wait until all processes are connected.

        Raises:
          HostError: some processes did not connect within the time limit.
          UserError: process 0 cannot listen at the address, or the processes were started with
            inconsistent flags.
        """
        self._thread.start()
        try:
            self._wait(self._accept_all() if self._process == 0 else self._connect_to_first())
        except BaseException:
            self.close()
            raise

    def barrier_and_close(self) -> None:
        """Wait until all processes have called this, then close.

        There is no time limit, as long as their heartbeats arrive.
        """
        self._wait(self._barrier())
        self.close()

    def abort(self, sentence: str, status: int) -> None:
        """Send the other processes the error that this process exits with."""
        with contextlib.suppress(TimeoutError):
            self._wait(self._abort(sentence, status), timeout=4 * GRACE)

    def close(self) -> None:
        """Close the connections, unless they are closed already."""
        with self._closing:
            if self._thread.is_alive():
                self._wait(self._close())
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, None], timeout: float | None = None) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    # Connecting

    async def _accept_all(self) -> None:
        """Process 0: accept the others' connections."""
        server = await asyncio.start_server(self._start_accepting, sock=_listen(self._address[1]))
        self._start(self._send_heartbeats())
        reminder = self._start(self._print_who_is_missing())
        try:
            async with asyncio.timeout(self._limit):
                await self._all_came.wait()
        except TimeoutError:
            absent = self._absent()  # first: processes that hear of it disconnect
            self._broadcast(waiting_for=absent, too_late=self._limit)
            drains = [peer.writer.drain() for peer in self._peers.values()]
            await _within(GRACE, asyncio.gather(*drains, return_exceptions=True))
            raise HostError(_did_not_connect(absent, self._limit)) from None
        finally:
            reminder.cancel()
            server.close()  # releases the port to JAX; the connections stay open
        self._broadcast(met=socket.gethostname())

    def _start_accepting(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._start(self._accept(reader, writer))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(TimeoutError, LookupError, ValueError):
            hello = await self._receive(reader)
            if hello is None or hello.get("hello") != _PROTOCOL:
                return
            peer = _Peer(int(hello["process"]), str(hello["name"]), reader, writer)
            refusal = self._refusal(peer.process, int(hello["count"]))
            if refusal is not None:
                peer.send(refused=refusal)
                return
            self._peers[peer.process] = peer
            self._met = not self._absent()
            if self._met:
                self._all_came.set()
            await self._watch(peer)

    def _refusal(self, process: int, count: int) -> str | None:
        """Return why a connecting process is refused; None if it is accepted."""
        if count != self._count:
            return (
                f"this process expects {count} processes and process 0 expects {self._count}; "
                "start all with the same --num_processes."
            )
        if process in self._peers:
            return (
                f"there is a process {process} already, on {self._peers[process].name}; "
                "give each process another --process_id."
            )
        return None

    def _absent(self) -> list[int]:
        return [process for process in range(1, self._count) if process not in self._peers]

    async def _connect_to_first(self) -> None:
        """Others: connect to process 0, and wait until all have connected."""
        host, port = self._address
        deadline = self._loop.time() + self._limit
        problem = "no answer"
        reminder = self._start(self._print_who_is_missing())
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        reader, writer = await asyncio.open_connection(host, port)
                except OSError as error:
                    problem = os.strerror(error.errno) if error.errno else str(error) or problem
                else:
                    # From here on, process 0 enforces the time limit.
                    if await self._handshake(_Peer(0, host, reader, writer)):
                        return
                    problem = "it exited, or another program listens there"
                await asyncio.sleep(_RETRY)
                if self._loop.time() >= deadline:
                    raise HostError(
                        f"process 0 could not be reached at {host}:{port} within {self._limit:g} "
                        f"seconds ({problem}); check its log, or correct --coordinator_address."
                    )
        finally:
            reminder.cancel()

    async def _handshake(self, first: _Peer) -> bool:
        """Wait for process 0's confirmation; False if it disconnected before all had connected."""
        first.send(
            hello=_PROTOCOL, process=self._process, count=self._count, name=socket.gethostname()
        )
        with contextlib.ExitStack() as closing, contextlib.suppress(TimeoutError):
            closing.callback(first.writer.close)
            while (message := await self._receive(first.reader)) is not None:
                if "hello" in message:
                    break  # TCP self-connection, possible on an ephemeral port without a listener
                if "refused" in message:
                    raise UserError(message["refused"])
                self._waiting_for = message.get("waiting_for", [])
                if "too_late" in message:
                    raise HostError(_did_not_connect(self._waiting_for, message["too_late"]))
                if "met" in message:
                    closing.pop_all()
                    first.name = message["met"]
                    self._peers[0] = first
                    self._met = True
                    self._start(self._watch(first))
                    self._start(self._send_heartbeats())
                    return True
        return False

    async def _print_who_is_missing(self) -> None:
        """Print the missing processes, if waiting takes long."""
        await asyncio.sleep(_QUIET_SECONDS)
        absent = self._absent() if self._process == 0 else self._waiting_for or [0]
        print(f"waiting for {_processes(absent)}", file=sys.stderr, flush=True)

    # Heartbeats

    async def _send_heartbeats(self) -> None:
        while True:
            absent = [] if self._met else self._absent()
            self._broadcast(**({"waiting_for": absent} if absent else {}))
            await asyncio.sleep(min(1.0, self._limit / _HEARTBEATS_PER_LIMIT / 2))

    async def _receive(self, reader: asyncio.StreamReader) -> Message | None:
        """Return the next message other than a heartbeat; None if the connection was closed.

        Raises:
          TimeoutError: no message for the time limit.
        """
        quiet = 0
        while True:
            try:
                line = await asyncio.wait_for(
                    reader.readline(), self._limit / _HEARTBEATS_PER_LIMIT
                )
                message = json.loads(line) if line.endswith(b"\n") else None
            except TimeoutError:
                quiet += 1
                if quiet == _HEARTBEATS_PER_LIMIT:
                    raise
                continue
            except (OSError, ValueError):  # a broken connection, or not our protocol
                return None
            quiet = 0
            if not isinstance(message, dict):
                return None
            if message:
                return message

    async def _watch(self, peer: _Peer) -> None:
        """Handle a process's messages until its connection is closed."""
        reason = "its connection broke"
        try:
            while (message := await self._receive(peer.reader)) is not None:
                if "end" in message:
                    peer.aborted = True
                    self._end_heard.set()
                    self._start(self._end(peer, message["end"], message["status"], message["lost"]))
                elif "done" in message:
                    peer.done = True
                    self._check_done()
        except TimeoutError:
            reason = f"no heartbeat for {self._limit:g} seconds"
        peer.gone.set()
        peer.writer.close()
        if not self._met:
            del self._peers[peer.process]  # it may connect again
        elif not (peer.done or peer.aborted):
            sentence = (
                f"process {peer.process} on {peer.name} was lost ({reason}); start all processes "
                "again: training resumes from its last checkpoint."
            )
            await self._end(peer, sentence, EXIT_LOST_HOST, lost=True)

    async def _end(self, source: _Peer, sentence: str, status: int, lost: bool) -> None:
        """End this process, because another was lost or has aborted."""
        if self.ended.is_set():
            return
        if lost:
            self.lost.set()
        self.ended.set()
        if self._process == 0:
            self._broadcast(end=sentence, status=status, lost=lost)
        if not lost:
            await asyncio.sleep(GRACE)
        await self._wait_for_peers_to_exit(GRACE + 1, source)
        self._on_end(sentence, status)  # immediately: JAX may be about to abort this process

    async def _abort(self, sentence: str, status: int) -> None:
        self.ended.set()  # ignore what other processes report from now on
        self._broadcast(end=sentence, status=status, lost=False)
        if self._process != 0:
            # Wait for process 0's broadcast, which comes back here too: closing a connection with
            # unread input can discard what was sent through it.
            await _within(GRACE, self._end_heard.wait())
        await self._wait_for_peers_to_exit(GRACE + 1)

    async def _wait_for_peers_to_exit(self, seconds: float, but: _Peer | None = None) -> None:
        """On process 0, wait for the others' exit: JAX aborts them as soon as process 0 is gone."""
        if self._process == 0:
            others = [peer.gone.wait() for peer in self._peers.values() if peer is not but]
            await _within(seconds, asyncio.gather(*others))

    # Barrier

    async def _barrier(self) -> None:
        self._self_done = True
        if self._process != 0:
            self._broadcast(done=True)
        self._check_done()
        await self._all_done.wait()
        await self._wait_for_peers_to_exit(self._limit)

    def _check_done(self) -> None:
        """Process 0 is done when all others are, and broadcasts that to them."""
        if all(peer.done for peer in self._peers.values()) and self._self_done:
            if self._process == 0:
                self._broadcast(done=True)
            self._all_done.set()

    # Helpers

    def _broadcast(self, **message: Any) -> None:
        for peer in self._peers.values():
            peer.send(**message)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # asyncio keeps weak references only
        task.add_done_callback(self._tasks.discard)
        return task

    async def _close(self) -> None:
        for peer in self._peers.values():
            peer.writer.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)  # let asyncio close the sockets


async def _within(seconds: float, work: Awaitable[Any]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(work, seconds)


def _listen(port: int) -> socket.socket:
    """Listen at a port, on all addresses of this host.

    Raises:
      UserError: the port is in use, or not allowed.
    """
    dual = socket.has_dualstack_ipv6()
    try:
        try:
            family = socket.AF_INET6 if dual else socket.AF_INET
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            if not dual or error.errno == errno.EADDRINUSE:
                raise
            return socket.create_server(("", port))  # a host with IPv6 disabled
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port} of {socket.gethostname()} "
            f"({error.strerror}); give --coordinator_address another port."
        ) from error


def _did_not_connect(absent: list[int], limit: float) -> str:
    return (
        f"{_processes(absent)} did not connect within {limit:g} seconds; check the log there, or "
        "allow more time with --distributed_timeout."
    )


def _processes(numbers: list[int]) -> str:
    return f"process{'es' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
