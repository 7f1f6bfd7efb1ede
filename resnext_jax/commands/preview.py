"""Draw images as training and evaluation see them.

As a command: `python -m resnext_jax.data.preview --config=configs/x.py --out=batch.png`. Config
fields can be changed as for train.py: --config.data.crop=whole.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict, config_flags

from resnext_jax.config import build, cli
from resnext_jax.config.checks import validate
from resnext_jax.data.augment import SKIPPED
from resnext_jax.data.mixing import MIX, mix
from resnext_jax.data.pipeline import HostBatch, eval_batches, train_batches
from resnext_jax.data.sources import Source, open_split
from resnext_jax.errors import UserError, fail, reports_user_errors
from resnext_jax.files import user_path

# Matplotlib limits the size of a picture.
_MOST_IMAGES = 256

# Sizes in the picture, in pixels. Images are resized to _SIDE.
_SIDE, _TITLE, _HEADING, _MARGIN = 144, 18, 30, 8
_FEWEST_COLUMNS, _MOST_COLUMNS = 4, 8  # a heading is four columns wide
_DPI = 128  # a power of two, so that sizes in inches convert back to whole pixels
_LONGEST_TITLE = 20


@dataclasses.dataclass(frozen=True)
class Shown:
    """Images as the network sees them.

    Attributes:
      heading: description of the images.
      pixels: uint8 `[N, S, S, 3]`, RGB: denormalised, rounded, clipped to 0..255.
      titles: a title per image, usually its class name.
    """

    heading: str
    pixels: np.ndarray
    titles: tuple[str, ...]


def draw(
    config: ConfigDict, out: str | os.PathLike[str], *, images: int = 8, step: int = 0
) -> Path:
    """Draw the first images of a training batch, and the first test images.

    The data set is prepared if `train.py` would prepare it.

    Args:
      config: from `configs/`.
      out: PNG file to write; overwritten if it exists.
      images: number of images of each kind, from 1 to 256; all if there are fewer.
      step: index of the training batch, from 0.

    Returns:
      The path of the picture.

    Raises:
      UserError: config, data or an argument is invalid, or the picture cannot be written.
    """
    validate(config)
    path = _checked(out)
    if not 1 <= images <= _MOST_IMAGES:
        raise UserError(f"--images={images} must be from 1 to {_MOST_IMAGES}.")
    shown = [training_images(config, images, step), test_images(config, images)]
    figure = lay_out(shown)
    try:
        with warnings.catch_warnings():
            # Class names may be in any script; a missing glyph is drawn as a box.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(path, dpi=_DPI, format="png")
    except OSError as error:
        raise UserError(
            f"the picture {path} cannot be written ({error.strerror or error}); "
            "choose another file with --out=FILE.png."
        ) from error
    return path


def training_images(config: ConfigDict, images: int, step: int) -> Shown:
    """Return the first images of global batch `step` (all if there are fewer), augmented.

    With mixup or CutMix, the title gives the image's own share and class; the rest is its
    partner's, the neighbouring image.

    Raises:
      UserError: training has no such step, or the data cannot be read.
    """
    source = open_split(config, "train")
    num_steps = build.num_steps(config, len(source))
    if not 0 <= step < num_steps:
        raise UserError(
            f"--step={step} is not one of the {num_steps} steps of this config; steps are counted "
            "from 0."
        )
    images = min(images, config.batch_size)
    mixed = bool(config.data.mixup or config.data.cutmix)
    batches = train_batches(
        source,
        build.train_transform(config),
        seed=config.seed,
        batch_size=config.batch_size,
        # Include the last image's partner.
        positions=np.arange(images + images % 2 if mixed else images),
        start_step=step,
        num_steps=step + 1,
        on_error=config.data.on_error,
    )
    with contextlib.closing(batches):
        batch = next(batches)
    on_device = _on_device(batch)
    normalised = build.device_transform(config).train(on_device)
    heading = f"training, batch {step}: {images} of {config.batch_size} images"
    titles = _titles(source, batch, "{} (replacement)")
    if mixed:
        normalised, shares = mix(normalised, on_device[MIX])
        heading += ", mixed in pairs"
        titles = tuple(f"{share:.0%} {title}" for share, title in zip(shares, titles, strict=True))
    return Shown(heading, _pixels(config, normalised)[:images], titles[:images])


def test_images(config: ConfigDict, images: int) -> Shown:
    """Return the first test images, all if there are fewer.

    Raises:
      UserError: the data cannot be read.
    """
    source = open_split(config, "test")
    images = min(images, len(source))
    batches = eval_batches(
        source,
        build.eval_transform(config),
        batch_size=images,
        positions=np.arange(images),
        on_error=config.data.on_error,
    )
    with contextlib.closing(batches):
        batch = next(batches)
    normalised = build.device_transform(config).test(_on_device(batch))
    heading = f"test: {images} of {len(source)} images"
    return Shown(heading, _pixels(config, normalised), _titles(source, batch, "cannot be decoded"))


def lay_out(shown: Sequence[Shown]) -> Figure:
    """Arrange images in rows under their headings, each 144 by 144 pixels.

    Matplotlib resizes them; sizes that divide 144, and much smaller ones, stay sharp.
    """
    most = max(len(part.titles) for part in shown)
    columns = min(max(most, _FEWEST_COLUMNS), _MOST_COLUMNS)
    rows = [-(-len(part.titles) // columns) for part in shown]
    row_height = _TITLE + _SIDE + _MARGIN
    width = _MARGIN + columns * (_SIDE + _MARGIN)
    height = len(shown) * _HEADING + sum(rows) * row_height
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)

    top = 0
    for part, count in zip(shown, rows, strict=True):
        figure.text(
            _MARGIN / width, 1 - (top + _HEADING / 2) / height, part.heading, va="center", size=9
        )
        top += _HEADING
        for place, (image, title) in enumerate(zip(part.pixels, part.titles, strict=True)):
            row, column = divmod(place, columns)
            left = _MARGIN + column * (_SIDE + _MARGIN)
            bottom = height - (top + row * row_height + _TITLE + _SIDE)
            axes = figure.add_axes(
                (left / width, bottom / height, _SIDE / width, _SIDE / height), frame_on=False
            )
            axes.imshow(image)
            axes.set_axis_off()
            # A dollar sign in a class name does not start a formula.
            axes.set_title(_short(title), size=7, pad=2, parse_math=False)
        top += count * row_height
    return figure


def _checked(out: str | os.PathLike[str]) -> Path:
    path = user_path(out, "--out")
    if path.suffix.lower() != ".png":
        raise UserError(f"--out={out} must end in .png, the only supported format.")
    if not path.parent.is_dir():
        raise UserError(f"--out={out} is in a folder that does not exist; create {path.parent}.")
    return path


def _on_device(batch: HostBatch) -> dict[str, jax.Array]:
    return {name: jax.numpy.asarray(array) for name, array in batch.items()}


def _pixels(config: ConfigDict, normalised: jax.Array) -> np.ndarray:
    values = np.asarray(normalised) * np.asarray(config.data.std) + np.asarray(config.data.mean)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _titles(source: Source, batch: HostBatch, skipped_title: str) -> tuple[str, ...]:
    names = [source.class_names[label] for label in batch["label"]]
    skipped = batch.get(SKIPPED, np.zeros(len(names), bool))
    return tuple(
        skipped_title.format(name) if bad else name
        for name, bad in zip(names, skipped, strict=True)
    )


def _short(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Recipe, a file in configs/.")
    flags.DEFINE_string("out", None, "PNG file to write; overwritten if it exists.")
    flags.DEFINE_integer("images", 8, "Number of training images, and of test images.")
    flags.DEFINE_integer("step", 0, "Index of the training batch, from 0.")


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the preview command."""
    del argv
    values = flags.FLAGS
    if not values.out:
        fail("--out is missing; give the picture to write, as in --out=batch.png.")
    # A training run may be using the accelerator, and a few images do not need one.
    jax.config.update("jax_platforms", "cpu")
    print(draw(values.config, values.out, images=values.images, step=values.step))


def run() -> None:
    """Run the command."""
    cli.run(main, _define_flags)
