"""Proposals against a plain loop, and on the way through files."""

import dataclasses
import functools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resnext_jax.commands.proposals import main
from resnext_jax.detection.anchors import AnchorSpec, make_anchors
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.proposals import (
    ProposalSpec,
    Proposer,
    StoredProposals,
    propose,
    store,
)
from resnext_jax.detection.setup import stored_weights
from resnext_jax.errors import DataError, UserError
from tests.detection import plain
from tests.detection.coco_files import random_split
from tests.detection.workdirs import drawn_config, make_workdir

# Of an image of 120x150 on a canvas of 128x160, twice as large as it is stored.
ANCHORS = make_anchors(8, 10, AnchorSpec(scales=(1.0, 2.0, 4.0)))
SIZE, ORIGINAL_SIZE = np.array([120, 150], np.float32), np.array([60, 75], np.float32)
# Many are too small, also of the best; after suppression fewer are left than there are places.
SPEC = ProposalSpec(before=60, most=50, nms_iou=0.4, min_side=8.0)

Found = tuple[np.ndarray, np.ndarray]


@functools.cache
def compiled(spec: ProposalSpec) -> Callable[..., Any]:
    return jax.jit(functools.partial(propose, anchors=ANCHORS, spec=spec))


def proposed(
    logits: np.ndarray, deltas: np.ndarray, spec: ProposalSpec = SPEC, **image: Any
) -> Found:
    """Return the boxes and scores of filled places; check that the others come after them."""
    image = {"size": SIZE, "original_size": ORIGINAL_SIZE} | image
    boxes, scores, filled = map(np.asarray, compiled(spec)(logits, deltas, **image))
    assert boxes.shape == (spec.most, 4)
    assert scores.shape == filled.shape == (spec.most,)
    np.testing.assert_array_equal(filled, np.arange(spec.most) < filled.sum())
    return boxes[filled], scores[filled]


def loop(
    logits: np.ndarray,
    deltas: np.ndarray,
    anchors: np.ndarray,
    size: Any,
    scales: Any,
    spec: ProposalSpec,
) -> Found:
    """Make proposals one by one, in float64."""
    candidates = []
    for score, change, anchor in zip(plain.softmax(logits)[:, 1], deltas, anchors, strict=True):
        box = plain.moved(anchor, change, *map(float, size))
        if min((box[2] - box[0]) / scales[0], (box[3] - box[1]) / scales[1]) >= spec.min_side:
            candidates.append((box, float(score)))
    candidates.sort(key=lambda candidate: -candidate[1])
    boxes, scores = map(list, zip(*candidates[: spec.before], strict=True))
    kept = plain.suppressed(boxes, scores, spec.nms_iou)[: spec.most]
    return np.array([boxes[i] for i in kept]), np.array([scores[i] for i in kept])


def draw(seed: int) -> Found:
    """Draw what an RPN might say of every anchor."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (len(ANCHORS), 2)).astype(np.float32)
    return logits, rng.normal(0, 0.4, (len(ANCHORS), 4)).astype(np.float32)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        # All places are filled.
        dataclasses.replace(SPEC, before=None),
        # More than there are.
        dataclasses.replace(SPEC, before=5000, most=700, nms_iou=0.3),
    ],
)
def test_proposals_are_those_of_a_loop(spec: ProposalSpec) -> None:
    for seed in range(3):
        logits, deltas = draw(seed)
        boxes, scores = proposed(logits, deltas, spec)
        expected_boxes, expected_scores = loop(logits, deltas, ANCHORS, SIZE, (2.0, 2.0), spec)
        assert len(boxes) == len(expected_boxes) > 25
        assert (len(boxes) == spec.most) == (spec.before is None)
        np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_the_shortest_side_is_one_of_the_stored_image() -> None:
    """An anchor of 16 pixels on an image twice as large has 8; it is not moved."""
    logits, deltas = np.zeros((len(ANCHORS), 2), np.float32), np.zeros_like(ANCHORS)
    sides = ANCHORS[:, 2:] - ANCHORS[:, :2]
    square = np.flatnonzero((sides == 16).all(axis=1) & (ANCHORS[:, :2] == 32).all(axis=1))
    logits[square, 1] = 5
    assert SPEC.min_side == 8
    assert proposed(logits, deltas)[0][0].tolist() == [32, 32, 48, 48]
    best = proposed(logits, deltas, original_size=SIZE / np.float32(2.01))[0]
    assert best[0].tolist() != [32, 32, 48, 48]
    assert (best[:, 2:] - best[:, :2]).min() > 16
    # Where all are too small, there is none.
    assert proposed(logits, deltas, original_size=SIZE / np.float32(100))[0].shape == (0, 4)


def test_of_equals_the_first_anchors_are_taken() -> None:
    logits, deltas = np.zeros((len(ANCHORS), 2), np.float32), np.zeros_like(ANCHORS)
    spec = dataclasses.replace(SPEC, before=7, nms_iou=1.0, min_side=5.0)
    boxes, scores = proposed(logits, deltas, spec)
    large = [plain.moved(anchor, np.zeros(4), 120, 150) for anchor in ANCHORS]
    large = [box for box in large if min(box[2] - box[0], box[3] - box[1]) >= 10]
    np.testing.assert_allclose(boxes, large[:7])
    assert scores.tolist() == [0.5] * 7


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    """Images of three shapes."""
    return random_split(tmp_path_factory.mktemp("images"), landscape=4, portrait=2, odd=3)


@pytest.fixture(scope="module")
def workdir(split: CocoSplit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an RPN."""
    config = drawn_config("rpn", split.folder.parent)
    return make_workdir(tmp_path_factory.mktemp("rpn") / "run", config)


@pytest.mark.parametrize("training", [False, True])
def test_an_rpn_proposes_boxes_of_the_images_as_they_are_stored(
    split: CocoSplit, workdir: Path, training: bool
) -> None:
    config, weights = stored_weights(workdir, "rpn")
    proposer = Proposer(config, weights.graphdef, weights.mesh, training=training)
    found = list(proposer.run(split, weights.params, weights.batch_stats))
    assert [index for index, _, _ in found] == list(range(len(split)))
    fields = config.proposals
    spec = ProposalSpec(
        None if training else fields.test_before,
        fields.train if training else fields.test,
        fields.nms_iou,
        fields.min_side,
    )
    anchors = make_anchors(4, 4, AnchorSpec(scales=tuple(config.anchors.scales)))
    network = plain.network_of(weights)
    assert len(anchors) > fields.test_before
    for index, boxes, scores in found:
        canvas, scale, size = plain.canvas_of(split, index, config)
        logits, deltas = network(canvas)
        expected, expected_scores = loop(logits[0], deltas[0], anchors, size, scale, spec)
        # The stored image's border is not always the resized one's.
        limits = [split.widths[index], split.heights[index]] * 2
        np.testing.assert_allclose(boxes, np.minimum(expected / scale, limits), atol=0.01)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
        assert len(boxes) > 15
        assert boxes.dtype == scores.dtype == np.float32


def drawn(split: CocoSplit, seed: int = 0) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Draw up to ten proposals an image, in an order that is not that of the images."""
    rng = np.random.default_rng(seed)
    found = []
    for index in rng.permutation(len(split)).tolist():
        count = 0 if index == 1 else int(rng.integers(1, 11))
        boxes = np.sort(rng.uniform(0, 48, (count, 2, 2)), axis=1).reshape(-1, 4)
        found.append((index, boxes.astype(np.float32), rng.random(count, np.float32)))
    return found


def test_what_is_stored_comes_back(split: CocoSplit, tmp_path: Path) -> None:
    found = drawn(split)
    count = store(tmp_path / "a" / "test", split, 10, found)
    assert count == sum(len(boxes) for _, boxes, _ in found)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["test"]
    stored = StoredProposals(tmp_path / "a", "test", split)
    scores = np.load(tmp_path / "a" / "test" / "scores.npy")
    for index, boxes, image_scores in found:
        np.testing.assert_array_equal(stored(index), boxes)
        assert stored(index).dtype == np.float32
        np.testing.assert_array_equal(scores[index, : len(boxes)], image_scores)
    assert stored(1).shape == (0, 4)
    # In place of what was there; a function of every number.
    digests = [stored.digest]
    for change in (0, 1):
        found[0][1][-1, 3] += change
        store(tmp_path / "a" / "test", split, 10, found)
        digests.append(StoredProposals(tmp_path / "a", "test", split).digest)
    assert digests[0] == digests[1] != digests[2]


def test_worker_processes_get_the_folder_alone(split: CocoSplit, tmp_path: Path) -> None:
    store(tmp_path / "test", split, 10, drawn(split))
    stored = StoredProposals(tmp_path, "test", split)
    expected = list(map(stored, range(len(split))))
    sent = pickle.dumps(stored)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert copy.digest == stored.digest
    for index, boxes in enumerate(expected):
        np.testing.assert_array_equal(copy(index), boxes)


def test_proposals_of_other_images_are_refused(split: CocoSplit, tmp_path: Path) -> None:
    store(tmp_path / "test", split, 10, drawn(split))
    other = dataclasses.replace(split, image_ids=split.image_ids + 1)
    for wrong in (other, split.select(np.arange(len(split) - 1))):
        with pytest.raises(DataError, match="are of other images than") as caught:
            StoredProposals(tmp_path, "test", wrong)
        assert str(tmp_path / "test") in str(caught.value)
        assert "\n" not in str(caught.value)


# What a split may differ in although its image ids are the same.
CHANGES: dict[str, Callable[[CocoSplit], CocoSplit]] = {
    "file names": lambda split: dataclasses.replace(
        split, file_names=(*split.file_names[1:], split.file_names[0])
    ),
    "heights": lambda split: dataclasses.replace(split, heights=split.heights + 1),
    "widths": lambda split: dataclasses.replace(split, widths=split.widths + 1),
    "crowds": lambda split: dataclasses.replace(
        split, objects=dataclasses.replace(split.objects, crowd=~split.objects.crowd)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_proposals_of_images_that_have_changed_are_refused(
    change: str, split: CocoSplit, tmp_path: Path
) -> None:
    store(tmp_path / "test", split, 10, drawn(split))
    with pytest.raises(DataError, match="are of other images than"):
        StoredProposals(tmp_path, "test", CHANGES[change](split))


DAMAGE = {
    "proposals.json": (None, b"", b"{", b"[1]", b"{}", b"\xff"),
    "boxes.npy": (None, b"", b"text", "half"),
    "counts.npy": (None, b"", b"text", "half"),
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, all_ in DAMAGE.items() for content in all_]
)
def test_damaged_or_missing_files_are_told_in_a_sentence(
    name: str, content: bytes | str | None, split: CocoSplit, tmp_path: Path
) -> None:
    store(tmp_path / "test", split, 10, drawn(split))
    path = tmp_path / "test" / name
    if content is None:
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"there are no whole proposals in .*detection.proposals"):
        StoredProposals(tmp_path, "test", split)


def test_what_ends_early_leaves_the_old_ones(split: CocoSplit, tmp_path: Path) -> None:
    store(tmp_path / "test", split, 10, drawn(split))
    before = StoredProposals(tmp_path, "test", split).digest

    def broken() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        yield from drawn(split, 1)[:3]
        raise DataError("an image is damaged.")

    with pytest.raises(DataError, match="an image is damaged"):
        store(tmp_path / "test", split, 10, broken())
    assert StoredProposals(tmp_path, "test", split).digest == before
    store(tmp_path / "test", split, 10, drawn(split, 1))
    assert StoredProposals(tmp_path, "test", split).digest != before


def test_a_folder_that_cannot_be_written_is_told(split: CocoSplit, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written to .*--out="):
        store(tmp_path / "file" / "test", split, 10, drawn(split))


def test_the_command_writes_both_splits(
    split: CocoSplit, workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"--workdir={workdir}", f"--out={tmp_path}/all"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    config, weights = stored_weights(workdir, "rpn")
    for name, line in zip(("train", "test"), lines, strict=True):
        proposer = Proposer(config, weights.graphdef, weights.mesh, training=name == "train")
        stored, count = StoredProposals(tmp_path / "all", name, split), 0
        for index, boxes, _ in proposer.run(split, weights.params, weights.batch_stats):
            np.testing.assert_array_equal(stored(index), boxes)
            count += len(boxes)
        mean = count / len(split)
        assert line == f"{tmp_path}/all/{name}: {mean:.1f} proposals per image, 9 images"


def test_one_split_of_data_elsewhere(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = random_split(tmp_path / "elsewhere", landscape=2, portrait=0)
    main(
        [
            *(f"--workdir={workdir}", f"--out={tmp_path}/one", "--split=test"),
            f"--data_dir={tmp_path}/elsewhere",
        ]
    )
    assert capsys.readouterr().out.endswith("2 images\n")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["test"]
    assert len(StoredProposals(tmp_path / "one", "test", elsewhere)(0)) > 10


def test_mistakes_of_the_command_are_told_in_a_sentence(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = {
        "does not exist": [f"--workdir={tmp_path}/none"],
        "has no config.json": [f"--workdir={tmp_path}"],
        "there is no checkpoint": [f"--workdir={workdir}", "--checkpoint=7"],
        "has no average of the weights": [f"--workdir={workdir}", "--ema"],
        "the following arguments are required: --workdir": [],
        "invalid choice: 'all'": [f"--workdir={workdir}", "--split=all"],
    }
    for part, arguments in mistakes.items():
        with pytest.raises(SystemExit) as left:
            main([*arguments, f"--out={tmp_path}/out"])
        (sentence,) = capsys.readouterr().err.splitlines()
        assert left.value.code == 2
        assert sentence.startswith("error: ")
        assert part in sentence
    assert not (tmp_path / "out").exists()
