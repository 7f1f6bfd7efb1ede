"""The host's half of augmentation: from a decoded image to the uint8 image that is shipped.

What works on whole pixels (crop, resize, flip, TrivialAugment) is done here. What
works on unclipped numbers (colour, lighting, normalisation, shifts into padding,
erasing, mixing) runs on the device, in `data.augment` and `data.mixing`, from
random numbers that this half draws and ships with each image.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from resnext_jax.data import rand_augment, trivial_augment
from resnext_jax.data.augment import DEPTH, NUM_NORMAL, NUM_UNIFORM
from resnext_jax.data.decode import ImageFile
from resnext_jax.data.erasing import ERASE, draw_box
from resnext_jax.data.mixing import MIX, draw_mix
from resnext_jax.data.resize import resize

CROPS = ("random_sized", "whole")

# Who rounds half an odd margin how, to get what is above or left of the centre.
CENTRES: dict[str, Callable[[float], int]] = {"torch7": math.ceil, "torchvision": round}

# The paper's random crop: share of the image's area, and width by height.
_MIN_AREA, _MAX_AREA = 0.08, 1.0
_MIN_ASPECT, _MAX_ASPECT = 3 / 4, 4 / 3
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class CropWindow:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: np.ndarray | ImageFile) -> np.ndarray:
        """Return the part `[height, width, ...]` of an image `[H, W, ...]`, as a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Prepare a training image.

    Attributes:
      image_size: S, side of the square result.
      crop: "random_sized" (paper Sec. 4) or "whole", the whole image made square.
      flip: mirror half of the images.
      interpolation, antialias: see `resize.resize`.
      trivial_augment: vary the cropped image by a random operation, see `data.trivial_augment`.
      rand_augment: a key of `rand_augment.VARIANTS`, applied to the cropped image; None: off.
      rand_augment_magnitude, rand_augment_std: its strength and the strength's deviation.
      random_erase: probability that a box is erased, see `erasing.draw_box`.
      mixup, cutmix: alpha of each, see `mixing.draw_mix`; 0 turns it off.
      drop_blocks: blocks of a network with stochastic depth; 0: it has none.
    """

    image_size: int
    crop: str
    flip: bool
    interpolation: str = "bicubic"
    antialias: bool = False
    trivial_augment: bool = False
    rand_augment: str | None = None
    rand_augment_magnitude: float = 0.0
    rand_augment_std: float = 0.0
    random_erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_blocks: int = 0

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Prepare one image.

        Args:
          example: `image` uint8 `[H, W, 3]` (or `decode.ImageFile`), and what
            goes with it, which is passed on.
          rng: the example's own generator.

        Returns:
          `image` uint8 `[S, S, 3]`, `random` float32 `[NUM_RANDOM]` (see `augment`), the rest;
          `erase` int32 `[4]`, `mix` float32 `[NUM_MIX]` and `depth` float32 `[drop_blocks]`
          (uniform in 0..1), each where it is turned on.
        """
        random = np.concatenate(
            [rng.random(NUM_UNIFORM, np.float32), rng.standard_normal(NUM_NORMAL, np.float32)]
        )
        image = self._square(example["image"], rng)
        if self.flip and rng.random() < 0.5:
            image = cv2.flip(image, 1)
        # What came later draws later: without it, images are what they were before.
        if self.trivial_augment:
            image = trivial_augment.apply(image, *trivial_augment.draw(rng))
        if self.rand_augment:
            steps = rand_augment.VARIANTS[self.rand_augment].draw(
                rng, self.rand_augment_magnitude, self.rand_augment_std, self.image_size
            )
            image = rand_augment.apply(image, steps, self.rand_augment)
        prepared = example | {"image": image, "random": random}
        if self.random_erase:
            prepared[ERASE] = draw_box(rng, self.image_size, self.random_erase)
        if self.mixup or self.cutmix:
            prepared[MIX] = draw_mix(rng, self.image_size, mixup=self.mixup, cutmix=self.cutmix)
        if self.drop_blocks:
            prepared[DEPTH] = rng.random(self.drop_blocks, np.float32)
        return prepared

    def _square(self, image: np.ndarray | ImageFile, rng: np.random.Generator) -> np.ndarray:
        size = self.image_size
        if self.crop == "random_sized":
            height, width = image.shape[:2]
            window = random_window(height, width, rng)
            if window is None:
                image = _short_side_to(np.asarray(image), size, self.interpolation, self.antialias)
                window = centre_window(image, size, size)
            image = window.cut(image)
        return resize(
            np.asarray(image),
            size,
            size,
            interpolation=self.interpolation,
            antialias=self.antialias,
        )


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Prepare a test image: no randomness.

    Attributes:
      image_size: S, side of the square result.
      short_side: the image's short side is made this long, then squares are
        cut out; None makes the whole image square.
      interpolation, antialias: see `resize.resize`.
      crops: which squares: "centre", or "ten", see `ten_crops`.
      centre: one of `CENTRES`.
    """

    image_size: int
    short_side: int | None
    interpolation: str = "bicubic"
    antialias: bool = True
    crops: str = "centre"
    centre: str = "torch7"

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Return `image` uint8 `[S, S, 3]`, of ten crops `[10, S, S, 3]`, and what goes with it."""
        image, size = example["image"], self.image_size
        if self.short_side is None:
            image = resize(
                image, size, size, interpolation=self.interpolation, antialias=self.antialias
            )
        else:
            image = _short_side_to(image, self.short_side, self.interpolation, self.antialias)
            if self.crops == "ten":
                image = ten_crops(image, size, self.centre)
            else:
                image = centre_window(image, size, size, self.centre).cut(image)
        return example | {"image": image}


@dataclasses.dataclass(frozen=True)
class DenseTransform:
    """Prepare a test image to be scored at every position (He et al. 2015): no randomness.

    Nearly the whole image is kept. Only the long side is cut, evenly at both ends, to a multiple
    of the stride, so that a test set comes in few shapes: each has to be compiled.

    Attributes:
      stride: of the network, in pixels from position to position.
      interpolation, antialias: see `resize.resize`.
    """

    stride: int
    interpolation: str = "bicubic"
    antialias: bool = True

    def shape(self, height: int, width: int, short_side: int) -> tuple[int, int]:
        """Return height and width of the result for an image of this height and width."""
        long_side = max(_resized_shape(height, width, short_side))
        # Never below the short side, which need not be a multiple.
        long_side = max(short_side, long_side // self.stride * self.stride)
        return (short_side, long_side) if height <= width else (long_side, short_side)

    def __call__(self, image: np.ndarray, short_side: int) -> np.ndarray:
        """Map an image uint8 `[H, W, 3]` to uint8 `[*shape(H, W, short_side), 3]`."""
        height, width = image.shape[:2]
        height, width = self.shape(height, width, short_side)
        image = _short_side_to(image, short_side, self.interpolation, self.antialias)
        return centre_window(image, height, width).cut(image)


def random_window(height: int, width: int, rng: np.random.Generator) -> CropWindow | None:
    """Draw the paper's random sized crop (Sec. 4, after Szegedy et al. 2015).

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      rng: source of randomness.

    Returns:
      A window of 8 to 100 % of the area, or None if ten draws did not fit.
    """
    for _ in range(_TRIES):
        area = rng.uniform(_MIN_AREA, _MAX_AREA) * height * width
        aspect = rng.uniform(_MIN_ASPECT, _MAX_ASPECT)
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.random() < 0.5:
            wide, high = high, wide
        if 0 < high <= height and 0 < wide <= width:
            top = int(rng.integers(height - high, endpoint=True))
            left = int(rng.integers(width - wide, endpoint=True))
            return CropWindow(top, left, high, wide)
    return None


def centre_window(image: np.ndarray, height: int, width: int, centre: str = "torch7") -> CropWindow:
    """Return the window in the middle, of odd margins as `CENTRES` rounds them."""
    rounded = CENTRES[centre]
    rows, columns = image.shape[0] - height, image.shape[1] - width
    return CropWindow(rounded(rows / 2), rounded(columns / 2), height, width)


def ten_crops(image: np.ndarray, size: int, centre: str = "torch7") -> np.ndarray:
    """Cut out the four corners and the centre, and mirror each (Krizhevsky et al. 2012).

    Args:
      image: uint8 `[H, W, 3]`, neither side shorter than `size`.
      size: side of a crop, in pixels.
      centre: one of `CENTRES`.

    Returns:
      uint8 `[10, size, size, 3]`: top left, top right, bottom left, bottom right and centre, then
      their mirror images in the same order.
    """
    bottom, right = image.shape[0] - size, image.shape[1] - size
    corners = [CropWindow(top, left, size, size) for top in (0, bottom) for left in (0, right)]
    windows = (*corners, centre_window(image, size, size, centre))
    crops = np.stack([window.cut(image) for window in windows])
    return np.concatenate([crops, crops[:, :, ::-1]])


def _short_side_to(image: np.ndarray, size: int, interpolation: str, antialias: bool) -> np.ndarray:
    height, width = image.shape[:2]
    height, width = _resized_shape(height, width, size)
    return resize(image, height, width, interpolation=interpolation, antialias=antialias)


def _resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    short = min(height, width)
    return height * short_side // short, width * short_side // short
