"""Profiler traces and memory."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from resnext_jax.training.profiling import Profiler, peak_memory


def test_traces_the_steps_asked_for(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, (2, 3))
    ended = []
    for step in range(1, 6):
        profiler.before(step)
        ended.append(profiler.after(step, jnp.ones(3) + step))
    assert ended == [False, False, True, False, False]
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000
    profiler.close()  # a second end is no error


def test_without_steps_nothing_is_traced(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, ())
    profiler.before(1)
    assert not profiler.after(1, None)
    profiler.close()
    assert list(tmp_path.iterdir()) == []


def test_a_trace_cut_short_is_written(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, (1, 100))
    profiler.before(1)
    assert not profiler.after(1, None)
    profiler.close()
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))


class Device:
    """Stands in for a device that tells, or does not tell, its memory."""

    def __init__(self, stats: dict[str, int] | None):
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        """Return what it was made with."""
        return self._stats


def test_peak_memory_is_the_fullest_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [Device({"peak_bytes_in_use": 5}), Device({"peak_bytes_in_use": 9}), Device(None)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert peak_memory() == 9
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None), Device({})])
    assert peak_memory() is None
