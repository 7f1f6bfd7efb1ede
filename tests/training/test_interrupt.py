"""The first signal is noted, the second acts."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from resnext_jax.training.interrupt import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def acted() -> Iterator[list[int]]:
    """Signals that got through to the handlers of the program around."""
    seen: list[int] = []

    def act(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, act) for number in SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


def test_nothing_is_requested_at_first(acted: list[int]) -> None:
    before = handlers()
    with StopRequest() as stop:
        assert stop.signal_number is None
        assert handlers() != before
    assert stop.signal_number is None
    assert handlers() == before
    assert acted == []


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted(acted: list[int], number: signal.Signals) -> None:
    before = handlers()
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.signal_number == number
        assert acted == []
    assert handlers() == before
    assert stop.signal_number == number


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_acts(
    acted: list[int], first: signal.Signals, second: signal.Signals
) -> None:
    with StopRequest() as stop:
        signal.raise_signal(first)
        signal.raise_signal(second)
        assert acted == [second]
        assert stop.signal_number == first


def test_the_second_ctrl_c_is_pythons_own() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_acts_where_python_cannot(number: int, status: int) -> None:
    """As while a program compiles: one long call, in which no handler of Python's runs."""
    code = f"""
import hashlib, os, threading, time
from resnext_jax.training.interrupt import StopRequest

def signal_twice():
    for _ in range(2):
        time.sleep(0.3)
        os.kill(os.getpid(), {int(number)})

with StopRequest():
    threading.Thread(target=signal_twice, daemon=True).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == status
    assert "stopped at once by the second signal" in result.stderr
