"""What a run costs the devices: profiler traces and memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

FOLDER = "profile"


class Profiler:
    """Writes a profiler trace of some steps to `WORKDIR/profile`, for TensorBoard or Perfetto."""

    def __init__(self, workdir: Path, steps: Sequence[int]):
        """Trace from the first to the last of `steps`; nothing where it is empty."""
        self._folder = workdir / FOLDER
        self._first, self._last = steps or (0, 0)
        self._active = False

    def before(self, step: int) -> None:
        """Begin, if it is the first step to be traced."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._active = True

    def after(self, step: int, result: Any) -> bool:
        """Stop after the last step, once its `result` is ready; return whether it was the last."""
        if not (self._active and step == self._last):
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """End a trace that is still open."""
        if self._active:
            self._active = False
            jax.profiler.stop_trace()


def peak_memory() -> int | None:
    """Return the most bytes in use so far on any of this host's devices; None where unknown."""
    peaks = [
        stats["peak_bytes_in_use"]
        for stats in (device.memory_stats() for device in jax.local_devices())
        if stats and "peak_bytes_in_use" in stats
    ]
    return max(peaks, default=None)
