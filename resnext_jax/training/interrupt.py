"""Stopping a run without losing it."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from resnext_jax.errors import EXIT_INTERRUPTED, STOP_SIGNALS

# Seconds after the first Ctrl-C in which another may be the same one, delivered twice: by the
# terminal and by a program that started this one.
_SAME = 2.0
# Seconds in which Python may act on the last Ctrl-C.
_GRACE = 1.0


class StopRequest:
    """While open, notes `STOP_SIGNALS` instead of dying of them.

    The first signal prints a line; the training loop looks at `signal_number`
    between steps, saves and leaves. More signals change nothing, except one:
    Ctrl-C (SIGINT), 2 seconds or more after the first Ctrl-C, acts at once, as
    it would have without this. Where Python cannot act, because it waits for a
    compiler or a device, the process is ended with status 130 a second later.

    A signal that is ignored already (under nohup, in a script's background)
    stays ignored.
    """

    def __init__(
        self, *, process_ends: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with nothing requested.

        Args:
          process_ends: the process ends soon after this is closed: signals are
            then ignored, so that none changes the exit status.
          clock: seconds.
        """
        self._process_ends = process_ends
        self._clock = clock
        self._first: int | None = None
        self._interrupted: float | None = None  # when the first SIGINT came
        self._previous: dict[int, Any] = {}
        self._hearing = threading.Lock()
        self._ending = threading.Event()
        self._repeated = threading.Event()  # the last Ctrl-C was sent once more, see `_end`
        self._acted = False
        self._closed = threading.Event()

    @property
    def signal_number(self) -> int | None:
        """The first signal that came, None before there is one."""
        self._hear()
        return self._first

    def __enter__(self) -> "StopRequest":
        """Take over the signals (only possible in the main thread)."""
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            self._previous = {
                number: handler
                for number, handler in handlers.items()
                if handler is not signal.SIG_IGN
            }
            # The system writes the signals there in their order, also while Python is busy: its
            # handlers run late then, lowest number first, and once for several of a kind.
            self._heard, self._written = socket.socketpair()
            self._written.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(
                self._written.fileno(), warn_on_full_buffer=False
            )
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
            for number in self._previous:
                signal.signal(number, self._act)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back, or ignore them until the process has ended."""
        if not hasattr(self, "_listener") or self._closed.is_set():
            return
        if self._ending.is_set():
            # What `_end` sends would otherwise meet the handlers that are given back here.
            self._repeated.wait(_GRACE)
        for number, handler in self._previous.items():
            if self._process_ends:
                handler = signal.SIG_IGN
            # None for a handler that is not Python's, which cannot be given back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._hear()
        self._closed.set()
        self._written.close()  # ends the listener
        self._listener.join()
        self._heard.close()

    def _act(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread: do nothing, but for the last Ctrl-C."""
        if number == signal.SIGINT and self._ending.is_set() and not self._acted:
            self._acted = True
            handler = self._previous[number]
            if callable(handler):
                handler(number, frame)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while self._heard.recv(1, socket.MSG_PEEK):
                self._hear()

    def _hear(self) -> None:
        """Take in the signals that have come, in any thread."""
        with self._hearing:
            if not hasattr(self, "_listener") or self._closed.is_set():
                return
            with contextlib.suppress(BlockingIOError):
                for number in self._heard.recv(4096, socket.MSG_DONTWAIT):
                    if number in self._previous:
                        self._note(number)

    def _note(self, number: int) -> None:
        now = self._clock()
        line = f"{signal.Signals(number).name}: the run ends after this step, with its state saved"
        if number == signal.SIGINT and self._interrupted is None:
            self._interrupted = now
            _say(
                f"{line}; Ctrl-C once more, {_SAME:g} seconds from now or later, ends it at once, "
                "without saving"
            )
        elif self._first is None:
            _say(line)
        elif (
            number == signal.SIGINT
            and self._interrupted is not None
            and now - self._interrupted >= _SAME
            and not self._ending.is_set()
        ):
            self._ending.set()
            threading.Thread(target=self._end, daemon=True).start()
        if self._first is None:
            self._first = number

    def _end(self) -> None:
        """End the run, and the process if Python does not."""
        # Once more: its handler may have run before it was clear that it was the last.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        self._repeated.set()
        if not self._closed.wait(_GRACE):
            _say("ended at once, without saving; the same command resumes")
            os._exit(EXIT_INTERRUPTED)


def _say(line: str) -> None:
    """Print to stderr past Python's own stream, which the main thread may hold."""
    # A terminal's line has a progress bar or ^C in it.
    text = ("\n" if os.isatty(2) else "") + line + "\n"
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        os.write(2, text.encode())
