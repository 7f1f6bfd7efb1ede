"""Stopping a run without losing it."""

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds in which Python may act on the second signal by itself.
_GRACE = 1.0


class StopRequest:
    """While open, notes SIGINT (Ctrl-C) and SIGTERM instead of dying of them.

    The training loop looks at `signal_number` between steps, saves and leaves.
    A second signal acts at once, as it would have without this. Where Python
    cannot act, because it waits for a compiler or a device, the process is
    ended with status 130 or 143.
    """

    def __init__(self) -> None:
        """Start with nothing requested."""
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}
        self._closed = threading.Event()

    def __enter__(self) -> "StopRequest":
        """Take over the signals (only possible in the main thread)."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
            # Signals are sent here too, by the system and not by Python, which may be busy.
            self._heard, self._told = socket.socketpair()
            self._told.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        self._restore()
        if not self._closed.is_set() and hasattr(self, "_listener"):
            self._closed.set()
            signal.set_wakeup_fd(self._previous_fd)
            self._told.close()  # the listener hears the end
            self._listener.join()
            self._heard.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _listen(self) -> None:
        """End the process at the second signal, if Python does not."""
        signals = 0
        while byte := self._heard.recv(1):
            signals += byte[0] in _SIGNALS
            if signals == 2 and not self._closed.wait(_GRACE):
                os.write(2, b"stopped at once by the second signal; the same command resumes\n")
                os._exit(128 + byte[0])
