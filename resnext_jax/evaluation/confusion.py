"""Errors of each class, and which class is taken for which."""

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from resnext_jax.evaluation.images import ImageRecords

# Number of classes printed on the console.
_WORST = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Confusion:
    """Counts by class.

    Attributes:
      names: K, of the classes.
      matrix: int64 `[K, K]`, images of class i (row) whose best-scored class is j (column).
      images: int64 `[K]`, images of each class. More than the row's sum where scores are not
        numbers: those are taken for no class, and are wrong.
      top5_wrong: int64 `[K]`, images whose class is not among the five best-scored.
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    images: np.ndarray
    top5_wrong: np.ndarray

    @property
    def top1_wrong(self) -> np.ndarray:
        """Images of each class that are taken for another, int64 `[K]`."""
        return self.images - np.diagonal(self.matrix)

    @property
    def top1_error(self) -> np.ndarray:
        """In percent, float64 `[K]`; NaN for a class without images."""
        return _percent(self.top1_wrong, self.images)

    @property
    def top5_error(self) -> np.ndarray:
        """In percent, float64 `[K]`; NaN for a class without images."""
        return _percent(self.top5_wrong, self.images)


def count(records: ImageRecords, names: Sequence[str]) -> Confusion:
    """Count predictions by true class.

    Args:
      records: of every image once.
      names: of the classes, in label order.
    """
    classes = len(names)
    predicted = records.top5[:, 0]
    counted = predicted >= 0
    pairs = records.label[counted].astype(np.int64) * classes + predicted[counted]
    return Confusion(
        tuple(names),
        np.bincount(pairs, minlength=classes**2).reshape(classes, classes),
        np.bincount(records.label, minlength=classes),
        np.bincount(records.label[records.rank >= 5], minlength=classes),
    )


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    errors: np.ndarray = np.full(len(whole), np.nan)
    np.divide(100.0 * part, whole, out=errors, where=whole > 0)
    return errors


def per_class_csv(confusion: Confusion) -> str:
    """Return a CSV with a line for each class, in label order; no error where no image is."""
    head = ("class", "name", "images", "top1_wrong", "top5_wrong", "top1_error", "top5_error")
    errors = [
        ["" if np.isnan(error) else f"{error:.4f}" for error in column]
        for column in (confusion.top1_error, confusion.top5_error)
    ]
    columns = (
        range(len(confusion.names)),
        confusion.names,
        confusion.images,
        confusion.top1_wrong,
        confusion.top5_wrong,
        *errors,
    )
    return _csv([head, *zip(*columns, strict=True)])


def confusion_csv(confusion: Confusion) -> str:
    """Return the matrix as a CSV: a line for each true class, a column for each best-scored."""
    head = ["true class", *confusion.names]
    rows = zip(confusion.names, confusion.matrix.tolist(), strict=True)
    return _csv([head, *([name, *row] for name, row in rows)])


def confusion_npy(confusion: Confusion) -> bytes:
    """Return the matrix, int64 `[K, K]`, as a file for `numpy.load`."""
    file = io.BytesIO()
    np.save(file, confusion.matrix)
    return file.getvalue()


def _csv(rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def summary(confusion: Confusion) -> list[str]:
    """Name the classes with the highest top-1 error, and what each is mostly taken for."""
    errors = np.nan_to_num(confusion.top1_error, nan=-1.0)
    # The worst first; of equals the larger class, then the first.
    order = np.lexsort((np.arange(len(errors)), -confusion.images, -errors))
    lines = []
    for index in order[:_WORST]:
        if confusion.top1_wrong[index] <= 0:
            break
        others = confusion.matrix[index].copy()
        others[index] = 0
        taken = int(others.argmax())
        mostly = f", {others[taken]} taken for {confusion.names[taken]!r}" if others[taken] else ""
        lines.append(
            f"{confusion.names[index]!r}: top-1 error {errors[index]:.2f} % of "
            f"{confusion.images[index]} images{mostly}"
        )
    lost = int(confusion.images.sum() - confusion.matrix.sum())
    if lost:
        lines.append(f"scores that are not numbers: of {lost} images, which are wrong")
    return lines
