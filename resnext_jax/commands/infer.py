"""Find objects in images with a trained RPN and a trained Fast R-CNN, or with one network.

    python -m resnext_jax.detection.infer --rpn=RPN_WORKDIR --workdir=FAST_RCNN_WORKDIR \
        photo.jpg folder 'more/*.png'

draws boxes with names and scores on a picture of each image, and writes all of them to
`detections.json`, both in the folder `detections`. A network that makes its own proposals goes
without `--rpn`. Unreadable images are reported on stderr and skipped; the exit status is then 2.
Images are taken as they are stored: a mark to turn one (EXIF) is not
followed.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnext_jax.commands.predict import find_images
from resnext_jax.config import cli
from resnext_jax.detection.finder import (
    AnyPath,
    Finder,
    ImageDetections,
    decoded_image,
    draw_detections,
)
from resnext_jax.errors import (
    EXIT_USER_ERROR,
    CommandParser,
    DataError,
    UserError,
    one_line,
    positive_int,
    reports_user_errors,
)
from resnext_jax.files import path_argument, replacing

OUT = Path("detections")
_JSON = "detections.json"


def infer(
    rpn_workdir: AnyPath | None,
    detector_workdir: AnyPath,
    images: Iterable[AnyPath],
    *,
    score: float = 0.5,
    checkpoint: str = "latest",
    rpn_checkpoint: str = "latest",
    ema: bool = False,
) -> list[ImageDetections]:
    """Find objects in images, as the command does, for programs and notebooks.

    Args:
      rpn_workdir: of the region proposal network's run; None where there is one network.
      detector_workdir: of Fast R-CNN's run, or of the one network's (Faster R-CNN's).
      images: files, folders or patterns, see `predict.find_images`.
      score: only objects that score higher are found, 0 to 1.
      checkpoint: of the detector: "latest", "best", or a step.
      rpn_checkpoint: of the RPN, likewise.
      ema: use the averaged weights, of both.

    Returns:
      What was found in each image file, in their order; those that cannot be read have an `error`.

    Raises:
      UserError: there are no images, or the runs cannot be used.
    """
    paths = find_images(os.fspath(image) for image in images)
    if not paths:
        raise DataError("there are no images to find objects in; name some.")
    network = Finder(
        rpn_workdir,
        detector_workdir,
        score=score,
        checkpoint=checkpoint,
        rpn_checkpoint=rpn_checkpoint,
        ema=ema,
        most_images=len(paths),
    )
    return list(network.find(paths))


class _Output:
    """A folder of pictures, and of a JSON file of all that was found."""

    def __init__(self, folder: Path, images: Iterable[str]):
        """Make the folder; pictures get names that replace none of the images."""
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._taken = {Path(image).resolve() for image in images}
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, found: ImageDetections, enlarge: int) -> Path:
        """Draw a picture; return where it is."""
        picture = draw_detections(
            decoded_image(found.file),
            np.array([detection.box for detection in found.detections]).reshape(-1, 4),
            [detection.name for detection in found.detections],
            np.array([detection.score for detection in found.detections]),
            enlarge=enlarge,
        )
        path = self._free(Path(found.file).stem)
        _write(path, lambda draft: Image.fromarray(picture).save(draft, "PNG"))
        self._rows.append(
            {
                "file": found.file,
                "height": found.height,
                "width": found.width,
                "picture": path.name,
                "detections": [dataclasses.asdict(detection) for detection in found.detections],
            }
        )
        return path

    def finish(self) -> Path:
        """Write the JSON file; return where it is."""
        path = self._folder / _JSON
        # An image a line.
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in self._rows)
        _write(path, lambda draft: draft.write_text(f"[\n{rows}\n]\n"))
        return path

    def _free(self, stem: str) -> Path:
        """Return a path of no other picture and of no image."""
        for number in itertools.count(1):
            path = self._folder / f"{stem if number == 1 else f'{stem}_{number}'}.png"
            if path.resolve() not in self._taken:
                break
        self._taken.add(path.resolve())
        return path


def _write(path: Path, write: Callable[[Path], object]) -> None:
    with _explained(path), replacing(path) as draft:
        write(draft)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or one_line(error)}); make room there or "
            "name another folder with --out=..."
        ) from error


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Find objects, as the command line says."""
    options = _parse(argv)
    paths = find_images(options.image)
    cli.keep_compiled_programs()
    network = Finder(
        options.rpn,
        options.workdir,
        score=options.score,
        checkpoint=options.checkpoint,
        rpn_checkpoint=options.rpn_checkpoint,
        ema=options.ema,
        most_images=len(paths),
    )
    output, status = _Output(options.out, paths), 0
    for found in network.find(paths):
        if found.error:
            print(f"error: {found.error}", file=sys.stderr)
            status = EXIT_USER_ERROR
        else:
            print(f"{found} -> {output.add(found, options.enlarge)}", flush=True)
    print(output.finish())
    if status:
        sys.exit(status)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m resnext_jax.detection.infer",
        description="Find objects in images.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "image", nargs="+", metavar="IMAGE", help="files, folders, or patterns in quotes"
    )
    parser.add_argument(
        "--rpn", metavar="DIR", type=path_argument, help="of a region proposal network's run"
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=path_argument,
        required=True,
        help="of a Fast R-CNN's run; or, without --rpn, of a network that does both",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path_argument,
        default=OUT,
        help=f"for pictures and {_JSON} ({OUT})",
    )
    parser.add_argument(
        "--score", type=_score, default=0.5, help="of objects, at least; 0 to 1 (0.5)"
    )
    parser.add_argument(
        "--checkpoint", default="latest", help="of --workdir: latest (the default), best, a step"
    )
    parser.add_argument("--rpn_checkpoint", default="latest", help="of --rpn, likewise")
    parser.add_argument("--ema", action="store_true", help="the averages of the weights, of both")
    parser.add_argument(
        "--enlarge",
        type=positive_int,
        default=1,
        metavar="N",
        help="pictures N times as large as the images, for legible text on small ones (1)",
    )
    return parser.parse_args(argv)


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to 1")
    return score
