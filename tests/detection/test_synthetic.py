"""The synthetic scenes are whole, repeatable, and share no digit between train and test."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from resnext_jax.commands.scenes import main
from resnext_jax.data.builders.digits import test_indices as held_out_digits
from resnext_jax.detection import synthetic
from resnext_jax.detection.coco import CocoSplit, read_coco
from resnext_jax.detection.synthetic import SceneFolder, SceneSpec, digit_indices, make_scenes
from resnext_jax.errors import DataError

TINY = SceneSpec(train=12, test=5, side=64, smallest=16, largest=40, most_digits=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SceneFolder:
    return make_scenes(tmp_path_factory.mktemp("scenes") / "tiny", TINY)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneFolder:
    """Return scenes as the demo has them, but fewer."""
    spec = SceneSpec(train=100, test=100)
    return make_scenes(tmp_path_factory.mktemp("scenes") / "scenes", spec)


def read(scenes: SceneFolder, split: str) -> CocoSplit:
    return read_coco(scenes.annotations(split), scenes.images(split), quiet=True)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_are_a_clean_coco_set(scenes: SceneFolder, split: str) -> None:
    coco = read(scenes, split)
    assert (len(coco), coco.notes) == (100, ())
    assert set(coco.heights) == set(coco.widths) == {128}
    counts = np.diff(coco.offsets)
    assert (counts.min(), counts.max()) == (1, 4)
    sides = coco.objects.boxes[:, 2:] - coco.objects.boxes[:, :2]
    assert sides[:, 1].min() >= 32
    assert sides[:, 1].max() <= 80
    assert sides[:, 0].min() >= 16
    assert (sides[:, 0] <= sides[:, 1]).all()
    assert not coco.objects.crowd.any()
    # Ids with gaps, as COCO's.
    assert coco.category_names == tuple("0123456789")
    assert (np.diff(coco.category_ids) > 1).any()
    assert set(coco.objects.classes) == set(range(1, 11))
    for path in map(coco.path, range(3)):
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((128, 128), "RGB")


def test_digits_hardly_overlap(scenes: SceneFolder) -> None:
    coco = read(scenes, "train")
    for index in range(len(coco)):
        boxes = coco.ground_truth(index).boxes
        for place, one in enumerate(boxes):
            for other in boxes[:place]:
                corners = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
                smaller = min(
                    box[2:].prod()
                    for box in (one - np.tile(one[:2], 2), other - np.tile(other[:2], 2))
                )
                assert np.maximum(corners, 0).prod() <= 0.1 * smaller


def test_train_and_test_share_no_digit_and_follow_the_digits_split(scenes: SceneFolder) -> None:
    digits, used = load_digits(), {}
    held_out = set(held_out_digits(digits.target).tolist())
    assert set(digit_indices("test").tolist()) == held_out
    assert not held_out & set(digit_indices("train").tolist())
    assert len(digit_indices("train")) + len(held_out) == len(digits.target)
    for split in ("train", "test"):
        annotations = json.loads(scenes.annotations(split).read_text())["annotations"]
        used[split] = {annotation["digit"] for annotation in annotations}
        assert used[split] <= set(digit_indices(split).tolist())
        for annotation in annotations:
            label = digits.target[annotation["digit"]]
            assert annotation["category_id"] == synthetic.CATEGORY_IDS[label]
            assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
    assert not used["train"] & used["test"]
    names = {split: set(read(scenes, split).image_ids) for split in used}
    assert not names["train"] & names["test"]


def test_boxes_are_around_the_ink(scenes: SceneFolder) -> None:
    """Ink is bright: each edge of a box has some, on average more than what lies beyond it."""
    coco, inside, outside = read(scenes, "train"), [], []
    for index in range(len(coco)):
        with Image.open(coco.path(index)) as picture:
            grey = np.asarray(picture.convert("L"), np.float32)
        for x1, y1, x2, y2 in coco.ground_truth(index).boxes.astype(int):
            if min(x1, y1) < 6 or max(x2, y2) > 122:
                continue
            inside += [np.max(grey[y1 + 1, x1:x2]), np.max(grey[y1:y2, x2 - 2])]
            outside += [np.max(grey[y1 - 5, x1:x2]), np.max(grey[y1:y2, x2 + 4])]
    assert len(inside) > 100
    assert np.median(inside) > 1.5 * np.median(outside)


def test_scenes_repeat_and_do_not_depend_on_their_number(tiny: SceneFolder, tmp_path: Path) -> None:
    again = make_scenes(tmp_path / "again", TINY)
    assert files(again.folder) == files(tiny.folder)
    fewer = make_scenes(tmp_path / "fewer", dataclasses.replace(TINY, train=3, test=5))
    images = files(fewer.images("train"))
    assert len(images) == 3
    assert images.items() <= files(tiny.images("train")).items()
    assert files(fewer.images("test")) == files(tiny.images("test"))
    other = make_scenes(tmp_path / "other", dataclasses.replace(TINY, seed=1))
    assert not set(files(other.images("train")).values()) & set(images.values())


def test_scenes_that_are_there_are_used(tiny: SceneFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_write", lambda *_: pytest.fail("made anew"))
    assert make_scenes(tiny.folder, TINY) == tiny


def test_an_empty_folder_is_taken_and_its_parents_made(tiny: SceneFolder, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    made = make_scenes(folder, TINY)
    assert files(made.folder) == files(tiny.folder)
    made = make_scenes(tmp_path / "c" / "d", TINY)
    assert files(made.folder) == files(tiny.folder)


def test_nothing_half_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(scenes: SceneFolder, spec: SceneSpec) -> None:
        (scenes.folder / "half").write_text("done")
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "scenes", TINY)
    assert not os.listdir(tmp_path)


def test_who_is_slower_uses_what_is_there(
    tiny: SceneFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, folder = synthetic._write, tmp_path / "scenes"

    def while_another_does(scenes: SceneFolder, spec: SceneSpec) -> None:
        write(scenes, spec)
        shutil.copytree(tiny.folder, folder)

    monkeypatch.setattr(synthetic, "_write", while_another_does)
    assert files(make_scenes(folder, TINY).folder) == files(tiny.folder)
    assert os.listdir(tmp_path) == ["scenes"]


def test_another_folder_is_not_overwritten(tiny: SceneFolder, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="holds something other than the scenes asked for"):
        make_scenes(tmp_path, TINY)
    with pytest.raises(DataError, match="holds something other than the scenes asked for"):
        make_scenes(tiny.folder, dataclasses.replace(TINY, seed=1))
    with pytest.raises(DataError, match="Not a directory"):
        make_scenes(tmp_path / "letter.txt", TINY)
    assert files(tmp_path) == {"letter.txt": b"dear"}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(scenes: SceneFolder, spec: SceneSpec) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(synthetic, "_write", fails)
    with pytest.raises(DataError, match=r"cannot be written to .*scenes \(No space left"):
        make_scenes(tmp_path / "scenes", TINY)
    assert not os.listdir(tmp_path)


def test_lost_scenes_are_missed(tiny: SceneFolder, tmp_path: Path) -> None:
    for lost in ("train/000003.png", "annotations/instances_test.json"):
        folder = tmp_path / lost.replace("/", "-")
        shutil.copytree(tiny.folder, folder)
        (folder / lost).unlink()
        with pytest.raises(DataError, match="has lost some of its scenes"):
            make_scenes(folder, TINY)


@pytest.mark.parametrize(
    "change", [{"train": 0}, {"seed": -1}, {"smallest": 4}, {"smallest": 50}, {"largest": 65}]
)
def test_impossible_settings(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scenes cannot be made with"):
        make_scenes(tmp_path / "scenes", dataclasses.replace(TINY, **change))
    assert not os.listdir(tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scenes"
    main([f"--out={out}", "--train=3", "--test=2", "--seed=5"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"train: 3 scenes, {out}/train, {out}/annotations/instances_train.json",
        f"test: 2 scenes, {out}/test, {out}/annotations/instances_test.json",
    ]
    expected = make_scenes(tmp_path / "same", SceneSpec(train=3, test=2, seed=5))
    assert files(out) == files(expected.folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out=x", "--train=0"], "scenes cannot be made with"),
        ([], "--out"),
        (["--out=x", "--train=many"], "--help lists the options"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(options)
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.startswith("error: ")
    assert message in error


def test_the_module_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resnext_jax.detection.synthetic", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "--train" in done.stdout
