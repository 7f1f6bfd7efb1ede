"""Programs of the project, run as users run them."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
_DEVICES = "--xla_force_host_platform_device_count="


def xla_flags(devices: int = 1) -> str:
    """Return this process's own XLA_FLAGS, but for so many virtual CPU devices."""
    others = re.sub(rf"{_DEVICES}\S*", "", os.environ["XLA_FLAGS"])
    return " ".join([*others.split(), f"{_DEVICES}{devices}"])


def run(
    *arguments: str | Path,
    devices: int = 1,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run Python in the project's folder, with so many virtual CPU devices, to its end.

    Args:
      arguments: of Python: a script and its arguments, say.
      devices: of the process.
      env: variables besides this process's own.
      timeout: in seconds.
    """
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | settings | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
