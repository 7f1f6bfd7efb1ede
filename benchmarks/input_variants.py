"""What `input_pipeline` compares in this environment; it starts this file, one process a variant.

python benchmarks/input_variants.py VARIANT FOLDER --batch-size 64 --workers 0
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import itertools
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.input_worker import read_images, serve
from resnext_jax.data.decode import ImageFile
from resnext_jax.data.deep_images import open_picture
from resnext_jax.data.transforms import CropWindow, TrainTransform, random_window

IMAGE_SIZE = 224
VARIANTS = ("transform", "antialiased", "grain", "pillow")

_PACKAGES = ("grain", "opencv-python-headless", "pillow")
# Images of ImageNet's training set. What shuffling costs depends on it, and is far more for as few
# images as there are here.
_LENGTH = 1_281_167
# Global batches of a run that no measurement comes to the end of.
_ENDLESS = 1_000_000

Prepare = Callable[[bytes], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """A data set as long as ImageNet, of few images."""

    images: Sequence[bytes]

    def __len__(self) -> int:
        return _LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index % len(self.images)], "label": 0}


def batches_of(
    variant: str, images: Sequence[bytes], batch_size: int, workers: int = 0
) -> Generator[np.ndarray, None, None]:
    """Make batches of training images without end.

    Args:
      variant: "transform" and "antialiased" are this repository's functions in
        one thread, without and with antialiasing; "grain" is its pipeline;
        "pillow" the way of torchvision.
      images: JPEG files.
      batch_size: N.
      workers: processes of "grain"; 0 decodes in threads.

    Returns:
      uint8 arrays `[N, IMAGE_SIZE, IMAGE_SIZE, 3]`.
    """
    if variant == "grain":
        return _grain(images, batch_size, workers)
    prepare = _pillow() if variant == "pillow" else _transform(antialias=variant == "antialiased")
    return _stacked(images, batch_size, prepare)


def _stacked(
    images: Sequence[bytes], batch_size: int, prepare: Prepare
) -> Generator[np.ndarray, None, None]:
    endless = itertools.cycle(images)
    while True:
        batch = np.empty((batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for place in batch:
            place[:] = prepare(next(endless))
        yield batch


def _host_transform(*, antialias: bool) -> TrainTransform:
    return TrainTransform(IMAGE_SIZE, "random_sized", flip=True, antialias=antialias)


def _transform(*, antialias: bool) -> Prepare:
    transform = _host_transform(antialias=antialias)
    rng = np.random.default_rng(0)

    def prepare(data: bytes) -> np.ndarray:
        image: np.ndarray = transform({"image": ImageFile(data)}, rng)["image"]
        return image

    return prepare


def _pillow() -> Prepare:
    rng = np.random.default_rng(0)

    def prepare(data: bytes) -> np.ndarray:
        with open_picture(data) as file:
            picture = file.convert("RGB")
        width, height = picture.size
        part = random_window(height, width, rng) or CropWindow(0, 0, height, width)
        picture = picture.crop(
            (part.left, part.top, part.left + part.width, part.top + part.height)
        ).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(picture)

    return prepare


def _grain(
    images: Sequence[bytes], batch_size: int, workers: int
) -> Generator[np.ndarray, None, None]:
    # The functions alone need neither tfds nor Grain, which take seconds to load.
    from resnext_jax.data.pipeline import train_batches
    from resnext_jax.data.sources import Source

    batches = train_batches(
        Source("photographs", "train", _Repeated(images), ("photograph",)),
        _host_transform(antialias=False),
        seed=0,
        batch_size=batch_size,
        positions=np.arange(batch_size),
        start_step=0,
        num_steps=_ENDLESS,
        num_workers=workers,
    )
    with contextlib.closing(batches):
        for batch in batches:
            yield batch["image"]


def main() -> None:
    """Serve one variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    images = read_images(args.folder)
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    serve(batches_of(args.variant, images, args.batch_size, args.workers), versions)


if __name__ == "__main__":
    main()
