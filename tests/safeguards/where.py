"""Where the safeguards find what they watch: all that a move has to change of them."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from resnext_jax.detection import testing
from resnext_jax.detection import training as detection
from resnext_jax.evaluation import report
from resnext_jax.runs.manifest import write_manifest
from resnext_jax.training import classification

__all__ = ["evaluate", "train", "write_manifest"]


def train(config: ConfigDict, workdir: Any) -> Any:
    """Do what train.py does."""
    task = classification if config.task == "classification" else detection
    return task.train(config, workdir)


def evaluate(config: ConfigDict, workdirs: Sequence[str]) -> Any:
    """Do what eval.py does."""
    if config.task == "classification":
        return report.evaluate_and_write(config, list(workdirs), [])
    return testing.evaluate_detector(config, list(workdirs), [])
