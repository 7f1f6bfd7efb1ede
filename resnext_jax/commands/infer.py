"""Detect objects in images with a trained RPN and Fast R-CNN, or with a single Faster R-CNN.

    python -m resnext_jax.detection.infer --rpn=RPN_WORKDIR --workdir=FAST_RCNN_WORKDIR \
        photo.jpg folder 'more/*.png'

draws the boxes with class names and scores on a copy of each image, and writes all detections to
`detections.json`, both in the folder `detections`. Omit `--rpn` for a network that computes its own
proposals. Unreadable images are reported on stderr and skipped; the exit status is then 2. EXIF
orientation is ignored.
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
    quoted,
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
    """Detect objects in images, as the command does, for programs and notebooks.

    Args:
      rpn_workdir: workdir of the region proposal network; None for Faster R-CNN.
      detector_workdir: workdir of Fast R-CNN or Faster R-CNN.
      images: files, folders or patterns, see `predict.find_images`.
      score: minimum score of a detection, 0 to 1.
      checkpoint: checkpoint of the detector: "latest", "best", or a step.
      rpn_checkpoint: checkpoint of the RPN: "latest", "best", or a step.
      ema: use the averaged weights of both networks.

    Returns:
      The detections of each image file, in order; files that cannot be read have an `error`.

    Raises:
      UserError: there are no images, or the runs cannot be used.
    """
    paths = find_images(os.fspath(image) for image in images)
    if not paths:
        raise DataError("there are no images to detect objects in; name some.")
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
    """The output folder: a picture per image, and a JSON file with all detections."""

    def __init__(self, folder: Path, images: Iterable[str]):
        """Create the folder. Pictures are named such that they never overwrite `images`."""
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._taken = {Path(image).resolve() for image in images}
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, found: ImageDetections, enlarge: int) -> Path:
        """Draw and write the picture of an image; return its path."""
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
        """Write the JSON file; return its path."""
        path = self._folder / _JSON
        # One line per image.
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in self._rows)
        _write(path, lambda draft: draft.write_text(f"[\n{rows}\n]\n"))
        return path

    def _free(self, stem: str) -> Path:
        """Return a path that is neither another picture's nor an image's."""
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
            f"{path} cannot be written ({error.strerror or one_line(error)}); free disk space or "
            "choose another folder with --out=..."
        ) from error


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the detection command."""
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
            print(f"error: {quoted(found.error)}", file=sys.stderr)
            status = EXIT_USER_ERROR
        else:
            print(quoted(f"{found} -> {output.add(found, options.enlarge)}"), flush=True)
    print(output.finish())
    if status:
        sys.exit(status)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m resnext_jax.detection.infer",
        description="Detect objects in images.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "image", nargs="+", metavar="IMAGE", help="files, folders, or patterns in quotes"
    )
    parser.add_argument(
        "--rpn", metavar="DIR", type=path_argument, help="workdir of a region proposal network"
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=path_argument,
        required=True,
        help="workdir of Fast R-CNN; or, without --rpn, of Faster R-CNN",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path_argument,
        default=OUT,
        help=f"folder for pictures and {_JSON} ({OUT})",
    )
    parser.add_argument(
        "--score", type=_score, default=0.5, help="minimum score of a detection, 0 to 1 (0.5)"
    )
    parser.add_argument(
        "--checkpoint",
        default="latest",
        help="checkpoint of --workdir: latest (default), best, or a step",
    )
    parser.add_argument(
        "--rpn_checkpoint",
        default="latest",
        help="checkpoint of --rpn: latest (default), best, or a step",
    )
    parser.add_argument(
        "--ema", action="store_true", help="use the averaged weights of both networks"
    )
    parser.add_argument(
        "--enlarge",
        type=positive_int,
        default=1,
        metavar="N",
        help="enlarge pictures N times, for legible text on small images (1)",
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
