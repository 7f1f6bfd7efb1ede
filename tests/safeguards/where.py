"""Where the safeguards find what they watch: all that a move has to change of them."""

import pkgutil
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from resnext_jax.config.fields import task_entry
from resnext_jax.runs.manifest import write_manifest
from resnext_jax.training.loop import train

__all__ = ["evaluate", "train", "write_manifest"]


def evaluate(config: ConfigDict, workdirs: Sequence[str]) -> Any:
    """Do what eval.py does."""
    return pkgutil.resolve_name(task_entry(config).evaluation)(config, list(workdirs), [])
