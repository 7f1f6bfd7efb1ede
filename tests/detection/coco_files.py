"""Small data sets in COCO's format for tests."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnext_jax.detection.coco import CocoSplit, read_coco

# The ids of COCO's 80 categories: ten of the first 90 were never used.
COCO_IDS = np.setdiff1d(np.arange(1, 91), (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


def categories(ids: Sequence[int]) -> list[dict[str, Any]]:
    return [{"id": int(i), "name": f"name {i}", "supercategory": "thing"} for i in ids]


def image(number: int, height: int = 48, width: int = 64, **fields: Any) -> dict[str, Any]:
    name = f"{number:012d}.png"
    return {"id": number, "file_name": name, "height": height, "width": width, **fields}


def annotation(
    number: int,
    image_id: int,
    category_id: int,
    bbox: Sequence[float],
    **fields: Any,
) -> dict[str, Any]:
    area = bbox[2] * bbox[3] if len(bbox) == 4 else 0
    fields = {"area": area, "iscrowd": 0, **fields}
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(bbox),
        **fields,
    }


def write_json(root: Path, content: Any, name: str = "instances_train.json") -> Path:
    path = root / "annotations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_images(root: Path, images: Sequence[Mapping[str, Any]]) -> Path:
    """Write a PNG of its own noise for each image; return their folder."""
    folder = root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in images:
        path = folder / entry["file_name"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(pixels(entry["id"], entry["height"], entry["width"])))
    return folder


def pixels(seed: int, height: int, width: int) -> np.ndarray:
    """Return smooth noise, uint8 `[height, width, 3]`: it survives resizing."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height)))


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_coco(
    root: Path,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int] = (1, 3, 7),
) -> CocoSplit:
    """Write a data set and read it."""
    content = {
        "images": list(images),
        "annotations": list(annotations),
        "categories": categories(category_ids),
    }
    return read_coco(write_json(root, content), write_images(root, images), quiet=True)


def split_of(root: Path, content: Mapping[str, Any], *, labelled: bool = True) -> CocoSplit:
    """Write a data set whose images are empty files, and read it."""
    folder = root / "images"
    folder.mkdir(exist_ok=True)
    for entry in content["images"]:
        (folder / entry["file_name"]).touch()
    return read_coco(write_json(root, content), folder, labelled=labelled, quiet=True)


def random_split(
    root: Path, landscape: int = 7, portrait: int = 3, odd: int = 0, seed: int = 0
) -> CocoSplit:
    """Write images of three shapes, each with one to five objects, some of them crowds."""
    rng = np.random.default_rng(seed)
    shapes = [(48, 64)] * landscape + [(64, 48)] * portrait + [(47, 61)] * odd
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (height, width) in enumerate(shapes, start=1):
        images.append(image(number, height, width))
        for place in range(rng.integers(1, 6)):
            x, y = rng.integers(0, 20, 2).tolist()
            w, h = rng.integers(4, 25, 2).tolist()
            # The first one never, so that every image can be trained on.
            crowd = int(place > 0 and rng.random() < 0.3)
            category = int(rng.choice([1, 3, 7]))
            annotations.append(
                annotation(len(annotations) + 1, number, category, [x, y, w, h], iscrowd=crowd)
            )
    return write_coco(root, images, annotations)
