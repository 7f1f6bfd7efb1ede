"""Fields of COCO's files as arrays, and one report of all that is wrong with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Places of each mistake that a message names; the others are counted.
_NAMED = 3

Entry = Mapping[str, Any]


class ProblemReport:
    """Collects mistakes, so that one error reports them all.

    Attributes:
      mistakes: a phrase each, such as "images that are missing: 2 (...)".
      notes: what is unusual and harmless, likewise.
    """

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self.notes: list[str] = []

    def mistake(self, what: str, places: np.ndarray, describe: Callable[[int], str]) -> None:
        """Add what is wrong at some places (int `[n]`, may be empty), each worded by `describe`."""
        if len(places):
            self.mistakes.append(_counted(what, places, describe))

    def note(self, what: str, places: np.ndarray, describe: Callable[[int], str]) -> None:
        """Add what is unusual and harmless."""
        if len(places):
            self.notes.append(_counted(what, places, describe))


def _counted(what: str, places: np.ndarray, describe: Callable[[int], str]) -> str:
    first = ", ".join(describe(int(place)) for place in places[:_NAMED])
    return f"{what}: {len(places):,} ({first}{', ...' if len(places) > _NAMED else ''})"


# What makes a field of many rows an array; None if it is not what it should be in one of them.
Kind = Callable[[Sequence[Any]], np.ndarray | None]


def _whole(values: Sequence[Any]) -> np.ndarray | None:
    if any(isinstance(value, bool) for value in values):
        return None
    array = _numbers(values) if values else np.zeros(0, np.int64)
    if array is not None and array.dtype.kind == "f" and (array == np.floor(array)).all():
        array = _numbers([int(value) for value in values])  # as in 5.0
    if array is None or array.ndim != 1 or array.dtype.kind == "f":
        return None
    # More than 63 bits are unsigned or, beside negative numbers, no array of whole numbers.
    return array.astype(np.int64) if array.dtype.kind == "i" else None


def _length(values: Sequence[Any]) -> np.ndarray | None:
    array = _whole(values)
    return array if array is not None and (array > 0).all() else None


def _flag(values: Sequence[Any]) -> np.ndarray | None:
    array = _whole([int(value) if isinstance(value, bool) else value for value in values])
    return array == 1 if array is not None and np.isin(array, (0, 1)).all() else None


def _text(values: Sequence[Any]) -> np.ndarray | None:
    good = all(isinstance(value, str) and value for value in values)
    return np.array(values, object) if good else None


def _box(values: Sequence[Any]) -> np.ndarray | None:
    array = _numbers(values) if values else np.zeros((0, 4))
    if array is None or array.shape != (len(values), 4) or (array[:, 2:] < 0).any():
        return None
    return array.astype(np.float64)


def _area(values: Sequence[Any]) -> np.ndarray | None:
    """Return areas, NaN where there is none."""
    areas, given = np.full(len(values), np.nan), [value is not _ABSENT for value in values]
    array = _numbers([value for value in values if value is not _ABSENT])
    if array is None or array.ndim != 1 or (array < 0).any():
        return None
    areas[given] = array
    return areas


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # lists of unequal length
        return None
    return array if array.dtype.kind in "iuf" and np.isfinite(array).all() else None


CATEGORY: Mapping[str, Kind] = {"id": _whole, "name": _text}
IMAGE: Mapping[str, Kind] = {"id": _whole, "file_name": _text, "height": _length, "width": _length}
ANNOTATION: Mapping[str, Kind] = {
    "id": _whole,
    "image_id": _whole,
    "category_id": _whole,
    "bbox": _box,
    "iscrowd": _flag,
    "ignore": _flag,
    "area": _area,
}
_ABSENT = object()
# What many tools leave out.
_DEFAULTS = {"iscrowd": 0, "ignore": 0, "area": _ABSENT}
# Number of characters of a value that an error shows.
_LONGEST = 60


def read_table(
    rows: Sequence[Entry], kinds: Mapping[str, Kind], what: str, report: ProblemReport
) -> list[np.ndarray]:
    """Make arrays of some fields of all rows, leaving out the rows where one is unusable.

    Args:
      rows: objects of the file.
      kinds: what each field is, and what makes it an array; the first are ids.
      what: the rows are, in the plural.
      report: for rows that are left out, and for ids that occur twice.

    Returns:
      For each field an array `[n]` (of boxes `[n, 4]`, x, y, width, height), in the order of
      `kinds`.
    """
    columns = _columns(rows, kinds)
    if columns is None:
        # Which rows it is takes longer to find out.
        wrong = {}
        for place, row in enumerate(rows):
            bad = [key for key, kind in kinds.items() if _columns([row], {key: kind}) is None]
            if bad:
                wrong[place] = _unusable(row, place, bad)
        report.mistake(f"unusable {what}", np.array(list(wrong)), wrong.__getitem__)
        good = [row for place, row in enumerate(rows) if place not in wrong]
        return read_table(good, kinds, what, report)
    unique, counts = np.unique(columns[0], return_counts=True)
    twice = unique[counts > 1]
    report.mistake(f"ids that several {what} have", twice, str)
    return columns


def _unusable(row: Any, place: int, bad: Sequence[str]) -> str:
    """Word a row, by its id if it has one, and what is wrong with some of its fields."""
    if not isinstance(row, Mapping):
        return f"number {place} is {_short(row)}"
    fields = [f"{key}={_short(row[key])}" if key in row else f"no {key}" for key in bad]
    which = f"id {row['id']}" if "id" in row and "id" not in bad else f"number {place}"
    return f"{which} has {', '.join(fields)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _columns(rows: Sequence[Entry], kinds: Mapping[str, Kind]) -> list[np.ndarray] | None:
    columns = []
    for key, kind in kinds.items():
        try:
            if key in _DEFAULTS:
                column = kind([row.get(key, _DEFAULTS[key]) for row in rows])
            else:
                column = kind([row[key] for row in rows])
        except (KeyError, TypeError, AttributeError):
            return None
        if column is None:
            return None
        columns.append(column)
    return columns
