"""COCO's files are read as they are, and checked in one report."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnext_jax.detection.coco import read_coco
from resnext_jax.errors import DataError
from tests.detection.coco_files import (
    COCO_IDS,
    annotation,
    categories,
    image,
    random_split,
    write_coco,
    write_images,
    write_json,
)


def test_objects_are_read_by_image(tmp_path: Path) -> None:
    images = [image(5, 40, 60), image(2, 60, 40), image(9, 40, 40)]
    annotations = [
        annotation(1, 9, 7, [1, 2, 3, 4]),
        annotation(2, 2, 1, [10.25, 20.5, 5.5, 30.25]),
        annotation(3, 9, 3, [0, 0, 40, 40], iscrowd=1),
        annotation(4, 9, 1, [5, 5, 0.5, 0.5]),
    ]
    split = write_coco(tmp_path, images, annotations)
    # In the order of the ids, whatever the order in the file.
    assert split.image_ids.tolist() == [2, 5, 9]
    assert split.heights.tolist() == [60, 40, 40]
    assert split.widths.tolist() == [40, 60, 40]
    assert [split.path(index).name for index in range(3)] == [
        f"{number:012d}.png" for number in (2, 5, 9)
    ]
    first, second, third = map(split.ground_truth, range(len(split)))
    np.testing.assert_array_equal(first.boxes, [[10.25, 20.5, 15.75, 50.75]])
    assert (first.classes.tolist(), first.crowd.tolist()) == ([1], [False])
    assert second.boxes.shape == (0, 4)
    np.testing.assert_array_equal(third.boxes, [[1, 2, 4, 6], [0, 0, 40, 40], [5, 5, 5.5, 5.5]])
    assert third.classes.tolist() == [3, 2, 1]
    assert third.crowd.tolist() == [False, True, False]
    kinds = [array.dtype for array in (third.boxes, third.classes, third.crowd)]
    assert kinds == [np.float32, np.int32, bool]


def test_coco_s_90_ids_are_80_classes_and_back(tmp_path: Path) -> None:
    annotations = [annotation(i, 1, int(c), [0, 0, 5, 5]) for i, c in enumerate(COCO_IDS)]
    shuffled = np.random.default_rng(0).permutation(COCO_IDS).tolist()
    split = write_coco(tmp_path, [image(1)], annotations, shuffled)
    assert split.num_classes == 81
    classes = split.ground_truth(0).classes
    assert classes.tolist() == list(range(1, 81))
    assert split.category_ids[classes - 1].tolist() == COCO_IDS.tolist()
    # Known ones: bicycle, stop sign, toothbrush.
    assert split.category_ids[[1, 11, 79]].tolist() == [2, 13, 90]
    assert split.class_names()[12] == "name 13"
    assert split.class_names()[0] == "background"


def test_some_images_are_selected(tmp_path: Path) -> None:
    images = [image(number) for number in (1, 2, 3)]
    annotations = [annotation(i, 1 + i % 3, 1, [i, 0, 5, 5]) for i in range(9)]
    part = write_coco(tmp_path, images, annotations).select(np.array([2, 0]))
    assert part.image_ids.tolist() == [1, 3]
    assert [part.path(index).name for index in (0, 1)] == [f"{i:012d}.png" for i in (1, 3)]
    assert part.ground_truth(0).boxes[:, 0].tolist() == [0, 3, 6]
    assert part.ground_truth(1).boxes[:, 0].tolist() == [2, 5, 8]


def test_what_is_harmless_is_mended_and_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image(1, 48, 64), image(2)]
    annotations = [
        annotation(1, 1, 1, [60, 40, 4.3, 8.5]),
        annotation(2, 1, 1, [-0.25, 3, 10, 10]),
        annotation(3, 1, 1, [10, 10, 1.03, 0]),  # as two of COCO's are
        annotation(4, 1, 1, [64, 10, 1, 10]),
        annotation(5, 1, 1, [10, 10, 20, 20]),
    ]
    content = {"images": images, "annotations": annotations, "categories": categories([1])}
    split = read_coco(write_json(tmp_path, content), write_images(tmp_path, images))
    np.testing.assert_array_equal(
        split.ground_truth(0).boxes, [[60, 40, 64, 48], [0, 3, 9.75, 13], [10, 10, 30, 30]]
    )
    over, empty = split.notes
    assert over.startswith("boxes over the edge of their image, by 0.50 pixels at most, clipped: 2")
    assert empty.startswith("boxes without area, left out: 2 (annotation 3 of image id 1: [10.0,")
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"note: instances_train.json: {note}" for note in split.notes]
    read_coco(split.annotations, split.folder, quiet=True)
    assert not capsys.readouterr().err


def test_boxes_in_parts_of_the_image_are_refused(tmp_path: Path) -> None:
    """As YOLO's files have them; each would be less than a pixel."""
    boxes = [[0.25, 0.5, 0.5, 0.25], [0.0, 0.0, 1.0, 1.0]]
    annotations = [annotation(n, 1, 1, box) for n, box in enumerate(boxes)]
    with pytest.raises(
        DataError,
        match=r"lie within 0\.\.1 .* in pixels.*: 2 \(annotation 0 of image id 1: \[0.25, ",
    ):
        write_coco(tmp_path, [image(1)], annotations)
    # Small objects are nothing unusual.
    write_coco(tmp_path, [image(1)], [*annotations, annotation(3, 1, 1, [5, 5, 1, 0.5])])


def test_categories_without_objects_are_noted(tmp_path: Path) -> None:
    annotations = [annotation(1, 1, 3, [1, 1, 5, 5])]
    split = write_coco(tmp_path, [image(1)], annotations, [1, 3, 7, 9, 12])
    assert split.notes == (
        "categories without objects: 4 (id 1, 'name 1', id 7, 'name 7', id 9, 'name 9', ...)",
    )


def test_a_file_need_not_say_what_is_no_crowd(tmp_path: Path) -> None:
    bare = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 2, 2]}
    marked = bare | {"id": 2, "iscrowd": True}
    split = write_coco(tmp_path, [image(1)], [bare, marked])
    assert split.ground_truth(0).crowd.tolist() == [False, True]


def test_every_kind_of_mistake_is_in_one_report(tmp_path: Path) -> None:
    images = [image(number) for number in range(1, 8)]
    folder = write_images(tmp_path, images[:2])
    annotations = [
        annotation(1, 1, 1, [1, 1, 5, 5]),
        annotation(1, 1, 1, [1, 1, 5, 5]),
        annotation(3, 77, 1, [1, 1, 5, 5]),
        annotation(4, 1, 55, [1, 1, 5, 5]),
        annotation(5, 1, 1, [100, 1, 5, 5]),
        annotation(6, 1, 1, [1, 1, 5]),
        annotation(7, 1, 1, [1, 1, -5, 5]),
    ]
    content = {
        "images": [*images, image(1), image(8, height=0)],
        "annotations": annotations,
        "categories": categories([1, 2]),
    }
    with pytest.raises(DataError) as caught:
        read_coco(write_json(tmp_path, content), folder)
    report = str(caught.value)
    assert "\n" not in report
    for part in (
        "images that are missing: 5 ('000000000003.png' of image id 3, '000000000004.png' of "
        "image id 4, '000000000005.png' of image id 5, ...)",
        "ids that several images have: 1 (1)",
        "unusable images: 1 (id 8 has height=0)",
        "ids that several annotations have: 1 (1)",
        "unusable annotations: 2 (id 6 has bbox=[1, 1, 5], id 7 has bbox=[1, 1, -5, 5], ",
        "annotations of unknown images: 1 (annotation 3: image id 77)",
        "annotations of unknown categories: 1 (annotation 4: category id 55)",
        "boxes outside their image (a bbox is x, y, width, height in pixels): 1 (annotation 5 of "
        "image id 1: [100.0, 1.0, 5.0, 5.0])",
        str(folder),
        "instances_train.json",
    ):
        assert part in report


def test_boxes_by_their_corners_are_found_out(tmp_path: Path) -> None:
    # A box at the right, which somebody wrote as x1, y1, x2, y2.
    with pytest.raises(DataError, match=r"boxes outside .* x, y, width, height in pixels\): 1 "):
        write_coco(tmp_path, [image(1, 48, 64)], [annotation(1, 1, 1, [40, 30, 60, 45])])


def changed(content: dict[str, Any], **sections: Any) -> dict[str, Any]:
    new = content | sections
    return {name: section for name, section in new.items() if section is not None}


WHOLE = {
    "images": [image(1)],
    "annotations": [annotation(1, 1, 1, [1, 1, 5, 5])],
    "categories": categories([1]),
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "are not JSON"),
        ("{", "are not JSON"),
        ("[" * 100_000, "are not JSON"),
        ("\0\1", "are not JSON"),
        ([WHOLE], "hold a list where"),
        (changed(WHOLE, images=None), "has no list of images"),
        (changed(WHOLE, images=[]), "has no list of images"),
        (changed(WHOLE, categories={"1": "dog"}), "has no list of categories"),
        (changed(WHOLE, annotations=None), "has no list of annotations"),
        (changed(WHOLE, images=[3]), "unusable images: 1 "),
        (changed(WHOLE, images=[image(1, width=True)]), "id 1 has width=True"),
        (changed(WHOLE, categories=[{"id": 1}]), "unusable categories: 1 "),
        (changed(WHOLE, categories=categories([1, 1])), "ids that several categories have: 1"),
        (changed(WHOLE, annotations=[{"id": 1}]), "unusable annotations: 1 "),
    ],
)
def test_what_is_not_coco_s_format(tmp_path: Path, content: Any, message: str) -> None:
    folder = write_images(tmp_path, [image(1)])
    with pytest.raises(DataError, match=message):
        read_coco(write_json(tmp_path, content), folder)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json cannot be read \(No such file"):
        read_coco(tmp_path / "x.json", tmp_path)
    with pytest.raises(DataError, match="images that are missing: 1 "):
        read_coco(write_json(tmp_path, WHOLE), tmp_path / "nowhere")


def test_images_for_testing_have_no_annotations(tmp_path: Path) -> None:
    content = changed(WHOLE, annotations=None)
    path = write_json(tmp_path, content, "image_info_test-dev2017.json")
    split = read_coco(path, write_images(tmp_path, [image(1)]), labelled=False)
    assert not split.labelled
    assert split.ground_truth(0).boxes.shape == (0, 4)
    assert not split.notes


def test_folders_are_listed_once_and_files_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [image(n, file_name=f"{'ab'[n % 2]}/{n}.png") for n in range(20)]
    content = changed(WHOLE, images=images)
    path, folder = write_json(tmp_path, content), write_images(tmp_path, images)
    listed, scandir = [], os.scandir

    def watched(name: Any) -> Any:
        listed.append(Path(name).name)
        return scandir(name)

    monkeypatch.setattr(os, "scandir", watched)
    monkeypatch.setattr(Path, "exists", lambda path: pytest.fail("asked for a file"))
    assert len(read_coco(path, folder, quiet=True)) == 20
    assert sorted(listed) == ["a", "b"]


def test_outlines_are_not_kept(tmp_path: Path) -> None:
    # They are nine tenths of COCO's files.
    content = changed(
        WHOLE, annotations=[annotation(1, 1, 1, [1, 1, 5, 5], segmentation=[[1.0] * 8])]
    )
    path = write_json(tmp_path, content)
    from resnext_jax.detection.coco import load_json

    assert "segmentation" not in load_json(path)["annotations"][0]


def test_facts_tell_copies_that_differ_from_those_that_do_not(tmp_path: Path) -> None:
    """What hosts compare before they train together."""
    split, same = (random_split(tmp_path / name) for name in "ab")
    assert split.facts("train") == same.facts("train")
    assert split.select(np.arange(5)).facts("train") != split.facts("train")
    moved = dataclasses.replace(
        split, objects=dataclasses.replace(split.objects, boxes=split.objects.boxes + 1)
    )
    assert moved.facts("train") != split.facts("train")
    same.path(3).write_bytes(b"cut short")
    assert same.facts("train") != split.facts("train")
    same.path(3).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        same.facts("train")


@pytest.mark.parametrize(
    "field",
    ["image_ids", "file_names", "heights", "widths", "offsets", "boxes", "classes", "crowd"],
)
def test_a_digest_is_of_all_that_is_trained_on(tmp_path: Path, field: str) -> None:
    """It is what a run compares when it resumes."""
    split = random_split(tmp_path)
    assert split.digest() != split.digest("details")
    if field == "file_names":
        changed = dataclasses.replace(split, file_names=split.file_names[::-1])
    elif hasattr(split, field):
        changed = dataclasses.replace(split, **{field: getattr(split, field)[::-1]})
    else:
        values = getattr(split.objects, field)[::-1]
        objects = dataclasses.replace(split.objects, **{field: values})
        changed = dataclasses.replace(split, objects=objects)
    assert changed.digest() != split.digest()
