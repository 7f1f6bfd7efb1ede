"""COCO's own files: annotations in JSON and a folder of images, checked before they are used.

Other data sets in the same format are read alike. What cannot be trained with (missing images,
boxes outside their image, unknown categories) is listed in one error; what is harmless, as COCO
itself has it (boxes a little over the edge or without area), in notes.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnext_jax.data.headers import spread_sample
from resnext_jax.detection.coco_fields import (
    ANNOTATION,
    CATEGORY,
    IMAGE,
    Entry,
    ProblemReport,
    read_table,
)
from resnext_jax.errors import DataError, one_line

# A box that reaches further out, in pixels, and mostly lies outside, is a mistake and not rounding.
_ROUNDING = 2.0
_NOTICED = 0.01

# Images of a split that are compared between hosts.
_SAMPLE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotated objects of an image.

    Attributes:
      boxes: float32 `[n, 4]`, x1, y1, x2, y2 in pixels, continuous, inside the image.
      classes: int32 `[n]`, from 1; 0 is the background.
      crowd: bool `[n]`, the box is around a crowd and not one object, or is to be ignored.
      areas: float64 `[n]`, in square pixels, for COCO's small, medium and large;
        the box's where the file has none.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class CocoSplit:
    """Images and their objects, in the order of the image ids.

    Attributes:
      annotations: the JSON file.
      folder: of the images.
      image_ids: int64 `[N]`, ascending.
      file_names: of each image, from `folder`.
      heights: int32 `[N]`, in pixels.
      widths: int32 `[N]`, in pixels.
      offsets: int64 `[N + 1]`; objects `offsets[i]` to `offsets[i + 1]` are those of image i.
      objects: of all images, one image after the other, in the order of the file.
      category_ids: int64 `[K]`, ascending, as in the file (COCO's 80 lie between 1 and 90). An
        object's class is its category's place here, from 1.
      category_names: of each category.
      labelled: whether the file has annotations; those of COCO's test images have none.
      notes: what is unusual and harmless, a sentence each.
    """

    annotations: Path
    folder: Path
    image_ids: np.ndarray
    file_names: tuple[str, ...]
    heights: np.ndarray
    widths: np.ndarray
    offsets: np.ndarray
    objects: GroundTruth
    category_ids: np.ndarray
    category_names: tuple[str, ...]
    labelled: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """Number of categories and the background."""
        return len(self.category_ids) + 1

    @property
    def owners(self) -> np.ndarray:
        """Image of each object, int64 `[n]`, as its place in the split."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def empty(self) -> np.ndarray:
        """Which images have no object, crowds aside, bool `[N]`."""
        objects = self.owners[~self.objects.crowd]
        return np.bincount(objects, minlength=len(self)) == 0

    def path(self, index: int) -> Path:
        """Return the file of image `index`."""
        return self.folder / self.file_names[index]

    def ground_truth(self, index: int) -> GroundTruth:
        """Return the objects of image `index`."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return GroundTruth(*(array[part] for array in _arrays(self.objects)))

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the split is, by what a sentence calls it: alike for equal copies.

        Of the images a sample is read, spread over the split.

        Args:
          name: of the split.

        Raises:
          DataError: an image of the sample cannot be read.
        """
        places = spread_sample(len(self), _SAMPLE)
        return {
            f"images of split {name}": len(self),
            f"objects of split {name}": len(self.objects.boxes),
            f"annotations of split {name}": self.digest(),
            f"a sample of split {name}": hash_of(map(_read, map(self.path, places))),
        }

    def digest(self, details: str = "") -> str:
        """Return a hash of images, their objects and `details`, as 16 hexadecimal digits."""
        objects = (self.offsets, self.objects.boxes, self.objects.classes)
        return hash_of([self.images_digest().encode(), *objects, details.encode()])

    def images_digest(self) -> str:
        """Return a hash of the images and of which objects are crowds; boxes may be corrected."""
        arrays = (self.image_ids, self.heights, self.widths, self.objects.crowd)
        return hash_of([json.dumps(self.file_names).encode(), *arrays])

    def class_names(self) -> tuple[str, ...]:
        """Return the name of each class, the background (class 0) first."""
        return ("background", *self.category_names)

    def select(self, indices: np.ndarray) -> "CocoSplit":
        """Return some of the images, those at `indices` (int `[n]`), in ascending order."""
        indices = np.unique(np.asarray(indices, np.int64))
        counts = np.diff(self.offsets)[indices]
        chosen = np.isin(self.owners, indices)
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[indices],
            file_names=tuple(self.file_names[index] for index in indices),
            heights=self.heights[indices],
            widths=self.widths[indices],
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            objects=GroundTruth(*(array[chosen] for array in _arrays(self.objects))),
            notes=(),
        )


def hash_of(parts: Iterable[bytes | np.ndarray]) -> str:
    """Return a hash of bytes and of arrays' contents, one after the other, as 16 digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"image {path} cannot be read ({error.strerror}); check its permissions."
        ) from error


def read_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    labelled: bool = True,
    quiet: bool = False,
) -> CocoSplit:
    """Read annotations, and check them and that every image is there (images are not opened).

    Args:
      annotations: `instances_*.json`, or `image_info_*.json`, which has no objects.
      images: folder of the images.
      labelled: annotations are needed, for training or for measuring.
      quiet: do not print the notes (to stderr); they are in the result too.

    Raises:
      DataError: the files cannot be used; one report with the number of mistakes of each kind
        and the first few.
    """
    path, folder, report = Path(annotations), Path(images), ProblemReport()
    content = load_json(path)
    has_objects = labelled or "annotations" in content
    categories = read_table(_rows(content, "categories", path), CATEGORY, "categories", report)
    pictures = read_table(_rows(content, "images", path), IMAGE, "images", report)
    objects = _rows(content, "annotations", path, may_be_empty=True) if has_objects else []
    columns = read_table(objects, ANNOTATION, "annotations", report)

    category_ids, names = _by_id(categories)
    image_ids, files, heights, widths = _by_id(pictures)
    offsets, truth = np.zeros(len(image_ids) + 1, np.int64), None
    if len(image_ids) and len(category_ids):
        sizes = np.stack([heights, widths], axis=1)
        offsets, truth = _objects(columns, image_ids, sizes, category_ids, report)

    report.mistake(
        "images that are missing",
        _missing(folder, files),
        lambda index: f"{files[index]!r} of image id {image_ids[index]}",
    )
    if has_objects and truth is not None:
        report.note(
            "categories without objects",
            np.setdiff1d(np.arange(len(names)), truth.classes - 1),
            lambda place: f"id {category_ids[place]}, {names[place]!r}",
        )
    if report.mistakes or truth is None:
        raise DataError(
            f"{path} and the images in {folder} cannot be used; {'; '.join(report.mistakes)}; "
            "repair the files or name others."
        )
    if not quiet:
        print_notes(path, report.notes)
    return CocoSplit(
        annotations=path,
        folder=folder,
        image_ids=image_ids,
        file_names=tuple(files),
        heights=heights.astype(np.int32),
        widths=widths.astype(np.int32),
        offsets=offsets,
        objects=truth,
        category_ids=category_ids,
        category_names=tuple(names),
        labelled=has_objects,
        notes=tuple(report.notes),
    )


def print_notes(annotations: Path, notes: Iterable[str]) -> None:
    """Print notes on a split to stderr, a line each."""
    for note in notes:
        print(f"note: {annotations.name}: {note}", file=sys.stderr)


def load_json(path: Path) -> dict[str, Any]:
    """Read a COCO file, without the outlines of objects, which are most of it.

    Raises:
      DataError: it cannot be read, or is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            content = json.load(file, object_hook=_without_outlines)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise DataError(
            f"annotations {path} cannot be read ({reason}); name a file such as "
            "annotations/instances_train2017.json."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"annotations {path} are not JSON ({one_line(error)}); unpack or download them again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"annotations {path} are not in COCO's format: they hold a {type(content).__name__} "
            "where there must be an object with images, annotations and categories."
        )
    return content


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _rows(
    content: Mapping[str, Any], section: str, path: Path, *, may_be_empty: bool = False
) -> list[Entry]:
    rows = content.get(section)
    if isinstance(rows, list) and (rows or may_be_empty):
        return rows
    raise DataError(
        f"{path} has no list of {section}; it must be in COCO's format, with images, categories "
        "and, unless the images are for testing on COCO's server, annotations."
    )


def _by_id(columns: list[np.ndarray]) -> list[np.ndarray]:
    order = np.argsort(columns[0], kind="stable")
    return [column[order] for column in columns]


def _missing(folder: Path, files: Iterable[str]) -> np.ndarray:
    """Find the files that are not there, listing each folder once: asking for 118,000 is slow."""
    there: dict[str, set[str]] = {}
    missing = []
    for index, file in enumerate(files):
        parent, name = os.path.split(file)
        if parent not in there:
            try:
                with os.scandir(folder / parent) as entries:
                    there[parent] = {entry.name for entry in entries if not entry.is_dir()}
            except OSError:
                there[parent] = set()
        if name not in there[parent]:
            missing.append(index)
    return np.array(missing, np.int64)


def _objects(
    columns: list[np.ndarray],
    image_ids: np.ndarray,
    sizes: np.ndarray,
    category_ids: np.ndarray,
    report: ProblemReport,
) -> tuple[np.ndarray, GroundTruth]:
    """Check annotations and group them by image.

    Args:
      columns: of the annotations.
      image_ids: `[N]`, ascending.
      sizes: `[N, 2]`, heights and widths.
      category_ids: `[K]`, ascending.
      report: for mistakes and notes.

    Returns:
      `offsets` and `objects` of `CocoSplit`.
    """
    ids, owners, categories, boxes, crowd, ignored, areas = columns

    def box(place: int) -> str:
        return f"annotation {ids[place]} of image id {owners[place]}: {boxes[place].tolist()}"

    image, known_image = _places(owners, image_ids)
    report.mistake(
        "annotations of unknown images",
        np.flatnonzero(~known_image),
        lambda i: f"annotation {ids[i]}: image id {owners[i]}",
    )
    label, known_category = _places(categories, category_ids)
    report.mistake(
        "annotations of unknown categories",
        np.flatnonzero(~known_category),
        lambda i: f"annotation {ids[i]}: category id {categories[i]}",
    )

    limits = np.tile(sizes[image][:, ::-1], 2)  # width, height, width, height
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    clipped = np.clip(corners, 0, limits).astype(np.float32)
    beyond = np.where(known_image, np.abs(corners - clipped).max(axis=1, initial=0), 0)
    sides = clipped[:, 2:] - clipped[:, :2]
    empty = (sides <= 0).any(axis=1)
    outside = (beyond > _ROUNDING) & (sides.prod(axis=1) < boxes[:, 2:].prod(axis=1) / 2)
    over = (beyond > _NOTICED) & ~outside & ~empty
    if len(boxes) and corners.min() >= 0 and corners.max() <= 1:
        report.mistake(
            "boxes that all lie within 0..1 (a bbox is x, y, width, height in pixels, not in parts "
            "of the image)",
            np.arange(len(boxes)),
            box,
        )
    report.mistake(
        "boxes outside their image (a bbox is x, y, width, height in pixels)",
        np.flatnonzero(outside),
        box,
    )
    report.note(
        f"boxes over the edge of their image, by {beyond[over].max(initial=0):.2f} pixels at most, "
        "clipped",
        np.flatnonzero(over),
        box,
    )
    report.note("boxes without area, left out", np.flatnonzero(known_image & empty & ~outside), box)

    kept = np.flatnonzero(known_image & known_category & ~empty & ~outside)
    kept = kept[np.argsort(image[kept], kind="stable")]
    counts = np.bincount(image[kept], minlength=len(image_ids))
    truth = GroundTruth(
        boxes=clipped[kept],
        classes=(label[kept] + 1).astype(np.int32),
        crowd=(crowd | ignored)[kept],
        areas=np.where(np.isnan(areas), sides.prod(axis=1), areas)[kept],
    )
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), truth


def _places(values: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where values are in ascending ids (0 if they are not there), and whether they are."""
    places = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    known = ids[places] == values
    return np.where(known, places, 0), known


def _arrays(truth: GroundTruth) -> tuple[np.ndarray, ...]:
    return truth.boxes, truth.classes, truth.crowd, truth.areas
