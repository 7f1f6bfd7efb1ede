"""A small detection set in COCO's format: handwritten digits strewn over textured scenes.

The digits are scikit-learn's, those of the training scenes from the training part of the data set
`digits` and those of the test scenes from its test part: a classifier pre-trained on `digits` has
not seen a digit of a test scene.

As a command: `python -m resnext_jax.detection.synthetic --out=DIR`.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from resnext_jax.errors import DataError, one_line

SPLITS = ("train", "test")

# Category ids of the digits 0 to 9, with gaps as COCO has them.
CATEGORY_IDS = (1, 2, 3, 5, 6, 8, 9, 11, 13, 14)

# In the folder, written last: what the scenes were made with.
_SETTINGS = "scenes.json"
_VERSION = 1

# Of 16 grey levels; paler is paper.
_INK = 4
# Part of the smaller of two boxes that the other may cover.
_LARGEST_OVERLAP = 0.1
_TRIES = 20


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """What the scenes are like.

    Attributes:
      train: number of training scenes.
      test: number of test scenes.
      seed: of everything random; scene i does not depend on the number of scenes.
      side: of a scene, in pixels.
      smallest: height of a digit, in pixels, at least.
      largest: height of a digit, in pixels, at most.
      most_digits: in a scene; there is one at least.
    """

    train: int = 512
    test: int = 128
    seed: int = 0
    side: int = 128
    smallest: int = 32
    largest: int = 80
    most_digits: int = 4


@dataclasses.dataclass(frozen=True)
class SceneFolder:
    """Where the scenes are.

    Attributes:
      folder: of all files.
    """

    folder: Path

    def annotations(self, split: str) -> Path:
        """Return the JSON file of "train" or "test"."""
        return self.folder / "annotations" / f"instances_{split}.json"

    def images(self, split: str) -> Path:
        """Return the folder of the PNG files of "train" or "test"."""
        return self.folder / split


def digit_indices(split: str) -> np.ndarray:
    """Return which of scikit-learn's digits scenes of "train" or "test" are made of, sorted."""
    # Late: they take seconds to import, and scenes that are there need neither.
    from sklearn.datasets import load_digits

    from resnext_jax.data.builders.digits import test_indices

    labels = load_digits().target
    test = test_indices(labels)
    return test if split == "test" else np.setdiff1d(np.arange(len(labels)), test)


def make_scenes(folder: str | os.PathLike[str], spec: SceneSpec | None = None) -> SceneFolder:
    """Make the scenes, or use those that are there. Nothing half made is left at `folder`.

    Args:
      folder: to be made; it may be there and empty, or hold the same scenes.
      spec: of the scenes; None is `SceneSpec()`.

    Raises:
      DataError: the folder holds something else or cannot be written, or a setting is impossible.
    """
    spec, scenes = spec or SceneSpec(), SceneFolder(Path(folder))
    _check(spec)
    if _is_made(scenes, spec):
        return scenes
    try:
        scenes.folder.parent.mkdir(parents=True, exist_ok=True)
        with _beside(scenes.folder) as draft:
            _write(SceneFolder(draft), spec)
            # Takes the place of an empty folder, but of no other.
            with contextlib.suppress(OSError):
                os.rename(draft, scenes.folder)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise DataError(
            f"scenes cannot be written to {scenes.folder} ({reason}); name another folder."
        ) from error
    # Another process may have been faster, which is as good.
    if not _is_made(scenes, spec):
        raise DataError(f"{scenes.folder} cannot be made; name another folder for the scenes.")
    return scenes


def _check(spec: SceneSpec) -> None:
    if min(spec.train, spec.test, spec.most_digits) < 1 or spec.seed < 0:
        raise DataError(
            f"scenes cannot be made with {spec}; numbers of scenes and digits must be positive, "
            "and the seed not negative."
        )
    # Four in a scene have a quarter each.
    if not 8 <= spec.smallest <= min(spec.largest, spec.side // 3) or spec.largest > spec.side:
        raise DataError(
            f"scenes cannot be made with {spec}; smallest must be from 8 to a third of side, and "
            "largest from smallest to side."
        )


def _is_made(scenes: SceneFolder, spec: SceneSpec) -> bool:
    """Return whether all scenes exist; False for an empty folder."""
    try:
        names = os.listdir(scenes.folder)
    except FileNotFoundError:
        return False
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise DataError(
            f"{scenes.folder} cannot be read ({reason}); name another folder for the scenes."
        ) from error
    if not names:
        return False
    try:
        settings = json.loads((scenes.folder / _SETTINGS).read_text())
        counts = {split: len(os.listdir(scenes.images(split))) for split in SPLITS}
    except (OSError, ValueError):
        settings, counts = None, {}
    if settings != _settings(spec):
        raise DataError(
            f"{scenes.folder} holds something other than the scenes asked for; remove it or name "
            "another folder."
        )
    if counts != {"train": spec.train, "test": spec.test} or not all(
        scenes.annotations(split).is_file() for split in SPLITS
    ):
        raise DataError(
            f"{scenes.folder} has lost some of its scenes; remove it, and they are made again."
        )
    return True


def _settings(spec: SceneSpec) -> dict[str, int]:
    return {"version": _VERSION, **dataclasses.asdict(spec)}


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Give a folder of its own next to where the result will be, removed if it is still there."""
    parent = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        draft = parent / folder.name
        draft.mkdir()
        yield draft
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _write(scenes: SceneFolder, spec: SceneSpec) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    (scenes.folder / "annotations").mkdir()
    for number, split in enumerate(SPLITS):
        scenes.images(split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        indices = digit_indices(split)
        for index in range(spec.train if split == "train" else spec.test):
            rng = np.random.default_rng((spec.seed, number, index))
            scene, objects = _scene(digits.images, indices, spec, rng)
            # Ids of the splits are different, so that one's detections do not pass for the other's.
            image = {
                "id": 100_000 * number + index + 1,
                "file_name": f"{index:06d}.png",
                "height": spec.side,
                "width": spec.side,
            }
            png = cv2.imencode(".png", cv2.cvtColor(scene, cv2.COLOR_RGB2BGR))[1]
            (scenes.images(split) / str(image["file_name"])).write_bytes(png.tobytes())
            images.append(image)
            for digit, (x, y, width, height) in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": CATEGORY_IDS[digits.target[digit]],
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "digit": digit,
                    }
                )
        content = {
            "info": {"description": "Handwritten digits on textured scenes.", "split": split},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": category, "name": str(digit), "supercategory": "digit"}
                for digit, category in enumerate(CATEGORY_IDS)
            ],
        }
        scenes.annotations(split).write_text(json.dumps(content))
    (scenes.folder / _SETTINGS).write_text(json.dumps(_settings(spec)))


Box = tuple[int, int, int, int]


def _scene(
    images: np.ndarray, indices: np.ndarray, spec: SceneSpec, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, Box]]]:
    """Draw a scene.

    Args:
      images: `[N, 8, 8]`, grey levels from 0 (paper) to 16.
      indices: of the images that may be used.
      spec: of the scene.
      rng: for everything random.

    Returns:
      uint8 `[side, side, 3]`, and of each digit its index and its box x, y, width, height, which
      its ink fills.
    """
    scene = _background(spec.side, rng)
    chosen = rng.choice(indices, rng.integers(1, spec.most_digits + 1)).tolist()
    strokes = [_ink(images[index]) for index in chosen]
    boxes = _places([stroke.shape[1] / stroke.shape[0] for stroke in strokes], spec, rng)
    for stroke, (x, y, width, height) in zip(strokes, boxes, strict=True):
        cover = np.clip(cv2.resize(stroke, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
        colour = rng.uniform(150, 255, 3).astype(np.float32)
        part = scene[y : y + height, x : x + width]
        part += cover[..., None] * (colour - part)
    scene += rng.normal(0, 6, scene.shape).astype(np.float32)
    objects = list(zip(chosen, boxes, strict=True))
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8), objects


def _background(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return dark clouds of any colour, and a few lines that are no digits; float32."""
    clouds = np.zeros((side, side, 3), np.float32)
    for cells, strength in ((3, 60), (9, 30), (24, 20)):
        noise = rng.uniform(0, strength, (cells, cells, 3)).astype(np.float32)
        clouds += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(0, 4)):
        ends = rng.integers(0, side, (2, 2)).tolist()
        shade = rng.uniform(60, 160, 3).tolist()
        cv2.line(clouds, ends[0], ends[1], shade, thickness=int(rng.integers(1, 3)))
    return clouds


def _ink(image: np.ndarray) -> np.ndarray:
    """Cut a digit out of its paper; float32 from 0 to 1."""
    rows = np.flatnonzero((image >= _INK).any(axis=1))
    columns = np.flatnonzero((image >= _INK).any(axis=0))
    ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return (ink / image.max()).astype(np.float32)


def _places(ratios: Sequence[float], spec: SceneSpec, rng: np.random.Generator) -> list[Box]:
    """Choose sizes and places of digits that hardly overlap.

    Args:
      ratios: of each digit, width over height.
      spec: of the scene.
      rng: for sizes and places.
    """
    while True:
        boxes: list[Box] = []
        for ratio in ratios:
            # Where there is no room for a digit, a smaller one is tried.
            largest = spec.largest
            for _ in range(_TRIES):
                height = int(rng.integers(spec.smallest, largest + 1))
                # Some scanned ones are mere lines; they are drawn wider.
                width = max(round(height * min(ratio, 1)), height // 2)
                x, y = (int(rng.integers(0, spec.side - size + 1)) for size in (width, height))
                box = (x, y, width, height)
                if all(_overlap(box, other) <= _LARGEST_OVERLAP for other in boxes):
                    boxes.append(box)
                    break
                largest = max(spec.smallest, largest - 4)
        if len(boxes) == len(ratios):
            return boxes


def _overlap(one: Box, other: Box) -> float:
    """Return which part of the smaller box the other covers."""
    sides = [
        min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis])
        for axis in (0, 1)
    ]
    smaller = min(one[2] * one[3], other[2] * other[3])
    return max(sides[0], 0) * max(sides[1], 0) / smaller


if __name__ == "__main__":
    from resnext_jax.commands.scenes import main

    main(sys.argv[1:])
