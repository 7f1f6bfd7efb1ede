"""Detections become COCO's rows, and its metrics are pycocotools', equal to another program's."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.evaluate import (
    METRICS,
    DetectionArrays,
    coco_metrics,
    format_metrics,
    proposal_recall,
    results_rows,
    write_results,
)
from resnext_jax.errors import DataError, DivergedError, UserError
from tests.detection.coco_files import (
    COCO_IDS,
    annotation,
    categories,
    image,
    random_split,
    split_of,
    write_coco,
    write_json,
)

ResultEntry = dict[str, Any]


def perfect(split: CocoSplit) -> list[ResultEntry]:
    """Return the objects that are no crowds, as detections."""
    rows = []
    for index in range(len(split)):
        truth = split.ground_truth(index)
        single = ~truth.crowd
        scores = np.full(single.sum(), 0.9, np.float32)
        found = DetectionArrays(truth.boxes[single], scores, truth.classes[single])
        rows += results_rows(split, index, found)
    return rows


@pytest.fixture(scope="module")
def random_content() -> dict[str, Any]:
    """Return 120 images with objects of all sizes, crowds, and the odd image without any."""
    rng = np.random.default_rng(0)
    images = [image(number, 480, 640) for number in range(1, 121)]
    annotations: list[ResultEntry] = []
    for entry in images:
        for _ in range(rng.integers(0, 12)):
            width, height = np.exp(rng.uniform(np.log(6), np.log(300), 2)).round(2).tolist()
            x, y = rng.uniform(0, 640 - width), rng.uniform(0, 480 - height)
            bbox = [round(x, 2), round(y, 2), width, height]
            crowd = int(rng.random() < 0.15)
            category = int(rng.choice([1, 3, 90]))
            number = len(annotations) + 1
            annotations.append(annotation(number, entry["id"], category, bbox, iscrowd=crowd))
    return {"images": images, "annotations": annotations, "categories": categories([1, 3, 90])}


@pytest.fixture(scope="module")
def measured(random_content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    return split_of(tmp_path_factory.mktemp("random"), random_content)


@pytest.fixture(scope="module")
def random_rows(random_content: dict[str, Any]) -> list[ResultEntry]:
    """Return objects found more or less, twice, as something else or not; scores often tie."""
    rng = np.random.default_rng(1)
    rows: list[ResultEntry] = []
    for entry in random_content["annotations"]:
        for _ in range(rng.integers(0, 4)):
            noise = rng.normal(0, 0.12, 4) * np.tile(entry["bbox"][2:], 2)
            box = np.maximum(np.array(entry["bbox"]) + noise, 1).round(2).tolist()
            wrong = rng.random() < 0.15
            rows.append(
                {
                    "image_id": entry["image_id"],
                    "category_id": int(rng.choice([1, 3, 90])) if wrong else entry["category_id"],
                    "bbox": box,
                    "score": int(rng.integers(0, 11)) / 10,
                }
            )
    # More than a hundred in one image.
    for _ in range(150):
        box = [*rng.uniform(0, 300, 2).round(2).tolist(), 40.0, 60.0]
        rows.append({"image_id": 1, "category_id": 3, "bbox": box, "score": 0.5})
    return rows


def reference(
    evaluator: Any, index: Any, content: dict[str, Any], rows: list[ResultEntry]
) -> list[float]:
    """Evaluate as the evaluator's own documentation has it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = index()
        truth.dataset = json.loads(json.dumps(content))
        truth.createIndex()
        evaluation = evaluator(truth, truth.loadRes(json.loads(json.dumps(rows))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:12]]


def test_metrics_are_those_of_pycocotools_and_of_faster_coco_eval(
    random_content: dict[str, Any],
    random_rows: list[ResultEntry],
    measured: CocoSplit,
    capfd: pytest.CaptureFixture[str],
) -> None:
    ours = coco_metrics(measured, random_rows)
    assert capfd.readouterr().out == ""
    assert tuple(ours) == METRICS
    values = list(ours.values())
    assert values == reference(COCOeval, COCO, random_content, random_rows)
    fast = reference(
        faster_coco_eval.COCOeval_faster, faster_coco_eval.COCO, random_content, random_rows
    )
    np.testing.assert_allclose(values, fast, rtol=0, atol=1e-12)
    # Neither perfect nor empty, so that there was something to compare.
    assert all(0.05 < value < 0.95 for value in values)


def test_metrics_leave_arguments_as_they_are(
    measured: CocoSplit, random_rows: list[ResultEntry]
) -> None:
    before = json.dumps(random_rows)
    metrics = coco_metrics(measured, random_rows)
    assert json.dumps(random_rows) == before
    assert coco_metrics(measured, random_rows) == metrics


def test_some_images_are_measured_alone(
    random_content: dict[str, Any], random_rows: list[ResultEntry], measured: CocoSplit
) -> None:
    chosen = range(1, 41)
    part = {
        "images": [entry for entry in random_content["images"] if entry["id"] in chosen],
        "annotations": [
            entry for entry in random_content["annotations"] if entry["image_id"] in chosen
        ],
        "categories": random_content["categories"],
    }
    rows = [row for row in random_rows if row["image_id"] in chosen]
    ours = coco_metrics(measured.select(np.arange(40)), rows)
    assert list(ours.values()) == reference(COCOeval, COCO, part, rows)
    assert ours != coco_metrics(measured, random_rows)


def test_perfect_detections_score_one(tmp_path: Path) -> None:
    split = random_split(tmp_path, landscape=20, portrait=10)
    metrics = coco_metrics(split, perfect(split))
    assert {name for name, value in metrics.items() if math.isnan(value)} == {
        *("APm", "APl", "ARm", "ARl")  # objects are small here
    }
    assert all(
        value == pytest.approx(1)
        for name, value in metrics.items()
        if name not in ("AR1", "AR10") and not math.isnan(value)
    )
    assert 0 < metrics["AR1"] < 1


def test_coco_s_ids_go_into_the_rows_and_back(tmp_path: Path) -> None:
    annotations = [
        annotation(place, 1, int(number), [place, 1.25, 20, 30.5])
        for place, number in enumerate(COCO_IDS)
    ]
    split = write_coco(tmp_path, [image(1, 480, 640)], annotations, COCO_IDS.tolist())
    rows = perfect(split)
    for row, entry in zip(rows, annotations, strict=True):
        assert row["image_id"] == 1
        assert row["category_id"] == entry["category_id"]
        assert row["bbox"] == entry["bbox"]
        assert row["score"] == 0.9
    assert coco_metrics(split, rows)["AP"] == pytest.approx(1)
    # Other categories are other objects (far away here): nothing is found.
    others = dict(zip(COCO_IDS.tolist(), np.roll(COCO_IDS, 40).tolist(), strict=True))
    for row in rows:
        row["category_id"] = others[row["category_id"]]
    assert coco_metrics(split, rows)["AP"] == 0


def test_nothing_found_scores_zero(
    random_content: dict[str, Any], measured: CocoSplit, tmp_path: Path
) -> None:
    assert coco_metrics(measured, []) == dict.fromkeys(METRICS, 0.0)
    # And where there is nothing to be found there is no score.
    nothing = split_of(tmp_path, random_content | {"annotations": []})
    assert all(math.isnan(value) for value in coco_metrics(nothing, []).values())


def test_an_image_without_detections_has_no_rows(tmp_path: Path) -> None:
    split = random_split(tmp_path)
    none = DetectionArrays(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int32))
    assert results_rows(split, 0, none) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_detections_of_a_diverged_network(tmp_path: Path, value: float) -> None:
    split = random_split(tmp_path)
    box, label = np.array([[1, 2, 3, 4]], np.float32), np.array([1])
    with pytest.raises(DivergedError, match=split.file_names[0]):
        results_rows(split, 0, DetectionArrays(box, np.array([value]), label))
    with pytest.raises(DivergedError, match="not finite"):
        results_rows(split, 0, DetectionArrays(box * value, np.array([1.0]), label))


def test_what_is_to_be_ignored_is_neither_missed_nor_wrong(tmp_path: Path) -> None:
    """`ignore` is what other tools call COCO's `iscrowd`."""
    seen, hard = annotation(1, 1, 1, [5, 5, 40, 40]), annotation(2, 1, 1, [50, 5, 10, 10])
    scores = []
    for name in ("ignore", "iscrowd"):
        split = write_coco(tmp_path / name, [image(1)], [seen, hard | {name: 1}])
        truth = split.ground_truth(0)
        assert truth.crowd.tolist() == [False, True]
        everything = DetectionArrays(truth.boxes, np.array([0.5, 0.9]), truth.classes)
        for rows in (perfect(split), results_rows(split, 0, everything)):
            scores.append(coco_metrics(split, rows)["AP"])
    assert scores == pytest.approx([1, 1, 1, 1])


def test_annotations_without_area_and_crowd_can_be_measured(tmp_path: Path) -> None:
    # Nor need ids be positive, as pycocotools has it: it finds nothing that has id 0.
    entry = {"id": 0, "image_id": 1, "category_id": 1, "bbox": [5, 5, 40, 40]}
    split = write_coco(tmp_path, [image(1)], [entry])
    metrics = coco_metrics(split, perfect(split))
    assert metrics["AP"] == metrics["APm"] == pytest.approx(1)
    assert math.isnan(metrics["APs"])


def test_sizes_are_by_the_file_s_areas(tmp_path: Path) -> None:
    """COCO's are those of the outlines."""
    split = write_coco(tmp_path, [image(1)], [annotation(1, 1, 1, [5, 5, 40, 40], area=31.0**2)])
    metrics = coco_metrics(split, perfect(split))
    assert metrics["APs"] == pytest.approx(1)
    assert math.isnan(metrics["APm"])


def test_detections_of_other_data_are_refused(measured: CocoSplit) -> None:
    row = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], "score": 1.0}
    with pytest.raises(DataError, match=r"1 images that .*train\.json does not have .* id 999"):
        coco_metrics(measured, [row, row | {"image_id": 999}])
    with pytest.raises(DataError, match=r"1 categories that .*train\.json .* id 2\)"):
        coco_metrics(measured, [row | {"category_id": 2}])


def test_images_for_coco_s_server_cannot_be_measured(tmp_path: Path) -> None:
    content = {"images": [image(1)], "categories": categories([1])}
    split = split_of(tmp_path, content, labelled=False)
    with pytest.raises(DataError, match=r"without annotations; .* COCO's server"):
        coco_metrics(split, [])
    # But what is found in them can be written.
    found = DetectionArrays(np.array([[1, 2, 4, 8]]), np.array([0.123456789]), np.array([1]))
    assert results_rows(split, 0, found) == [
        {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 6], "score": 0.123457}
    ]


def test_results_are_written_whole_or_not_at_all(
    random_content: dict[str, Any], random_rows: list[ResultEntry], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    write_results(path, random_rows)
    assert json.loads(path.read_text()) == random_rows
    # What COCO's own reader takes.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(write_json(tmp_path, random_content))
        assert len(truth.loadRes(str(path)).anns) == len(random_rows)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(path, [random_rows[0] | {"score": math.nan}])
    assert json.loads(path.read_text()) == random_rows
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["annotations", "results.json"]
    with pytest.raises(UserError, match=r"cannot be written \(No such file"):
        write_results(tmp_path / "nowhere" / "results.json", [])


def test_metrics_are_laid_out() -> None:
    metrics = dict.fromkeys(METRICS, 0.5) | {"AP": 0.4567, "APs": math.nan, "AR100": 1.0}
    names, values = format_metrics(metrics).splitlines()
    assert names.split() == list(METRICS)
    assert values.split()[:4] == ["45.7", "50.0", "50.0", "-"]
    assert "100.0" in values
    assert len(names) == len(values) <= 100


def test_recall_of_proposals(tmp_path: Path) -> None:
    annotations = [
        annotation(1, 1, 1, [0, 0, 10, 10]),
        annotation(2, 1, 1, [30, 10, 20, 20]),
        annotation(3, 1, 1, [5, 5, 9, 9], iscrowd=1),
        annotation(4, 3, 1, [0, 0, 10, 10]),
    ]
    split = write_coco(tmp_path, [image(1), image(2), image(3)], annotations)
    of_images = [
        # Half of an object is just enough; the second is found by the third proposal.
        [[0, 0, 10, 5], [50, 50, 60, 60], [30, 10, 50, 31]],
        [[0, 0, 9, 9]],
        [],
    ]

    def proposals(index: int) -> np.ndarray:
        return np.array(of_images[index], np.float32).reshape(-1, 4)

    recall = proposal_recall(split, proposals, limits=(1, 2, 3))
    assert recall == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 2 / 3})
    assert proposal_recall(split, proposals, iou=0.6, limits=(3,))[3] == pytest.approx(1 / 3)
    assert proposal_recall(split, lambda index: split.ground_truth(index).boxes)[100] == 1
    empty = split.select(np.array([1]))
    assert math.isnan(proposal_recall(empty, proposals)[300])
