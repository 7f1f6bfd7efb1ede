"""Workdirs as runs leave them, written by hand."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resnext_jax.configs import digits_resnext29, imagenet
from resnext_jax.evaluation.eval_file import EVAL_FILE, merge_into
from resnext_jax.runs.log import METRICS_FILE
from resnext_jax.runs.workdir import DATA_SET_FILE, write_config

EPOCH_STEPS = 10


def digits(model: str = "resnext29_1x4d", /, **fields: Any) -> ConfigDict:
    """Return the demo's config, with some fields changed."""
    return changed(digits_resnext29.get_config(), {"model.name": model, **fields})


def imagenet_run(choice: str = "resnet50", /, **fields: Any) -> ConfigDict:
    """Return the paper's recipe, with some fields changed."""
    return changed(imagenet.get_config(choice), fields)


def changed(config: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
    """Set fields by their dotted names."""
    config.update_from_flattened_dict(fields)
    return config


def of_training(epoch: float, error: float) -> dict[str, Any]:
    """Return a record of training."""
    return _record(epoch, error) | {"split": "train"}


def of_a_test(epoch: float, error: float, weights: str = "raw", /, **more: float) -> dict[str, Any]:
    """Return a record of a test."""
    return _record(epoch, error) | {"split": "test", "weights": weights} | more


def _record(epoch: float, error: float) -> dict[str, Any]:
    step = round(epoch * EPOCH_STEPS)
    errors = {"top1_error": error, "top5_error": error / 4}
    return {"step": step, "epoch": epoch, "loss": error / 50} | errors


def write_run(
    workdir: Path,
    config: ConfigDict,
    error: float = 20.0,
    *,
    ema: float | None = None,
    epochs: float | None = None,
    **more: float,
) -> str:
    """Write a run that has trained so many epochs (None: all), and was tested half-way too.

    Args:
      workdir: its folder, made here.
      config: of the run.
      error: top-1 error of the last test; 10 more half-way.
      ema: that of the averaged weights, None where there are none.
      epochs: how far it came.
      **more: further numbers of the last test.

    Returns:
      The workdir as a string.
    """
    end = float(config.num_epochs if epochs is None else epochs)
    records = [of_training(end / 2, error + 5), of_a_test(end / 2, error + 10)]
    records += [of_training(end, error - 5), of_a_test(end, error, **more)]
    if ema is not None:
        records.append(of_a_test(end, ema, "ema"))
    workdir.mkdir(parents=True)
    write_config(config, workdir)
    classes = [str(label) for label in range(10)]
    stored = {"name": config.data.name, "version": "1.0.0", "classes": classes}
    (workdir / DATA_SET_FILE).write_text(json.dumps(stored))
    write_records(workdir, records)
    return str(workdir)


def write_records(workdir: Path, records: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl`."""
    (workdir / METRICS_FILE).write_text("".join(json.dumps(one) + "\n" for one in records))


def write_evaluation(
    workdir: Path,
    error: float,
    step: int,
    weights: str = "raw",
    *,
    size: int = 224,
    interpolation: str = "bicubic",
    version: str = "1.0.0",
    members: int = 1,
) -> None:
    """Add to `eval.json` what eval.py finds on one crop of ImageNet's images, as large as they."""
    protocol = {
        "crops": "centre",
        "image_size": size,
        "short_sides": [size],
        "interpolation": interpolation,
        "antialias": True,
    }
    evaluation = {
        "members": [{"step": step, "weights": weights}] * members,
        "protocol": protocol,
        "data": {"name": "imagenet2012", "version": version, "split": "test", "classes": 1000},
        "top1_error": error,
        "top5_error": error / 4,
    }
    merge_into(workdir / EVAL_FILE, {json.dumps(evaluation): evaluation})
