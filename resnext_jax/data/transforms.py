"""The host's half of augmentation: from a stored image to the uint8 image that is shipped.

What works on whole pixels (resize, crop, flip) is done here. What works on
unclipped numbers (normalisation, shifts into padding, colour) runs on the
device, in `data.augment`, from random numbers that this half draws and ships
with each image.
"""

import dataclasses
from typing import Any

import cv2
import numpy as np

# Uniform random numbers shipped with each image: vertical and horizontal shift.
NUM_RANDOM = 2


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Prepare a training image.

    Attributes:
      image_size: side of the square result; other sizes are resized, bicubic.
      flip: mirror half of the images.
    """

    image_size: int
    flip: bool

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return `image` uint8 `[S, S, 3]`, `label` int32, `random` float32 `[NUM_RANDOM]`."""
        random = rng.random(NUM_RANDOM, dtype=np.float32)
        image = square_rgb(example["image"], self.image_size)
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return {"image": image, "label": np.int32(example["label"]), "random": random}


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Prepare a test image: no randomness."""

    image_size: int

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Return `image` uint8 `[S, S, 3]` and `label` int32."""
        image = square_rgb(example["image"], self.image_size)
        return {"image": image, "label": np.int32(example["label"])}


def square_rgb(image: np.ndarray, size: int) -> np.ndarray:
    """Make a grey or RGB image `[H, W, 1 or 3]` into uint8 RGB `[size, size, 3]`, bicubic."""
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    image = image.reshape(size, size, -1)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
