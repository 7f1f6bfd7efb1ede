"""Trained detectors on image files: one network proposes and one detects, or one does both."""

import colorsys
import dataclasses
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from resnext_jax.data.decode import UndecodableImageError, decode_rgb
from resnext_jax.detection.coco import CocoSplit, GroundTruth
from resnext_jax.detection.detector import Detector
from resnext_jax.detection.evaluate import DetectionArrays
from resnext_jax.detection.proposals import Proposer
from resnext_jax.detection.setup import stored_weights
from resnext_jax.errors import ConfigError, DataError, DivergedError, one_line
from resnext_jax.runs.workdir import existing_workdir, stored_class_names, stored_config

Colour = tuple[int, int, int]

# Of the picture's longer side.
_LINE, _TEXT = 1 / 320, 1 / 42
_SMALLEST_TEXT, _LARGEST_TEXT = 11, 28

# Of a colour, weighted as the eye does; on brighter ones black is read best.
_BRIGHT = 140


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    *,
    enlarge: int = 1,
) -> np.ndarray:
    """Draw boxes on an image, the best ones on top.

    Args:
      image: uint8 `[H, W, 3]`, RGB; it is not changed.
      boxes: `[n, 4]`, x1, y1, x2, y2 in its pixels; what is outside is cut off.
      names: n, of the objects. A name's colour is always the same.
      scores: `[n]`, from 0 to 1; None draws names alone, as for annotations.
      enlarge: scale factor from the image to the picture, so that text on small images is legible.

    Returns:
      uint8 `[enlarge * H, enlarge * W, 3]`.
    """
    height, width = (enlarge * side for side in image.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(image)).resize((width, height))
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(height, width) * _LINE))
    size = min(max(round(max(height, width) * _TEXT), _SMALLEST_TEXT), _LARGEST_TEXT)
    font = ImageFont.load_default(size)
    corners = _pixels(np.asarray(boxes, np.float64).reshape(-1, 4) * enlarge, height, width)
    order = range(len(corners)) if scores is None else np.argsort(scores, kind="stable").tolist()
    # All boxes first: no line goes through a text.
    for place in order:
        draw.rectangle(corners[place], outline=colour(names[place]), width=line)
    for place in order:
        text = names[place] if scores is None else f"{names[place]}: {scores[place]:.2f}"
        _write(draw, text, corners[place][:2], width, font, colour(names[place]))
    return np.asarray(picture)


def colour(name: str) -> Colour:
    """Return the colour of a name, RGB from 0 to 255: a bright one, the same on every machine."""
    number = zlib.crc32(name.encode())
    hue, lightness = (number % 360) / 360, 0.5 + 0.05 * (number // 360 % 4)
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _pixels(boxes: np.ndarray, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Return the first and last pixels, inclusive, of boxes inside the picture."""
    last = np.array([width - 1, height - 1])
    first_pixels = np.clip(np.rint(boxes[:, :2]), 0, last)
    last_pixels = np.clip(np.rint(boxes[:, 2:]) - 1, first_pixels, last)
    x1, y1, x2, y2 = np.concatenate([first_pixels, last_pixels], axis=1).astype(int).T.tolist()
    return list(zip(x1, y1, x2, y2, strict=True))


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[int, int],
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    background: Colour,
) -> None:
    """Write on a coloured ground above a box, or inside it where there is no room above."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    ground_width, ground_height = round(right - left) + 4, round(bottom - top) + 4
    x = max(0, min(corner[0], width - ground_width))
    y = corner[1] - ground_height if corner[1] >= ground_height else corner[1]
    draw.rectangle((x, y, x + ground_width - 1, y + ground_height - 1), fill=background)
    red, green, blue = background
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > _BRIGHT
    place = (x + 2 - round(left), y + 2 - round(top))
    draw.text(place, text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)


# Fields of both configs that must be the same.
_SIZES = ("short_side", "long_side")

_THREADS = 4
# Batches that go through one network before the other's turn: results come early.
_BATCHES = 8

# Decimals of pixels and of scores.
_PIXEL_DECIMALS, _SCORE_DECIMALS = 3, 6
# Objects that a line names.
_NAMED = 5

AnyPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Detection:
    """An object that was found.

    Attributes:
      box: x1, y1, x2, y2 in pixels of the image as it is stored, continuous.
      name: of its class.
      score: 0 to 1.
    """

    box: tuple[float, float, float, float]
    name: str
    score: float


@dataclasses.dataclass(frozen=True)
class ImageDetections:
    """What was found in an image.

    Attributes:
      file: the image, as it was given.
      height: of the image, in pixels.
      width: of the image, in pixels.
      detections: the best first.
      error: why the image cannot be read, in a sentence; "" if it can.
    """

    file: str
    height: int = 0
    width: int = 0
    detections: tuple[Detection, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        """Return a line with the best of what was found."""
        count = len(self.detections)
        best = [f"{each.name}: {each.score:.2f}" for each in self.detections[:_NAMED]]
        if count > _NAMED:
            best.append("...")
        return f"{self.file}: {count} found" + (f" ({', '.join(best)})" if best else "")


class Finder:
    """Trained networks, ready to find objects in image files."""

    def __init__(
        self,
        rpn_workdir: AnyPath | None,
        detector_workdir: AnyPath,
        *,
        score: float = 0.5,
        checkpoint: str = "latest",
        rpn_checkpoint: str = "latest",
        ema: bool = False,
        most_images: int | None = None,
    ):
        """Read the runs; the programs compile when first run.

        Args:
          rpn_workdir: of the region proposal network's run; None where there is one network.
          detector_workdir: of Fast R-CNN's run, or of the one network's (Faster R-CNN's).
          score: only objects that score higher are found, 0 to 1.
          checkpoint: of the detector: "latest", "best", or a step.
          rpn_checkpoint: of the RPN, likewise.
          ema: use the averaged weights, of both.
          most_images: that will be asked for at once, if that is known: smaller batches do then.

        Raises:
          UserError: a workdir has no such run or checkpoint, or the two do not fit.
        """
        if not 0 <= score <= 1:
            raise ConfigError(f"a score of {score} is impossible; give one from 0 to 1.")
        task = _detector_task(detector_workdir, alone=rpn_workdir is None)
        config, detector = stored_weights(detector_workdir, task, checkpoint, ema=ema)
        _prepare(config, most_images)
        self._names = stored_class_names(Path(detector_workdir))
        # The same boxes survive as with a lower one, and less is to be suppressed.
        config.detections.score = float(score)
        self._images_at_once = _BATCHES * config.eval_batch_size
        arrays = detector.params, detector.batch_stats
        self._detect: Callable[[CocoSplit], Iterable[tuple[int, DetectionArrays]]]
        network = Detector(config, detector.graphdef, detector.mesh)
        if rpn_workdir is None:
            self._detect = lambda split: network.run(split, *arrays)
            return
        rpn_config, rpn = stored_weights(rpn_workdir, "rpn", rpn_checkpoint, ema=ema)
        sizes, rpn_sizes = (
            ", ".join(f"{name}={each.data[name]}" for name in _SIZES)
            for each in (config, rpn_config)
        )
        if sizes != rpn_sizes:
            raise ConfigError(
                f"the RPN in {rpn_workdir} was trained on images of {rpn_sizes}, Fast R-CNN in "
                f"{detector_workdir} on {sizes}; give two runs with the same of both."
            )
        _prepare(rpn_config, most_images)
        proposer = Proposer(rpn_config, rpn.graphdef, rpn.mesh, training=False)

        def detect(split: CocoSplit) -> Iterable[tuple[int, DetectionArrays]]:
            found = proposer.run(split, rpn.params, rpn.batch_stats)
            proposals = {index: boxes for index, boxes, _ in found}
            return network.run(split, *arrays, proposals=proposals.__getitem__)

        self._detect = detect

    def find(self, paths: Iterable[str]) -> Iterator[ImageDetections]:
        """Find objects in image files, in their order.

        Raises:
          UserError: the networks' boxes are not numbers, or a file changes meanwhile.
        """
        paths = iter(paths)
        with ThreadPoolExecutor(_THREADS) as threads:
            while part := list(itertools.islice(paths, self._images_at_once)):
                yield from self._found(part, list(threads.map(_size, part)))

    def _found(
        self, paths: Sequence[str], sizes: Sequence[tuple[int, int] | str]
    ) -> Iterator[ImageDetections]:
        readable = {
            path: size for path, size in zip(paths, sizes, strict=True) if not isinstance(size, str)
        }
        found: dict[str, DetectionArrays] = {}
        if readable:
            split = image_split(readable, self._names)
            found = {split.file_names[index]: each for index, each in self._detect(split)}
        for path, size in zip(paths, sizes, strict=True):
            if isinstance(size, str):
                yield ImageDetections(path, error=size)
            else:
                yield ImageDetections(path, *size, self._named(path, found[path]))

    def _named(self, path: str, found: DetectionArrays) -> tuple[Detection, ...]:
        if not np.isfinite(found.boxes).all():
            raise DivergedError(
                f"boxes found in {path} are not finite numbers; use weights of a training that "
                "has not diverged."
            )
        boxes = found.boxes.astype(np.float64).round(_PIXEL_DECIMALS).tolist()
        scores = found.scores.astype(np.float64).round(_SCORE_DECIMALS).tolist()
        return tuple(
            Detection((x1, y1, x2, y2), self._names[label - 1], score)
            for (x1, y1, x2, y2), label, score in zip(
                boxes, found.classes.tolist(), scores, strict=True
            )
        )


def _detector_task(workdir: AnyPath, *, alone: bool) -> str:
    """Return what a run has trained that can detect, with an RPN's run besides or alone."""
    found = str(stored_config(existing_workdir(workdir)).task)
    mistakes = {
        "classification": "a classifier; python -m resnext_jax.predict says what images show",
        "rpn": "an RPN, which only proposes; name it with --rpn=..., and the run of a Fast R-CNN, "
        "which detects among its proposals, with --workdir=...",
    }
    if alone:
        mistakes["fast_rcnn"] = (
            "a run of Fast R-CNN, which detects among proposals; name the run of an RPN that makes "
            "them with --rpn=..."
        )
    else:
        mistakes["faster_rcnn"] = (
            "a run of one network, which makes its own proposals; leave --rpn out"
        )
    if found in mistakes:
        raise ConfigError(f"workdir {workdir} holds {mistakes[found]}.")
    return found


def _prepare(config: ConfigDict, most_images: int | None) -> None:
    config.data.num_workers = 0  # what was proposed is in this process
    config.eval_batch_size = min(config.eval_batch_size, most_images or config.eval_batch_size)


def image_split(sizes: Mapping[str, tuple[int, int]], names: Sequence[str]) -> CocoSplit:
    """Make a split without annotations of image files.

    Args:
      sizes: height and width of each, in pixels, by path.
      names: of the categories.
    """
    count = len(sizes)
    heights, widths = np.array(list(sizes.values()), np.int32).reshape(-1, 2).T
    nothing = GroundTruth(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0)
    )
    return CocoSplit(
        annotations=Path(),
        folder=Path(),
        image_ids=np.arange(count),
        file_names=tuple(sizes),
        heights=heights,
        widths=widths,
        offsets=np.zeros(count + 1, np.int64),
        objects=nothing,
        category_ids=np.arange(1, len(names) + 1),
        category_names=tuple(names),
        labelled=False,
    )


def decoded_image(path: str) -> np.ndarray:
    """Read an image file.

    Returns:
      uint8 `[H, W, 3]`, RGB, as it is stored: a mark to turn it (EXIF) is not followed.

    Raises:
      DataError: it cannot be read, or is no image.
    """
    try:
        return decode_rgb(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or one_line(error)}.") from error
    except UndecodableImageError as error:
        raise DataError(f"{path} cannot be decoded ({error}).") from error


def _size(path: str) -> tuple[int, int] | str:
    """Return height and width of an image that is whole, or why it is not.

    So it is decoded here and once for each network: a little beside what they take.
    """
    try:
        height, width = decoded_image(path).shape[:2]
    except DataError as error:
        return str(error)
    return height, width
