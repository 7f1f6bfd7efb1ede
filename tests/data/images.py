"""Image files for tests: real photographs, and every kind of file that data sets hold."""

import io
import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from PIL import Image

from resnext_jax.data.sources import Source

PHOTOGRAPHS = ("china", "flower")


@cache
def photograph_file(name: str) -> bytes:
    """Return one of the JPEGs that scikit-learn ships: RGB, 640x427."""
    return (Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg").read_bytes()


def photograph(name: str, width: int = 640, height: int = 427) -> Image.Image:
    """Return a photograph in another size."""
    return Image.open(io.BytesIO(photograph_file(name))).convert("RGB").resize((width, height))


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return uint8 noise `[height, width, 3]`."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise_file(height: int, width: int, seed: int = 0) -> bytes:
    """Return noise as a PNG, which gives every bit back."""
    return encoded(Image.fromarray(noise(height, width, seed)), "PNG")


def noise_source(
    count: int, height: int = 4, width: int = 4, bad: Mapping[int, bytes] | None = None
) -> Source:
    """Return images that differ from each other and from their mirror; the label is the index.

    Args:
      count: number of images.
      height: in pixels.
      width: in pixels.
      bad: what stands in place of some image files.
    """
    files = [noise_file(height, width, seed) for seed in range(count)]
    examples = [
        {"image": (bad or {}).get(i, file), "label": i, "file_name": f"{i}.png".encode()}
        for i, file in enumerate(files)
    ]
    return Source("noise", "train", examples, tuple(map(str, range(count))))


def photograph_source(count: int) -> Source:
    """Return JPEGs of many shapes, among them grey and CMYK ones; two classes."""
    rng = np.random.default_rng(0)
    examples = []
    for index in range(count):
        width, height = rng.integers(30, 90, 2).tolist()
        picture = photograph(PHOTOGRAPHS[index % 2], width, height)
        mode = {0: "L", 1: "CMYK"}.get(index % 7, "RGB")
        data = encoded(picture.convert(mode), "JPEG", quality=90)
        examples.append({"image": data, "label": index % 2, "file_name": f"{index}.jpg".encode()})
    return Source("photographs", "train", examples, PHOTOGRAPHS)


def write_photographs(root: Path, classes: Sequence[str] = PHOTOGRAPHS, per_class: int = 1) -> None:
    """Write `train/CLASS/` and `val/CLASS/` with JPEGs about as large as ImageNet's.

    Args:
      root: of both folders.
      classes: names; the two photographs take turns.
      per_class: files in each class, `0.jpg` and so on, in sizes of their own.
    """
    rng = np.random.default_rng(0)
    for split, (label, name) in itertools.product(("train", "val"), enumerate(classes)):
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(per_class):
            width, height = rng.integers(300, 600, 2).tolist()
            picture = photograph(PHOTOGRAPHS[label % 2], width, height)
            (folder / f"{index}.jpg").write_bytes(encoded(picture, "JPEG", quality=90))
