"""RandAugment (Cubuk et al. 2020): random operations of about one strength on an image.

Two variants, on whole images of uint8, on the host: torchvision's `RandAugment`, and timm's
increasing one ("rand-m7-mstd0.5-inc1"), in which every operation changes more at a higher
magnitude.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# Operations on each image.
_COUNT = 2
# timm's scale, the probability of each of its operations, and what comes in at the border.
_STRONGEST = 10
_PROBABILITY = 0.5
_MEAN_COLOUR = (124, 116, 104)
# torchvision's: magnitudes 0 to 30 are equally spaced.
_LAST_BIN = 30


class Step(NamedTuple):
    """An operation and its argument, in the operation's own unit (see `_OPERATIONS`)."""

    operation: str
    argument: float = 0.0


class _Canvas(NamedTuple):
    """How a picture is moved: Pillow's filter, and the colour beyond the border."""

    resample: Image.Resampling
    fill: tuple[int, int, int]

    def affine(self, picture: Image.Image, *matrix: float) -> Image.Image:
        """Take the pixel at (x, y) from (a x + b y + c, d x + e y + f)."""
        return picture.transform(
            picture.size, Image.Transform.AFFINE, matrix, self.resample, fillcolor=self.fill
        )


def _solarise_add(picture: Image.Image, add: int) -> Image.Image:
    dark = [min(255, value + add) if value < 128 else value for value in range(256)]
    return picture.point(3 * dark)


# Arguments: shears are slopes and move the lower right to the left; translations are pixels to the
# left and up; degrees are counter-clockwise; factors blend with black, grey, the mean or a blurred
# picture (1: no change); bits are those kept; values from the threshold on are negated.
_OPERATIONS: dict[str, Callable[[Image.Image, float, _Canvas], Image.Image]] = {
    "identity": lambda picture, _, canvas: picture,
    "shear_x": lambda picture, slope, canvas: canvas.affine(picture, 1, slope, 0, 0, 1, 0),
    "shear_y": lambda picture, slope, canvas: canvas.affine(picture, 1, 0, 0, slope, 1, 0),
    "translate_x": lambda picture, pixels, canvas: canvas.affine(picture, 1, 0, pixels, 0, 1, 0),
    "translate_y": lambda picture, pixels, canvas: canvas.affine(picture, 1, 0, 0, 0, 1, pixels),
    "rotate": lambda picture, degrees, canvas: picture.rotate(
        degrees, canvas.resample, fillcolor=canvas.fill
    ),
    "brightness": lambda picture, factor, _: ImageEnhance.Brightness(picture).enhance(factor),
    "colour": lambda picture, factor, _: ImageEnhance.Color(picture).enhance(factor),
    "contrast": lambda picture, factor, _: ImageEnhance.Contrast(picture).enhance(factor),
    "sharpness": lambda picture, factor, _: ImageEnhance.Sharpness(picture).enhance(factor),
    "posterise": lambda picture, bits, _: ImageOps.posterize(picture, int(bits)),
    "solarise": lambda picture, threshold, _: ImageOps.solarize(picture, math.ceil(threshold)),
    "solarise_add": lambda picture, add, _: _solarise_add(picture, int(add)),
    "autocontrast": lambda picture, _, canvas: ImageOps.autocontrast(picture),
    "equalise": lambda picture, _, canvas: ImageOps.equalize(picture),
    "invert": lambda picture, _, canvas: ImageOps.invert(picture),
}

_FACTORS = ("brightness", "colour", "contrast", "sharpness")

INCREASING = (
    *("autocontrast", "equalise", "invert", "rotate", "posterise", "solarise", "solarise_add"),
    *("colour", "contrast", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
TORCHVISION = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "colour", "contrast", "sharpness"),
    *("posterise", "solarise", "autocontrast", "equalise"),
)


def increasing_step(operation: str, magnitude: float, sign: int, size: int) -> Step:
    """Return timm's argument of an operation.

    Args:
      operation: one of INCREASING.
      magnitude: 0 to 10.
      sign: 1 or -1, for operations that have a direction.
      size: side of the square image, in pixels.
    """
    part = magnitude / _STRONGEST
    arguments = {
        "rotate": sign * 30 * part,
        "posterise": 4 - int(4 * part),
        "solarise": 256 - int(256 * part),
        "solarise_add": int(110 * part),
        "shear_x": sign * 0.3 * part,
        "shear_y": sign * 0.3 * part,
        "translate_x": sign * 0.45 * part * size,
        "translate_y": sign * 0.45 * part * size,
    } | dict.fromkeys(_FACTORS, max(0.1, 1 + sign * 0.9 * part))
    return Step(operation, arguments.get(operation, 0.0))


def torchvision_step(operation: str, magnitude: int, sign: int, size: int) -> Step:
    """Return torchvision's argument of an operation; see `increasing_step`.

    Args:
      operation: one of TORCHVISION.
      magnitude: 0 to 30.
      sign: 1 or -1.
      size: side of the square image, in pixels.
    """
    part = magnitude / _LAST_BIN
    # To the right and down where positive.
    pixels = -sign * int(150 / 331 * size * part)
    arguments = {
        "rotate": sign * 30 * part,
        "posterise": 8 - round(4 * part),
        "solarise": 255 * (1 - part),
        "shear_x": sign * 0.3 * part,
        "shear_y": sign * 0.3 * part,
        "translate_x": pixels,
        "translate_y": pixels,
    } | dict.fromkeys(_FACTORS, 1 + sign * 0.9 * part)
    return Step(operation, arguments.get(operation, 0.0))


def _draw_increasing(
    rng: np.random.Generator, magnitude: float, deviation: float, size: int
) -> list[Step]:
    steps = []
    for operation in rng.choice(INCREASING, _COUNT):
        applied = rng.random() < _PROBABILITY
        strength = min(max(rng.normal(magnitude, deviation), 0.0), _STRONGEST)
        sign = 1 if rng.integers(2) else -1
        if applied:
            steps.append(increasing_step(str(operation), strength, sign, size))
    return steps


def _draw_torchvision(
    rng: np.random.Generator, magnitude: float, deviation: float, size: int
) -> list[Step]:
    del deviation  # torchvision has none
    signs = 2 * rng.integers(2, size=_COUNT) - 1
    return [
        torchvision_step(str(operation), int(magnitude), int(sign), size)
        for operation, sign in zip(rng.choice(TORCHVISION, _COUNT), signs, strict=True)
    ]


class Variant(NamedTuple):
    """How one variant draws the operations for an image, and how it moves pixels.

    Attributes:
      draw: given random numbers, magnitude, its standard deviation and the image's side.
      canvas: filter and fill colour.
      strongest: the largest magnitude.
    """

    draw: Callable[[np.random.Generator, float, float, int], list[Step]]
    canvas: _Canvas
    strongest: int


# Keys: `config.data.rand_augment`.
VARIANTS: dict[str, Variant] = {
    "increasing": Variant(
        _draw_increasing, _Canvas(Image.Resampling.BICUBIC, _MEAN_COLOUR), _STRONGEST
    ),
    "torchvision": Variant(
        _draw_torchvision, _Canvas(Image.Resampling.NEAREST, (0, 0, 0)), _LAST_BIN
    ),
}


def apply(image: np.ndarray, steps: list[Step], variant: str) -> np.ndarray:
    """Apply operations in sequence.

    Args:
      image: uint8 `[S, S, 3]`, RGB.
      steps: operations and arguments, from the variant's `draw`.
      variant: one of VARIANTS.

    Returns:
      uint8 `[S, S, 3]`.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    for operation, argument in steps:
        picture = _OPERATIONS[operation](picture, argument, VARIANTS[variant].canvas)
    return np.asarray(picture)
