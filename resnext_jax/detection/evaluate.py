"""Detections as COCO's server takes them, and COCO's metrics, computed by pycocotools."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnext_jax.detection.coco import CocoSplit, load_json
from resnext_jax.errors import DataError, DivergedError, UserError, one_line
from resnext_jax.files import replacing

Row = dict[str, Any]

# In the order of pycocotools: precision, at IoU .50 to .95 unless a number says otherwise, of all,
# small, medium and large objects; recall with 1, 10 and 100 detections an image, and by size.
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)

# Decimals of pixels and of scores in a file.
_PIXEL_DECIMALS, _SCORE_DECIMALS = 3, 6


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """What was found in an image.

    Attributes:
      boxes: float32 `[n, 4]`, in pixels of the image as it is stored.
      scores: float32 `[n]`.
      classes: int32 `[n]`, from 1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def results_rows(split: CocoSplit, index: int, detections: Detections) -> list[Row]:
    """Say what was found in image `index` in COCO's format, with the file's own ids.

    Raises:
      DivergedError: a box or a score is not finite.
    """
    boxes = np.asarray(detections.boxes, np.float64).reshape(-1, 4)
    scores = np.asarray(detections.scores, np.float64)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DivergedError(
            f"detections of {split.path(index)} are not finite numbers; use weights of a training "
            "that has not diverged."
        )
    boxes[:, 2:] -= boxes[:, :2]
    categories = split.category_ids[np.asarray(detections.classes, np.int64) - 1]
    return [
        {
            "image_id": int(split.image_ids[index]),
            "category_id": category,
            "bbox": box,
            "score": score,
        }
        for category, box, score in zip(
            categories.tolist(),
            boxes.round(_PIXEL_DECIMALS).tolist(),
            scores.round(_SCORE_DECIMALS).tolist(),
            strict=True,
        )
    ]


def write_results(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Write rows of `results_rows` to a JSON file, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as draft:
            draft.write_text(json.dumps(list(rows), allow_nan=False))
    except OSError as error:
        raise UserError(
            f"results {path} cannot be written ({error.strerror or one_line(error)}); name another "
            "file, in a folder that is there."
        ) from error


def coco_metrics(
    annotations: str | os.PathLike[str] | Mapping[str, Any],
    rows: Sequence[Row],
    *,
    image_ids: Iterable[int] | None = None,
) -> dict[str, float]:
    """Measure detections as COCO does.

    Args:
      annotations: an `instances_*.json`, or what is in it.
      rows: of `results_rows`, of all images.
      image_ids: images to measure; None is all that the annotations name.

    Returns:
      `METRICS`, from 0 to 1; NaN where there is no object of a size.

    Raises:
      DataError: the annotations cannot be used, or a row is of an image or a category that they do
        not name.
    """
    name = "the annotations" if isinstance(annotations, Mapping) else str(annotations)
    content = annotations if isinstance(annotations, Mapping) else load_json(Path(annotations))
    lacking = [key for key in ("images", "categories", "annotations") if key not in content]
    if lacking:
        raise DataError(
            f"{name} cannot be measured against, without {' and '.join(lacking)}; name an "
            "instances_*.json, or send the results to COCO's server."
        )
    _check_ids(content, rows, name)
    truth = _indexed(content, content["annotations"])
    found = _indexed(content, rows)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells everything it does
        evaluation = COCOeval(truth, found, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(set(image_ids))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [float(value) for value in evaluation.stats]
    # -1 is said of what is not there.
    return {
        metric: value if value >= 0 else math.nan
        for metric, value in zip(METRICS, values, strict=True)
    }


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Lay metrics out in two lines, names over percentages; "-" where there is none."""
    values = ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in metrics.values()]
    width = max(map(len, [*metrics, *values])) + 1
    return "\n".join("".join(f"{cell:>{width}}" for cell in line) for line in (metrics, values))


def proposal_recall(
    split: CocoSplit,
    proposals: Callable[[int], np.ndarray],
    *,
    iou: float = 0.5,
    limits: Sequence[int] = (100, 300, 1000),
) -> dict[int, float]:
    """Measure how many objects the proposals cover.

    Args:
      split: the images and their objects; crowds do not count.
      proposals: of the image at an index, `[n, 4]` in pixels of the image as it is stored, best
        first.
      iou: an object is covered by a proposal of this intersection over union with it, at least.
      limits: numbers of proposals that are looked at.

    Returns:
      For each limit the share of objects covered, NaN if there are no objects.
    """
    covered, objects = dict.fromkeys(limits, 0), 0
    for index in range(len(split)):
        truth = split.ground_truth(index)
        boxes = _sized(truth.boxes[~truth.crowd])
        objects += len(boxes)
        found = _sized(np.asarray(proposals(index))[: max(limits)])
        if not len(boxes) or not len(found):
            continue
        hits = mask.iou(found, boxes, [0] * len(boxes)) >= iou
        for limit in limits:
            covered[limit] += int(hits[:limit].any(axis=0).sum())
    return {limit: covered[limit] / objects if objects else math.nan for limit in limits}


def _sized(boxes: np.ndarray) -> np.ndarray:
    """Turn x1, y1, x2, y2 into x, y, width, height; float64 `[n, 4]`, contiguous."""
    sized = np.array(boxes, np.float64, order="C").reshape(-1, 4)
    sized[:, 2:] -= sized[:, :2]
    return sized


def _check_ids(content: Mapping[str, Any], rows: Sequence[Row], name: str) -> None:
    for key, section in (("image_id", "images"), ("category_id", "categories")):
        unknown = {row[key] for row in rows} - {entry["id"] for entry in content[section]}
        if unknown:
            raise DataError(
                f"detections are of {len(unknown)} {section} that {name} does not have (such as id "
                f"{min(unknown)}); measure them against the annotations that they were made with."
            )


def _annotation(row: Mapping[str, Any], number: int) -> Row:
    """Add what pycocotools needs and many tools leave out.

    Also, it takes an annotation with id 0 for one that is never found, so they are counted from 1.
    """
    width, height = row["bbox"][2:]
    return {"area": width * height, "iscrowd": 0, **row, "id": number}


def _indexed(content: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> COCO:
    """Return pycocotools's index; its own reader of results refuses an empty list."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {
            "images": content["images"],
            "categories": content["categories"],
            "annotations": list(map(_annotation, annotations, itertools.count(1))),
        }
        index.createIndex()
    return index
