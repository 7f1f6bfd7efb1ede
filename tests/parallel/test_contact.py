"""Processes meet, part, and hear of each other's ends; here they are threads of one process."""

import asyncio
import json
import queue
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from resnext_jax.errors import EXIT_LOST_HOST, HostError, UserError
from resnext_jax.parallel import contact as contact_module
from resnext_jax.parallel.contact import Contact
from tests.training.hosts import free_port

HERE = socket.gethostname()


class Process:
    """A contact, and what it tells of the ends of others."""

    def __init__(self, number: int, port: int, count: int, limit: float):
        self.ends: queue.Queue[tuple[str, int]] = queue.Queue()
        self.contact = Contact(
            ("127.0.0.1", port),
            num_processes=count,
            process_id=number,
            time_limit=limit,
            on_end=self._end,
        )

    def end(self) -> tuple[str, int]:
        """Wait until another's end is told."""
        return self.ends.get(timeout=10)

    def leave(self) -> None:
        """Close all connections, as the operating system does for a process that was killed."""
        self.contact.close()

    def _end(self, sentence: str, status: int) -> None:
        self.ends.put((sentence, status))
        threading.Thread(target=self.leave).start()


Make = Callable[..., Process]


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_module, "GRACE", 0.2)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def make(port: int) -> Iterator[Make]:
    made: list[Process] = []

    def make(number: int, count: int = 2, limit: float = 10.0) -> Process:
        made.append(Process(number, port, count, limit))
        return made[-1]

    yield make
    for process in made:
        process.leave()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def connect(threads: ThreadPoolExecutor, *processes: Process) -> list[Future[None]]:
    return [threads.submit(process.contact.connect) for process in processes]


def together(threads: ThreadPoolExecutor, make: Make, count: int) -> list[Process]:
    processes = [make(number, count) for number in range(count)]
    for met in connect(threads, *processes):
        met.result(10)
    return processes


class Stranger:
    """A connection to process 0 that says what it likes."""

    def __init__(self, port: int):
        deadline = time.monotonic() + 5
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def greet(self, number: int, count: int) -> None:
        """Speak as a process would."""
        hello = {"hello": "resnext_jax", "process": number, "count": count, "name": "afar"}
        self.socket.sendall(json.dumps(hello).encode() + b"\n")


def test_all_wait_for_the_last_at_both_ends(threads: ThreadPoolExecutor, make: Make) -> None:
    first, second, third = make(0, 3), make(1, 3), make(2, 3)
    early = connect(threads, third, first)
    time.sleep(0.3)
    assert not any(met.done() for met in early)
    second.contact.connect()
    for met in early:
        met.result(5)

    parted = [threads.submit(process.contact.barrier_and_close) for process in (first, third)]
    time.sleep(0.3)
    assert not any(part.done() for part in parted)
    second.contact.barrier_and_close()
    for part in parted:
        part.result(5)
    assert all(process.ends.empty() for process in (first, second, third))


def test_the_port_is_free_once_all_have_met(
    threads: ThreadPoolExecutor, make: Make, port: int
) -> None:
    first, second = together(threads, make, 2)
    with socket.create_server(("", port)):
        pass
    parted = threads.submit(first.contact.barrier_and_close)
    second.contact.barrier_and_close()
    parted.result(5)


def test_a_missing_process_is_named_by_all(threads: ThreadPoolExecutor, make: Make) -> None:
    begin = time.monotonic()
    for met in connect(threads, make(0, 4, limit=2.0), make(2, 4, limit=2.0)):
        with pytest.raises(HostError, match="processes 1, 3 did not connect within 2 seconds"):
            met.result(10)
    assert time.monotonic() - begin < 6


def test_who_came_and_left_when_told_is_not_missing(
    threads: ThreadPoolExecutor, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = contact_module._within

    async def slow(seconds: float, work: Awaitable[Any]) -> None:
        await within(seconds, work)
        await asyncio.sleep(0.3)  # process 2 has gone by now

    monkeypatch.setattr(contact_module, "_within", slow)
    for met in connect(threads, make(0, 4, limit=2.0), make(2, 4, limit=2.0)):
        with pytest.raises(HostError, match="processes 1, 3 did not connect within 2 seconds"):
            met.result(10)


def test_who_has_come_waits_as_long_as_the_first_process(
    threads: ThreadPoolExecutor, make: Make
) -> None:
    begin = time.monotonic()
    (hasty,) = connect(threads, make(1, 3, limit=1.5))
    time.sleep(0.3)
    (first,) = connect(threads, make(0, 3, limit=1.75))
    for met in (hasty, first):
        with pytest.raises(HostError, match=r"process 2 did not connect within 1\.75 seconds"):
            met.result(10)
    assert 2 < time.monotonic() - begin < 6


def test_the_first_process_is_missing(make: Make, port: int) -> None:
    with pytest.raises(HostError) as error:
        make(1, limit=0.5).contact.connect()
    assert f"process 0 could not be reached at 127.0.0.1:{port} within 0.5 seconds" in str(
        error.value
    )
    assert "Connection refused" in str(error.value)
    assert error.value.exit_status == EXIT_LOST_HOST


def test_who_waits_long_is_told_for_whom(
    threads: ThreadPoolExecutor,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    together(threads, make, 2)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(contact_module, "_QUIET_SECONDS", 0.1)
    with pytest.raises(HostError):
        Process(0, free_port(), 3, limit=1.0).contact.connect()
    assert capfd.readouterr().err == "waiting for processes 1, 2\n"


def test_processes_that_do_not_fit_together(threads: ThreadPoolExecutor, make: Make) -> None:
    first = make(0, 3)
    waiting, second = connect(threads, first, make(1, 3))
    while first.contact._absent() != [2]:
        time.sleep(0.01)
    with pytest.raises(UserError, match="expects 4 processes and process 0 expects 3"):
        make(2, 4).contact.connect()
    with pytest.raises(UserError, match=f"there is a process 1 already, on {HERE}") as error:
        make(1, 3).contact.connect()
    assert error.value.exit_status == 2
    assert not waiting.done()
    make(2, 3).contact.connect()
    waiting.result(5)
    second.result(5)


def test_strangers_and_leavers_are_no_processes(
    threads: ThreadPoolExecutor, make: Make, port: int
) -> None:
    (waiting,) = connect(threads, make(0, 3))
    strangers = [Stranger(port) for _ in range(5)]
    strangers[1].socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[2].socket.sendall(b'["hello"]\n')
    strangers[3].socket.sendall(b'{"hello": "resnext_jax", "process": "me"}\n')
    strangers[4].greet(1, 3)
    strangers[4].socket.close()
    time.sleep(0.2)
    assert not waiting.done()
    for met in (*connect(threads, make(1, 3), make(2, 3)), waiting):
        met.result(5)
    for stranger in strangers:
        stranger.socket.close()


def test_a_port_that_is_taken(make: Make, port: int) -> None:
    with (
        socket.create_server(("", port)),
        pytest.raises(UserError, match=f"cannot listen at port {port} of {HERE}") as error,
    ):
        make(0).contact.connect()
    assert "Address already in use" in str(error.value)


@pytest.mark.parametrize("lost", [0, 1])
def test_all_hear_who_was_lost(threads: ThreadPoolExecutor, make: Make, lost: int) -> None:
    processes = together(threads, make, 3)
    begin = time.monotonic()
    processes[lost].leave()
    for number, process in enumerate(processes):
        if number != lost:
            sentence, status = process.end()
            assert sentence.startswith(f"process {lost} on {HERE} was lost (its connection broke)")
            assert status == EXIT_LOST_HOST
            assert process.contact.lost.is_set()
    assert time.monotonic() - begin < 8  # silence would be noticed after 10 seconds


def test_who_is_silent_is_lost(threads: ThreadPoolExecutor, make: Make, port: int) -> None:
    first = make(0, limit=1.5)
    (met,) = connect(threads, first)
    stranger = Stranger(port)
    stranger.greet(1, 2)
    met.result(5)
    begin = time.monotonic()
    sentence, _ = first.end()
    assert sentence.startswith("process 1 on afar was lost (no heartbeat for 1.5 seconds)")
    assert 1 < time.monotonic() - begin < 6
    stranger.socket.close()


def test_who_shows_life_is_not_lost(threads: ThreadPoolExecutor, make: Make) -> None:
    processes = [make(0, limit=1.0), make(1, limit=1.0)]
    for met in connect(threads, *processes):
        met.result(5)
    time.sleep(1.5)
    assert all(process.ends.empty() for process in processes)
    processes[1].leave()
    assert processes[0].end()[1] == EXIT_LOST_HOST


@pytest.mark.parametrize("gives_up", [0, 1])
def test_all_hear_why_one_gave_up(threads: ThreadPoolExecutor, make: Make, gives_up: int) -> None:
    processes = together(threads, make, 3)
    waiting = [
        threads.submit(process.contact.barrier_and_close)
        for number, process in enumerate(processes)
        if number != gives_up
    ]
    processes[gives_up].contact.abort("it had enough", 7)
    processes[gives_up].leave()
    for number, process in enumerate(processes):
        if number != gives_up:
            assert process.end() == ("it had enough", 7)
            assert process.contact.ended.is_set()
            assert not process.contact.lost.is_set()
    assert not any(part.done() and not part.exception() for part in waiting)


def test_an_end_is_told_once(threads: ThreadPoolExecutor, make: Make) -> None:
    first, second, third = together(threads, make, 3)
    second.contact.abort("the cause", 2)
    second.leave()
    third.leave()
    assert first.end() == ("the cause", 2)
    time.sleep(0.3)
    assert first.ends.empty()
    assert threading.active_count() < 20
