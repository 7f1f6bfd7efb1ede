"""How test images are made: as published weights want them, unless flags say otherwise."""

import argparse
import dataclasses
import math

from ml_collections import ConfigDict

from resnext_jax.config.checks import validate
from resnext_jax.data.resize import INTERPOLATIONS
from resnext_jax.errors import CommandParser, positive_int
from resnext_jax.interop.pretrained import Wants

# Pixels are 0 to 1 where weights are published, and 0 to 255 in a config.
_SCALE = 255


@dataclasses.dataclass(frozen=True)
class ImageFlags:
    """What a command's flags say of its images; None: nothing.

    Attributes:
      image_size: side of the crop, in pixels.
      short_side: that an image is resized to before the crop, in pixels.
      interpolation: of resizing, one of `INTERPOLATIONS`.
      mean, std: per channel, of pixels from 0 to 1.
    """

    image_size: int | None = None
    short_side: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


# Without flags.
NO_FLAGS = ImageFlags()


def three_numbers(text: str) -> tuple[float, ...]:
    """Parse a number per channel, "0.485,0.456,0.406"; the `type` of a command-line argument."""
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers such as 0.5,0.5,0.5")
    return numbers


def add_image_flags(parser: CommandParser) -> None:
    """Add the flags of `ImageFlags` to a command."""
    parser.add_argument(
        "--image_size", type=positive_int, metavar="S", help="side of the crop, in pixels"
    )
    parser.add_argument(
        "--short_side", type=positive_int, metavar="S", help="short side before the crop, in pixels"
    )
    parser.add_argument(
        "--interpolation", choices=INTERPOLATIONS, help="for resizing (default: as in testing)"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            type=three_numbers,
            metavar="R,G,B",
            help="per channel, of pixels from 0 to 1 (default: as in testing)",
        )


def image_flags(options: argparse.Namespace) -> ImageFlags:
    """Return what the flags of `add_image_flags` were given."""
    names = [field.name for field in dataclasses.fields(ImageFlags)]
    return ImageFlags(**{name: getattr(options, name) for name in names})


def set_images(config: ConfigDict, wants: Wants | None, flags: ImageFlags) -> None:
    """Set how a config's test images are made.

    Args:
      config: is changed.
      wants: of published weights; None: the config says it.
      flags: come first. A crop of another size keeps its share of the short side.

    Raises:
      ConfigError: they do not go together.
    """
    data = config.data
    size, share = flags.image_size, 7 / 8
    if wants is not None:
        size, share = size or wants.image_size, wants.crop_pct
        data.crop = "random_sized"
        data.eval_interpolation = wants.interpolation
        data.mean = tuple(_SCALE * number for number in wants.mean)
        data.std = tuple(_SCALE * number for number in wants.std)
    if size is not None:
        whole = data.crop == "whole"
        data.eval_image_size = size
        data.eval_short_side = None if whole else math.floor(size / share)
    if flags.short_side is not None:
        data.eval_short_side = flags.short_side
    if flags.interpolation is not None:
        data.eval_interpolation = flags.interpolation
    if flags.mean is not None:
        data.mean = tuple(_SCALE * number for number in flags.mean)
    if flags.std is not None:
        data.std = tuple(_SCALE * number for number in flags.std)
    validate(config)
