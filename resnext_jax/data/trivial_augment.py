"""TrivialAugment (Müller and Hutter 2021): one random operation of random strength on an image.

The operations, strengths and conventions are those of torchvision's TrivialAugmentWide, the
paper's "wide" space, with Pillow's bilinear filter and black beyond the border. They work on whole
images of uint8, on the host.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, int], Image.Image]

# Strengths go from 0 (nothing, but for the operations that have no strength) to this.
STRONGEST = 30

_BLACK = (0, 0, 0)


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Take the pixel at (x, y) from (a x + b y + c, d x + e y + f), for a matrix (a, ..., f)."""
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor=_BLACK,
    )


def _moved(picture: Image.Image, right: int, down: int) -> Image.Image:
    """Move the picture by whole pixels."""
    width, height = picture.size
    # Beyond the border a crop is black. It gives what _affine would, in a tenth of the time.
    return picture.crop((-right, -down, width - right, height - down))


def _shear(level: int) -> float:
    return 0.99 * level / STRONGEST


def _pixels(level: int) -> int:
    # Towards zero. (torchvision's table has 15.999999 for 16, of which it makes 15.)
    return int(32 * level / STRONGEST)


def _factor(level: int) -> float:
    return 1 + 0.99 * level / STRONGEST


# For each operation what it does, and whether its level has a sign.
# A shear leaves the upper left corner where it is; a rotation, counter-clockwise, the centre.
_OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "identity": (lambda picture, level: picture, False),
    "shear_x": (lambda picture, level: _affine(picture, (1, _shear(level), 0, 0, 1, 0)), True),
    "shear_y": (lambda picture, level: _affine(picture, (1, 0, 0, _shear(level), 1, 0)), True),
    "translate_x": (lambda picture, level: _moved(picture, _pixels(level), 0), True),
    "translate_y": (lambda picture, level: _moved(picture, 0, _pixels(level)), True),
    "rotate": (
        lambda picture, level: picture.rotate(
            135 / STRONGEST * level, Image.Resampling.BILINEAR, fillcolor=_BLACK
        ),
        True,
    ),
    "brightness": (
        lambda picture, level: ImageEnhance.Brightness(picture).enhance(_factor(level)),
        True,
    ),
    "colour": (lambda picture, level: ImageEnhance.Color(picture).enhance(_factor(level)), True),
    "contrast": (
        lambda picture, level: ImageEnhance.Contrast(picture).enhance(_factor(level)),
        True,
    ),
    "sharpness": (
        lambda picture, level: ImageEnhance.Sharpness(picture).enhance(_factor(level)),
        True,
    ),
    # From 8 bits of each channel to 2.
    "posterise": (
        lambda picture, level: ImageOps.posterize(picture, 8 - round(6 * level / STRONGEST)),
        False,
    ),
    # Values from the threshold on are turned to their negative.
    "solarise": (
        lambda picture, level: ImageOps.solarize(picture, math.ceil(255 - 255 / STRONGEST * level)),
        False,
    ),
    "autocontrast": (lambda picture, level: ImageOps.autocontrast(picture), False),
    "equalise": (lambda picture, level: ImageOps.equalize(picture), False),
}
OPERATIONS: tuple[str, ...] = tuple(_OPERATIONS)


def draw(rng: np.random.Generator) -> tuple[str, int]:
    """Draw an operation and its level: each operation, strength and sign is as likely."""
    operation = OPERATIONS[rng.integers(len(OPERATIONS))]
    strength = int(rng.integers(STRONGEST, endpoint=True))
    return operation, strength if rng.integers(2) else -strength


def apply(image: np.ndarray, operation: str, level: int) -> np.ndarray:
    """Apply an operation of a strength.

    Args:
      image: uint8 `[H, W, 3]`, RGB.
      operation: one of OPERATIONS.
      level: its strength, 0 to 30, and its sign, where there is one to it:
        shears go to 0.99, translations to 32 pixels (right and down), rotations
        to 135 degrees (counter-clockwise), and the factors of brightness,
        colour, contrast and sharpness from 0.01 to 1.99. The other operations
        have no sign, and "identity", "autocontrast" and "equalise" no strength.

    Returns:
      uint8 `[H, W, 3]`.
    """
    function, signed = _OPERATIONS[operation]
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(function(picture, level if signed else abs(level)))
