"""`eval.json`: the evaluations of a workdir, or of weight files.

An object of evaluations, each by a key that says what was scored and how. One that is made again
takes the place of the one before it, all others stay. Strict JSON.
"""

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
import jaxlib
import numpy as np

import resnext_jax
from resnext_jax.errors import UserError
from resnext_jax.evaluation.outputs import locked_folder, write_output
from resnext_jax.evaluation.table import row_names
from resnext_jax.files import strict_json

if TYPE_CHECKING:
    from resnext_jax.evaluation.run import EvaluationReport

EVAL_FILE = "eval.json"
_FLAG = "--output"


def as_json(report: "EvaluationReport") -> dict[str, dict[str, Any]]:
    """Return the evaluations of a report, by their keys; one for each row.

    Each has

    - `members`: a list of one, or of those of an ensemble: `origin` (the workdir or file, as it was
      given), `network`, `step` (null for a file), `weights` ("raw" or "ema") and `sha256` (see
      `LoadedWeights.hash`);
    - `protocol` (see `Protocol`) and `data`: `name`, `version`, `split`, `classes`;
    - `images`, `skipped`, `loss`, `top1_error`, `top5_error` (in percent), and where they were
      asked for `top1_error_1000way`, `top5_error_1000way` (or of another number of classes);
    - `versions`, `platform`, `devices` and `date` (ISO 8601, UTC).
    """
    source, protocol = report.source, report.protocol
    hashes = {member: member.hash() for row in report.rows for member in row.members}
    made = {
        "protocol": protocol.as_json(),
        "data": {
            "name": source.name,
            "version": source.version,
            "split": source.split,
            "classes": source.num_classes,
        },
        "versions": {
            "resnext_jax": resnext_jax.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
        },
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    how = f"{source.name} {source.split}, {protocol}, {protocol.resizing}"
    found = {}
    for name, row in zip(row_names(report), report.rows, strict=True):
        members = [
            {
                "origin": member.origin,
                "network": member.model,
                "step": member.step,
                "weights": member.weights,
                "sha256": hashes[member],
            }
            for member in row.members
        ]
        result = row.result
        numbers = {"images": result.images, "skipped": result.skipped} | result.as_record()
        numbers.pop("skipped_images", None)
        found[f"{name}: {how}"] = {"members": members} | made | numbers
    return found


def read_evaluations(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file of evaluations; {} where there is none.

    Raises:
      UserError: it is damaged, or something else.
    """
    try:
        stored = json.loads(path.read_text())["evaluations"]
        if not all(_is_evaluation(one) for one in stored.values()):
            raise ValueError("an evaluation lacks its members, protocol, data or errors")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no file of evaluations, or damaged ({error}); move it away."
        ) from error
    return dict(stored)


def _is_evaluation(one: Any) -> bool:
    return (
        isinstance(one["protocol"]["crops"], str)
        and {"name", "version"} <= one["data"].keys()
        and len(one["members"]) > 0
        and all({"step", "weights"} <= member.keys() for member in one["members"])
        and all(isinstance(one[name], int | float) for name in ("top1_error", "top5_error"))
    )


def merge_into(path: Path, evaluations: dict[str, dict[str, Any]]) -> None:
    """Add evaluations to a file.

    Raises:
      UserError: it cannot be written, or what is there is no file of evaluations.
    """
    with locked_folder(path.parent):
        merged = read_evaluations(path) | evaluations
        text = strict_json({"evaluations": merged}, indent=2)
        write_output(path, text + "\n", _FLAG)
