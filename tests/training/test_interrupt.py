"""Signals are noted; only Ctrl-C once more, 2 seconds later, acts."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from resnext_jax.errors import STOP_SIGNALS
from resnext_jax.training import interrupt
from resnext_jax.training.interrupt import StopRequest
from tests.programs import ROOT

OTHERS = tuple(number for number in STOP_SIGNALS if number != signal.SIGINT)


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return them."""
        return self.now


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """The handlers of the test run itself."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that got through to the handlers of the program around."""
    monkeypatch.setattr(interrupt, "_GRACE", 100.0)  # however slow the tests are
    seen: list[int] = []

    def act(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    for number in STOP_SIGNALS:
        signal.signal(number, act)
    return seen


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


def test_nothing_is_requested_at_first(acted: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    before = handlers()
    with StopRequest() as stop:
        assert stop.signal_number is None
        assert not set(handlers()) & set(before)
    assert stop.signal_number is None
    assert handlers() == before
    assert acted == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_noted_and_prints_a_line(
    acted: list[int], capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = handlers()
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.signal_number == number
        assert acted == []
    assert handlers() == before
    assert stop.signal_number == number
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{number.name}: the run ends after this step, with its state saved")
    hint = "Ctrl-C once more, 2 seconds from now or later, ends it at once, without saving"
    assert (hint in line) == (number == signal.SIGINT)


@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_more_signals_change_nothing(
    acted: list[int], capfd: pytest.CaptureFixture[str], first: signal.Signals
) -> None:
    """All kinds, at any distance but for Ctrl-C."""
    clock = Clock()
    with StopRequest(clock=clock) as stop:
        for number in (first, first, *STOP_SIGNALS, *reversed(STOP_SIGNALS)):
            signal.raise_signal(number)
            assert stop.signal_number == first
        clock.now += 1.9
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == first  # when it is heard is when it counts as come
        clock.now += 1000
        for number in OTHERS:
            signal.raise_signal(number)
        assert stop.signal_number == first
        assert acted == []
    # One line, and that of the first Ctrl-C.
    names = [line.split(":")[0] for line in capfd.readouterr().err.splitlines()]
    assert names == ([first.name, "SIGINT"] if first != signal.SIGINT else ["SIGINT"])


@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_the_second_ctrl_c_acts_two_seconds_after_the_first(
    acted: list[int], first: signal.Signals
) -> None:
    clock = Clock()
    with StopRequest(clock=clock) as stop:
        signal.raise_signal(first)
        assert stop.signal_number == first
        if first != signal.SIGINT:  # which counts for nothing
            clock.now += 10
            signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == first
        clock.now += 2.0
        assert acted == []
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == first
        while not acted:
            pass  # the handler runs between two steps of this loop
        signal.raise_signal(signal.SIGINT)
    assert acted == [signal.SIGINT]


@pytest.mark.usefixtures("acted")
def test_it_acts_as_pythons_own() -> None:
    clock = Clock()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequest(clock=clock) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        clock.now += 2.0
        with pytest.raises(KeyboardInterrupt):
            raise_and_wait(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def raise_and_wait(number: int) -> None:
    signal.raise_signal(number)
    threading.Event().wait(60)


@pytest.mark.parametrize("process_ends", [False, True])
def test_what_was_ignored_stays_ignored(acted: list[int], process_ends: bool) -> None:
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with StopRequest(process_ends=process_ends) as stop:
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.raise_signal(number)
            assert signal.getsignal(number) == signal.SIG_IGN
        assert [stop.signal_number] == [None]
        signal.raise_signal(signal.SIGTERM)
        assert [stop.signal_number] == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_process_that_ends_ignores_them_from_then_on(acted: list[int]) -> None:
    with StopRequest(process_ends=True):
        pass
    assert handlers() == [signal.SIG_IGN] * len(STOP_SIGNALS)


def test_after_it_is_closed_signals_act(acted: list[int]) -> None:
    with StopRequest() as stop:
        pass
    signal.raise_signal(signal.SIGTERM)
    assert acted == [signal.SIGTERM]
    assert stop.signal_number is None


def test_an_error_inside_gives_the_signals_back(acted: list[int]) -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert handlers() == before


def test_outside_the_main_thread_it_leaves_the_signals_alone(acted: list[int]) -> None:
    before = handlers()
    outcome: list[object] = []

    def work() -> None:
        try:
            with StopRequest() as stop:
                outcome.append(stop.signal_number)
                outcome.append(handlers() == before)
        except ValueError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [None, True]
    assert handlers() == before


def run_child(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which `busy(n)` is a call that Python's handlers wait for, as compiling is.

    `start(wait, *numbers)` sends signals from another thread, with `wait` seconds before each.
    """
    begin = """
import hashlib, os, signal, threading, time
from resnext_jax.training import interrupt
from resnext_jax.training.interrupt import StopRequest

def busy(rounds):
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)

def start(wait, *numbers):
    def send():
        for number in numbers:
            time.sleep(wait)
            os.kill(os.getpid(), number)
    threading.Thread(target=send, daemon=True).start()
"""
    command = [sys.executable, "-c", begin + code]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_first_is_the_first_that_came_not_the_first_that_python_handles() -> None:
    """Python's handlers would run late, and lowest number first."""
    result = run_child("""
with StopRequest() as stop:
    start(0.05, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    busy(2_000_000)
    print(stop.signal_number)
""")
    assert (result.returncode, result.stdout) == (0, f"{int(signal.SIGTERM)}\n"), result.stderr


def test_the_last_ctrl_c_ends_the_process_where_python_cannot_act() -> None:
    result = run_child("""
interrupt._SAME, interrupt._GRACE = 0.2, 0.1
with StopRequest():
    start(0.25, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGINT)
    busy(2**31 - 1)
""")
    assert result.returncode == 130
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "SIGTERM",
        "SIGINT",
        "ended at once, without saving; the same command resumes",
    ]
