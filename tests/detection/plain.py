"""Detection in plain NumPy, as oracles: no batches, no padding, one box after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.setup import StoredWeights
from resnext_jax.models.variables import merge

# What the box targets of Fast R-CNN are divided by (py-faster-rcnn).
STD = np.array([0.1, 0.1, 0.2, 0.2])

# Images normalised on their canvas `[1, S, S, 3]`, and boxes `[1, R, 4]`, to the network's answers.
Network = Callable[..., tuple[np.ndarray, np.ndarray]]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, float64 `[N, K]`."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def moved(box: np.ndarray, deltas: np.ndarray, height: float, width: float) -> list[float]:
    """Move one box as a network says, and cut it at the image's border."""
    x1, y1, x2, y2 = map(float, box)
    dx, dy, dw, dh = map(float, deltas)
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    w = (x2 - x1) * min(np.exp(dw), 1000 / 16)
    h = (y2 - y1) * min(np.exp(dh), 1000 / 16)
    return [
        min(max(x - w / 2, 0), width),
        min(max(y - h / 2, 0), height),
        min(max(x + w / 2, 0), width),
        min(max(y + h / 2, 0), height),
    ]


def iou(a: list[float], b: list[float]) -> float:
    """Return the intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def suppressed(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    """Return the places that greedy suppression keeps, the best first, the first of equals."""
    kept: list[int] = []
    for place in sorted(range(len(boxes)), key=lambda place: (-scores[place], place)):
        if all(iou(boxes[place], boxes[better]) <= threshold for better in kept):
            kept.append(place)
    return kept


def network_of(weights: StoredWeights) -> Network:
    """Return a network by itself, on one device."""
    params, batch_stats = jax.device_get((weights.params, weights.batch_stats))

    @jax.jit
    def run(*inputs: Any) -> Any:
        model = merge(weights.graphdef, params, batch_stats)
        model.eval()
        return model(*inputs)

    return lambda *inputs: jax.device_get(run(*inputs))


def canvas_of(
    split: CocoSplit, index: int, config: ConfigDict
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Read an image that is to go on a square canvas.

    Returns:
      It on its canvas, normalised, `[1, S, S, 3]`; what x1, y1, x2, y2 are multiplied by; its
      height and width then.
    """
    side, image = config.data.short_side, read_image(split.path(index))
    scale = side / max(image.shape[:2])
    height, width = (round(length * scale) for length in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    canvas = np.zeros((1, side, side, 3), np.float32)
    canvas[0, :height, :width] = (resized - np.array(config.data.mean)) / np.array(config.data.std)
    return canvas, np.tile([width / image.shape[1], height / image.shape[0]], 2), (height, width)


def read_image(path: Path) -> np.ndarray:
    """Return an image file's pixels, uint8 `[h, w, 3]`."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
