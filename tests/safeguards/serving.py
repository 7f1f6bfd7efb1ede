"""Commands run one after the other, in forks of a process that has imported what takes seconds."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests import programs
from tests.programs import ROOT, Served

_IMPORTS = (
    "jax",
    "flax.nnx",
    "optax",
    "orbax.checkpoint",
    "tensorflow_datasets",
    "cv2",
    "ml_collections",
    "tests.safeguards.where",
)


def environment() -> dict[str, str]:
    """Return variables with which commands do the same on all machines, from any test."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("JAX_")},
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Give what runs commands in a folder."""
    with programs.serving(*_IMPORTS, folder=folder, env=environment()) as run:
        yield run
