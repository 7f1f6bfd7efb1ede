"""Detections as COCO's server takes them, and COCO's metrics, computed by pycocotools."""

import contextlib
import dataclasses
import io
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

from resnext_jax.detection.coco import CocoSplit
from resnext_jax.errors import DataError, DivergedError, UserError, one_line
from resnext_jax.files import replacing

ResultEntry = dict[str, Any]

# In the order of pycocotools: precision, at IoU .50 to .95 unless a number says otherwise, of all,
# small, medium and large objects; recall with 1, 10 and 100 detections an image, and by size.
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)

# Decimals of pixels and of scores in a file.
_PIXEL_DECIMALS, _SCORE_DECIMALS = 3, 6


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionArrays:
    """What was found in an image.

    Attributes:
      boxes: float32 `[n, 4]`, in pixels of the image as it is stored.
      scores: float32 `[n]`.
      classes: int32 `[n]`, from 1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def results_rows(split: CocoSplit, index: int, detections: DetectionArrays) -> list[ResultEntry]:
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


def write_results(path: str | os.PathLike[str], rows: Sequence[ResultEntry]) -> None:
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


def coco_metrics(split: CocoSplit, rows: Sequence[ResultEntry]) -> dict[str, float]:
    """Measure detections as COCO does.

    Args:
      split: the images and their objects, as `coco.read_coco` has checked them.
      rows: of `results_rows`, of all images.

    Returns:
      `METRICS`, from 0 to 1; NaN where there is no object of a size.

    Raises:
      DataError: the split has no annotations, or a row is of an image or a category that it does
        not have.
    """
    if not split.labelled:
        raise DataError(
            f"{split.annotations} cannot be measured against, without annotations; name an "
            "instances_*.json, or send the results to COCO's server."
        )
    _check_ids(split, rows)
    truth, found = (_indexed(split, annotations) for annotations in (_annotations(split), rows))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(truth, found, "bbox")
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


def _check_ids(split: CocoSplit, rows: Sequence[ResultEntry]) -> None:
    for key, what, ids in (
        ("image_id", "images", split.image_ids),
        ("category_id", "categories", split.category_ids),
    ):
        unknown = {row[key] for row in rows}.difference(ids.tolist())
        if unknown:
            raise DataError(
                f"detections are of {len(unknown)} {what} that {split.annotations} does not have "
                f"(such as id {min(unknown)}); measure them against the annotations that they were "
                "made with."
            )


def _annotations(split: CocoSplit) -> list[ResultEntry]:
    objects = split.objects
    columns = {
        "image_id": split.image_ids[split.owners],
        "category_id": split.category_ids[objects.classes - 1],
        "bbox": _sized(objects.boxes),
        "area": objects.areas,
        "iscrowd": objects.crowd.astype(int),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _indexed(split: CocoSplit, annotations: Iterable[ResultEntry]) -> COCO:
    """Return pycocotools's index; its own reader of results refuses an empty list.

    It takes an annotation with id 0 for one that is never found, so they are counted from 1.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {
            "images": [{"id": number} for number in split.image_ids.tolist()],
            "categories": [{"id": number} for number in split.category_ids.tolist()],
            "annotations": [
                {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0, **row, "id": number}
                for number, row in enumerate(annotations, 1)
            ],
        }
        index.createIndex()
    return index
