"""Fields become arrays; rows that have none are left out, and told."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from resnext_jax.detection.coco_fields import (
    ANNOTATION,
    CATEGORY,
    IMAGE,
    Kind,
    ProblemReport,
    read_table,
)
from tests.detection.coco_files import annotation, categories, image


def test_fields_are_arrays_in_the_order_of_the_rows() -> None:
    rows = [
        annotation(7, 3, 1, [1, 2, 3.5, 4]),
        annotation(5.0, 2, 8, [0, 0, 0, 0], iscrowd=True),  # type: ignore[arg-type]
        {"id": 6, "image_id": 3, "category_id": 1, "bbox": [1, 1, 2, 2], "ignore": 1},
    ]
    report = ProblemReport()
    columns = read_table(rows, ANNOTATION, "annotations", report)
    ids, owners, labels, boxes, crowd, ignored, areas = columns
    assert ids.tolist() == [7, 5, 6]
    assert owners.tolist() == [3, 2, 3]
    assert labels.tolist() == [1, 8, 1]
    np.testing.assert_array_equal(boxes, [[1, 2, 3.5, 4], [0, 0, 0, 0], [1, 1, 2, 2]])
    assert crowd.tolist() == [False, True, False]
    assert ignored.tolist() == [False, False, True]
    np.testing.assert_array_equal(areas, [14, 0, np.nan])
    kinds = [array.dtype for array in columns]
    assert kinds == [np.int64, np.int64, np.int64, np.float64, bool, bool, np.float64]
    assert not report.mistakes
    assert not report.notes
    ids, names = read_table(categories([3, 1]), CATEGORY, "categories", report)
    assert (ids.tolist(), names.tolist()) == ([3, 1], ["name 3", "name 1"])
    empty = read_table([], ANNOTATION, "annotations", report)
    assert [array.shape for array in empty] == [(0,), (0,), (0,), (0, 4), (0,), (0,), (0,)]
    assert not report.mistakes


@pytest.mark.parametrize(
    ("kinds", "row", "told"),
    [
        (IMAGE, image(1, id="one"), "number {} has id='one'"),
        (IMAGE, image(1, id=1.5), "number {} has id=1.5"),
        (IMAGE, image(1, id=None), "number {} has id=None"),
        (IMAGE, image(1, id=[1]), "number {} has id=[1]"),
        (IMAGE, image(1, id=True), "number {} has id=True"),
        (IMAGE, image(1, id=2**63), f"number {{}} has id={2**63}"),
        (IMAGE, image(1, id=1e19), "number {} has id=1e+19"),
        (IMAGE, image(1, id=10**30), f"number {{}} has id={10**30}"),
        (IMAGE, image(1) | {"width": "64"}, "id 1 has width='64'"),
        (IMAGE, image(1) | {"width": True}, "id 1 has width=True"),
        (IMAGE, image(1, height=0), "id 1 has height=0"),
        (IMAGE, image(1, file_name=7), "id 1 has file_name=7"),
        (IMAGE, image(1, file_name=""), "id 1 has file_name=''"),
        (IMAGE, {"id": 1, "file_name": "a.png"}, "id 1 has no height, no width"),
        (IMAGE, "text", "number {} is 'text'"),
        (CATEGORY, {"id": 1}, "id 1 has no name"),
        (ANNOTATION, annotation(1, 2**63, 1, [1, 1, 5, 5]), f"id 1 has image_id={2**63}"),
        (ANNOTATION, annotation(1, 1, -(2**70), [1, 1, 5, 5]), f"id 1 has category_id={-(2**70)}"),
        (
            ANNOTATION,
            annotation(1, 1, 1, [1, 1, 5, math.nan], area=3),
            "id 1 has bbox=[1, 1, 5, nan]",
        ),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5]), "id 1 has bbox=[1, 1, 5]"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, -5, 5], area=3), "id 1 has bbox=[1, 1, -5, 5]"),
        (ANNOTATION, annotation(1, 1, 1, []) | {"bbox": "1 1 5 5"}, "id 1 has bbox='1 1 5 5'"),
        (ANNOTATION, annotation(1, 1, 1, []) | {"bbox": [1, [5]]}, "id 1 has bbox=[1, [5]]"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5, 5], iscrowd=2), "id 1 has iscrowd=2"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5, 5], ignore=None), "id 1 has ignore=None"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5, 5], area=None), "id 1 has area=None"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5, 5], area="25"), "id 1 has area='25'"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5, 5], area=-1), "id 1 has area=-1"),
        (ANNOTATION, annotation(1, 1, 1, [1, 1, 5, 5], area=[25]), "id 1 has area=[25]"),
        (ANNOTATION, annotation(1, 1, 1, [1] * 50), f"id 1 has bbox={repr([1] * 50)[:60]}..."),
    ],
)
def test_a_row_without_a_usable_field_is_left_out(
    kinds: Mapping[str, Kind], row: Any, told: str
) -> None:
    good = {"id": 2, "name": "dog"} | image(2) | annotation(2, 1, 1, [1, 1, 5, 5])
    for rows in itertools.permutations([row, good]):
        report = ProblemReport()
        columns = read_table(list(rows), kinds, "things", report)
        assert [len(column) for column in columns] == [1] * len(kinds)
        assert columns[0].tolist() == [2]
        assert report.mistakes == [f"unusable things: 1 ({told.format(rows.index(row))})"]


def test_ids_of_63_bits_are_exact_beside_others() -> None:
    largest = 2**63 - 1
    rows = [image(1, id=number) for number in (-5, largest, 7.0, largest - 1)]
    report = ProblemReport()
    assert read_table(rows, IMAGE, "images", report)[0].tolist() == [-5, largest, 7, largest - 1]
    assert not report.mistakes


def test_ids_that_occur_twice_are_told_once_each() -> None:
    report = ProblemReport()
    read_table(categories([1, 4, 4, 1, 2, 4, 7, 7, 9, 9]), CATEGORY, "categories", report)
    assert report.mistakes == ["ids that several categories have: 4 (1, 4, 7, ...)"]


def test_a_report_names_the_first_and_counts_the_rest() -> None:
    report = ProblemReport()
    report.mistake("nothing", np.array([], int), str)
    assert not report.mistakes
    report.mistake("missing", np.arange(1234), lambda place: f"file {place}")
    report.note("odd", np.array([5]), str)
    assert report.mistakes == ["missing: 1,234 (file 0, file 1, file 2, ...)"]
    assert report.notes == ["odd: 1 (5)"]
