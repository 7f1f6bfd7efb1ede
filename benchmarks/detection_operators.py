"""The operators that `detection.py` times: ours, and those of other libraries, loaded if there."""

import argparse
import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, torch_device
from resnext_jax.detection.nms import nms
from resnext_jax.detection.roi import roi_align, roi_pool

_IOU_THRESHOLD = 0.7
_IMAGE = (600, 1000)
_MAP = (38, 63)
_SCALE = 1 / 16
_BINS = 14


class NotMeasured(Exception):  # noqa: N818 (it is no error)
    """Why a library has no time in a row."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A computation that can be timed.

    Attributes:
      run: starts it.
      value: makes of what `run` returns the array that is compared between libraries.
      wait: waits for it.
    """

    run: Callable[[], Any]
    value: Callable[[Any], np.ndarray] = np.asarray
    wait: measure.Wait = jax.block_until_ready


def draw_proposals(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes `[count, 4]`, half of which crowd around twenty others, and scores."""
    rng = np.random.default_rng(0)
    boxes, half = _draw_boxes(count, rng), count // 2
    objects = boxes[rng.integers(half, min(half + 20, count), half)]
    sides = np.tile(objects[:, 2:] - objects[:, :2], 2)
    moved = objects + rng.normal(0, 0.1, (half, 4)) * sides
    boxes[:half] = np.concatenate(
        [np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], axis=1
    )
    return boxes, rng.random(count, np.float32)


def _draw_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    height, width = _IMAGE
    centres = rng.uniform(0, (width, height), (count, 2))
    sizes = np.exp(rng.normal(4.5, 0.8, (count, 2)))
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    return corners.clip(0, (width, height, width, height)).astype(np.float32)


def _draw_regions(count: int, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a map `[H, W, C]`, boxes, and the gradient of what is pooled."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((*_MAP, channels), np.float32)
    given = rng.standard_normal((count, _BINS, _BINS, channels), np.float32)
    return features, _draw_boxes(count, rng), given


def jax_nms(count: int, most: int, _: argparse.Namespace) -> Program:
    """Keep at most `most` of `count` boxes."""
    inputs = jax.device_put((*draw_proposals(count), np.ones(count, bool)))
    run = functools.partial(nms, iou_threshold=_IOU_THRESHOLD, max_outputs=most)
    compiled = jax.jit(run).lower(*inputs).compile()
    return Program(lambda: compiled(*inputs), lambda found: np.asarray(found[0])[found[1]])


def jax_regions(kind: str, count: int, gradient: bool, args: argparse.Namespace) -> Program:
    """Pool `count` regions, by "pool" or "align"."""
    features, boxes, given = _draw_regions(count, args.channels)
    inputs = jnp.asarray(features, args.dtype), jnp.asarray(boxes), jnp.asarray(given, args.dtype)
    operator = {"pool": roi_pool, "align": roi_align}[kind]

    def run(features: jax.Array, boxes: jax.Array, given: jax.Array) -> tuple[jax.Array, ...]:
        pooled, pull = jax.vjp(lambda features: operator(features, boxes), features)
        return (pooled, *pull(given)) if gradient else (pooled,)

    compiled = jax.jit(run).lower(*inputs).compile()
    return Program(lambda: compiled(*inputs), lambda results: np.asarray(results[-1], np.float32))


def _onnx_operator(op_type: str, inputs: Mapping[str, np.ndarray], **options: Any) -> Any:
    if jax.default_backend() != "cpu":
        raise NotMeasured("its operators are on the CPU")
    _load("onnxruntime")
    return _load("tests.detection.onnx_graph").make_operator(op_type, inputs, **options)


def onnx_nms(count: int, most: int, _: argparse.Namespace) -> Program:
    """Keep at most `most` of `count` boxes."""
    boxes, scores = draw_proposals(count)
    inputs = {
        "boxes": boxes[None],
        "scores": scores[None, None],
        "max_outputs": np.array([most]),
        "iou_threshold": np.array([_IOU_THRESHOLD], np.float32),
    }
    run = _onnx_operator("NonMaxSuppression", inputs, output="int64")
    return Program(run, lambda found: found[:, 2])


def onnx_regions(kind: str, count: int, gradient: bool, args: argparse.Namespace) -> Program:
    """Pool `count` regions, by "pool" or "align"."""
    if gradient:
        raise NotMeasured("it has no gradients")
    if args.dtype != "float32":
        raise NotMeasured("float32 alone")
    features, boxes, _ = _draw_regions(count, args.channels)
    maps = np.ascontiguousarray(features.transpose(2, 0, 1))[None]
    if kind == "pool":
        inputs = {"maps": maps, "regions": _with_image(_inclusive(boxes))}
        options: dict[str, Any] = {"pooled_shape": [_BINS, _BINS]}
        run = _onnx_operator("MaxRoiPool", inputs, spatial_scale=_SCALE, **options)
    else:
        inputs = {"maps": maps, "regions": boxes, "images": np.zeros(count, np.int64)}
        options = {"output_height": _BINS, "output_width": _BINS, "sampling_ratio": 2}
        run = _onnx_operator("RoiAlign", inputs, spatial_scale=_SCALE, **options)
    return Program(run, lambda pooled: pooled.transpose(0, 2, 3, 1))


def _inclusive(boxes: np.ndarray) -> np.ndarray:
    return boxes - np.array([0, 0, 1, 1], np.float32)


def _with_image(boxes: np.ndarray) -> np.ndarray:
    """Put the number of the only image before each box."""
    return np.pad(boxes, ((0, 0), (1, 0)))


def _load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise NotMeasured("it is not installed") from error
        raise NotMeasured(f"it cannot be loaded ({measure.shortened(error)})") from error
    except Exception as error:  # torchvision raises RuntimeError where it does not fit torch
        raise NotMeasured(f"it cannot be loaded ({measure.shortened(error)})") from error


def _load_torch() -> Any:
    reason = torch_device.why_not()
    if reason:
        raise NotMeasured(reason.replace("it is", "PyTorch is", 1))
    return _load("torch")


def torchvision_nms(count: int, most: int, _: argparse.Namespace) -> Program:
    """Keep at most `most` of `count` boxes."""
    torch = _load_torch()
    operators = _load("torchvision.ops")
    inputs = _to_torch(*draw_proposals(count))

    def run() -> Any:
        with torch.inference_mode():
            return operators.nms(*inputs, _IOU_THRESHOLD)[:most]

    return Program(run, _from_torch, torch_device.wait)


def torch_nms(count: int, most: int, _: argparse.Namespace) -> Program:
    """Keep at most `most` of `count` boxes, in a loop over those kept."""
    torch = _load_torch()
    boxes, scores = _to_torch(*draw_proposals(count))

    def run() -> Any:
        with torch.inference_mode():
            order = scores.argsort(descending=True, stable=True)
            x1, y1, x2, y2 = boxes[order].T
            columns = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])
            kept: list[Any] = []
            while len(order) and len(kept) < most:
                kept.append(order[0])
                best, columns, order = columns[:, :1], columns[:, 1:], order[1:]
                low = torch.maximum(best[:2], columns[:2])
                width, height = (torch.minimum(best[2:4], columns[2:4]) - low).clamp(min=0)
                shared = width * height
                free = shared / (best[4] + columns[4] - shared) <= _IOU_THRESHOLD
                columns, order = columns[:, free], order[free]
            return torch.stack(kept)

    return Program(run, _from_torch, torch_device.wait)


def torch_regions(
    library: str, kind: str, count: int, gradient: bool, args: argparse.Namespace
) -> Program:
    """Pool `count` regions, by "pool" or "align" of "torchvision", or "pool" of "torch"."""
    torch = _load_torch()
    features, boxes, given = _draw_regions(count, args.channels)
    dtype = getattr(torch, args.dtype)
    maps, cotangent = (
        array.to(dtype)
        for array in _to_torch(features.transpose(2, 0, 1)[None], given.transpose(0, 3, 1, 2))
    )
    maps.requires_grad_(gradient)
    operator = _torch_operator(library, kind, boxes, dtype)

    def run() -> Any:
        with torch.set_grad_enabled(gradient):
            pooled = operator(maps)
            return torch.autograd.grad(pooled, maps, cotangent)[0] if gradient else pooled

    def value(result: Any) -> np.ndarray:
        array = _from_torch(result.float())
        return array[0].transpose(1, 2, 0) if gradient else array.transpose(0, 2, 3, 1)

    return Program(run, value, torch_device.wait)


def _torch_operator(library: str, kind: str, boxes: np.ndarray, dtype: Any) -> Callable[[Any], Any]:
    """Return what pools a map `[1, C, H, W]`."""
    torch = _load_torch()
    if library == "torchvision":
        operators = _load("torchvision.ops")
        (regions,) = _to_torch(_with_image(_inclusive(boxes) if kind == "pool" else boxes))
        regions = regions.to(dtype)
        size = (_BINS, _BINS)
        if kind == "pool":
            return lambda maps: operators.roi_pool(maps, regions, size, _SCALE)
        return lambda maps: operators.roi_align(maps, regions, size, _SCALE, 2, aligned=True)
    edges = np.floor(_inclusive(boxes) * np.float32(_SCALE) + 0.5).astype(int)
    lows, highs = edges[:, :2].tolist(), np.maximum(edges[:, 2:] + 1, edges[:, :2] + 1).tolist()
    shrink = torch.nn.functional.adaptive_max_pool2d

    def pool(maps: Any) -> Any:
        pieces = [
            shrink(maps[:, :, top:bottom, left:right], _BINS)
            for (left, top), (right, bottom) in zip(lows, highs, strict=True)
        ]
        return torch.cat(pieces)

    return pool


def _to_torch(*arrays: np.ndarray) -> tuple[Any, ...]:
    torch, device = _load_torch(), torch_device.device()
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)


def _from_torch(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy()
