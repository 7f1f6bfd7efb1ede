"""Fields become arrays; rows that have none are left out, and told."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from resnext_jax.detection.coco_fields import ANNOTATION, CATEGORY, IMAGE, Kind, Report, read_table
from tests.detection.coco_files import annotation, categories, image


def test_fields_are_arrays_in_the_order_of_the_rows() -> None:
    rows = [
        annotation(7, 3, 1, [1, 2, 3.5, 4]),
        annotation(5.0, 2, 8, [0, 0, 0, 0], iscrowd=True),  # type: ignore[arg-type]
        {"id": 6, "image_id": 3, "category_id": 1, "bbox": [1, 1, 2, 2]},
    ]
    report = Report()
    ids, owners, labels, boxes, crowd = read_table(rows, ANNOTATION, "annotations", report)
    assert ids.tolist() == [7, 5, 6]
    assert owners.tolist() == [3, 2, 3]
    assert labels.tolist() == [1, 8, 1]
    np.testing.assert_array_equal(boxes, [[1, 2, 3.5, 4], [0, 0, 0, 0], [1, 1, 2, 2]])
    assert crowd.tolist() == [False, True, False]
    kinds = [array.dtype for array in (ids, owners, labels, boxes, crowd)]
    assert kinds == [np.int64, np.int64, np.int64, np.float64, bool]
    assert not report.mistakes
    assert not report.notes
    ids, names = read_table(categories([3, 1]), CATEGORY, "categories", report)
    assert (ids.tolist(), names.tolist()) == ([3, 1], ["name 3", "name 1"])
    empty = read_table([], ANNOTATION, "annotations", report)
    assert [array.shape for array in empty] == [(0,), (0,), (0,), (0, 4), (0,)]
    assert not report.mistakes


@pytest.mark.parametrize(
    ("kinds", "row", "field"),
    [
        (IMAGE, image(1, id="one"), "id"),
        (IMAGE, image(1, id=1.5), "id"),
        (IMAGE, image(1, id=None), "id"),
        (IMAGE, image(1, id=[1]), "id"),
        (IMAGE, image(1, id=10**30), "id"),
        (IMAGE, image(1) | {"width": "64"}, "width"),
        (IMAGE, image(1, height=0), "height"),
        (IMAGE, image(1, file_name=7), "file_name"),
        (IMAGE, image(1, file_name=""), "file_name"),
        (IMAGE, {"id": 1, "file_name": "a.png"}, "height and width"),
        (IMAGE, "text", "id and file_name and height and width"),
        (CATEGORY, {"id": 1}, "name"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5, float("nan")]), "bbox"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5]), "bbox"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, -5, 5]), "bbox"),
        (ANNOTATION, annotation(1, 1, 1, []) | {"bbox": "1 1 5 5"}, "bbox"),
        (ANNOTATION, annotation(1, 1, 1, []) | {"bbox": [1, 1, 5, [5]]}, "bbox"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5, 5], iscrowd=2), "iscrowd"),
    ],
)
def test_a_row_without_a_usable_field_is_left_out(
    kinds: Mapping[str, Kind], row: Any, field: str
) -> None:
    good = {"id": 2, "name": "dog"} | image(2) | annotation(2, 1, 1, [1, 1, 5, 5])
    for rows in itertools.permutations([row, good]):
        report = Report()
        columns = read_table(list(rows), kinds, "things", report)
        assert [len(column) for column in columns] == [1] * len(kinds)
        assert columns[0].tolist() == [2]
        place = rows.index(row)
        assert report.mistakes == [
            f"incomplete things: 1 (number {place}, which has no usable {field})"
        ]


def test_ids_that_occur_twice_are_told_once_each() -> None:
    report = Report()
    read_table(categories([1, 4, 4, 1, 2, 4, 7, 7, 9, 9]), CATEGORY, "categories", report)
    assert report.mistakes == ["ids that several categories have: 4 (1, 4, 7, ...)"]


def test_a_report_names_the_first_and_counts_the_rest() -> None:
    report = Report()
    report.mistake("nothing", np.array([], int), str)
    assert not report.mistakes
    report.mistake("missing", np.arange(1234), lambda place: f"file {place}")
    report.note("odd", np.array([5]), str)
    assert report.mistakes == ["missing: 1,234 (file 0, file 1, file 2, ...)"]
    assert report.notes == ["odd: 1 (5)"]
