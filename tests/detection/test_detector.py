"""Detections against the network's own answers, decoded and suppressed in plain NumPy."""

from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.detector import Detector
from resnext_jax.detection.evaluate import DetectionArrays
from resnext_jax.detection.setup import StoredWeights, stored_weights
from resnext_jax.errors import WorkdirError
from tests.detection import plain
from tests.detection.coco_files import random_split
from tests.detection.workdirs import NAMES, drawn_config, make_workdir

# Of an image, of those that are proposed.
READ = 24

Loaded = tuple[ConfigDict, StoredWeights]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    """Images of three shapes, more than fit into a batch."""
    return random_split(tmp_path_factory.mktemp("images"), landscape=5, portrait=2, odd=3)


@pytest.fixture(scope="module")
def loaded(split: CocoSplit, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Fast R-CNN's config and weights."""
    config = drawn_config("fast_rcnn", split.folder.parent)
    workdir = make_workdir(tmp_path_factory.mktemp("fast_rcnn") / "run", config)
    return stored_weights(workdir, "fast_rcnn")


@pytest.fixture(scope="module")
def proposals(split: CocoSplit) -> list[np.ndarray]:
    """Of each image; none of the second, of others some or more than are read."""
    rng = np.random.default_rng(0)
    found = []
    for index, (height, width) in enumerate(zip(split.heights, split.widths, strict=True)):
        count = 0 if index == 1 else 4 * index + 3
        corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(-1, 4)
        found.append((corners * [width, height, width, height]).astype(np.float32))
    assert len(found[2]) < READ < len(found[-1])
    return found


def detect(
    loaded: Loaded, split: CocoSplit, proposals: list[np.ndarray], **changes: float
) -> dict[int, DetectionArrays]:
    config, weights = loaded
    config = config.copy_and_resolve_references()
    config.detections.update(changes)
    detector = Detector(config, weights.graphdef, weights.mesh)
    arrays = weights.params, weights.batch_stats
    return dict(detector.run(split, *arrays, proposals=proposals.__getitem__))


@pytest.fixture(scope="module")
def detections(
    loaded: Loaded, split: CocoSplit, proposals: list[np.ndarray]
) -> dict[int, DetectionArrays]:
    return detect(loaded, split, proposals)


def loop(
    loaded: Loaded,
    network: plain.Network,
    split: CocoSplit,
    index: int,
    proposals: np.ndarray,
    *,
    score: float = 0.05,
    iou: float = 0.3,
    most: int = 100,
) -> list[tuple[float, int, list[float]]]:
    """Detect in one image, class by class: score, class and box, the best first."""
    canvas, scale, size = plain.canvas_of(split, index, loaded[0])
    regions = np.zeros((1, READ, 4), np.float32)
    count = min(len(proposals), READ)
    regions[0, :count] = proposals[:count] * scale
    logits, deltas = (answer[0, :count] for answer in network(canvas, regions))
    if not count:
        return []
    probabilities, found = plain.softmax(logits), []
    limits = [split.widths[index], split.heights[index]] * 2
    for label in range(1, len(NAMES) + 1):
        boxes, scores = [], []
        for region in range(count):
            if probabilities[region, label] > score:
                change = deltas[region, label] * plain.STD
                boxes.append(plain.moved(regions[0, region], change, *size))
                scores.append(float(probabilities[region, label]))
        for place in plain.suppressed(boxes, scores, iou):
            box = np.minimum(np.array(boxes[place]) / scale, limits).tolist()
            found.append((scores[place], label, box))
    return sorted(found, reverse=True)[:most]


@pytest.fixture(scope="module")
def network(loaded: Loaded) -> plain.Network:
    return plain.network_of(loaded[1])


def assert_same(found: DetectionArrays, expected: list[tuple[float, int, list[float]]]) -> None:
    scores, classes, boxes = zip(*expected, strict=True)
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    assert found.classes.tolist() == list(classes)
    np.testing.assert_allclose(found.boxes, boxes, atol=0.01)


def test_detections_are_those_of_a_loop(
    loaded: Loaded,
    network: plain.Network,
    split: CocoSplit,
    proposals: list[np.ndarray],
    detections: dict[int, DetectionArrays],
) -> None:
    assert sorted(detections) == list(range(len(split)))
    classes: set[int] = set()
    for index, found in detections.items():
        if index == 1:
            assert found.boxes.shape == (0, 4)
            assert found.scores.shape == found.classes.shape == (0,)
            continue
        expected = loop(loaded, network, split, index, proposals[index])
        assert_same(found, expected)
        assert len(expected) > 1
        classes.update(found.classes.tolist())
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.classes.dtype == np.int32
    assert classes == {1, 2, 3}


def test_the_config_says_what_a_detection_is(
    loaded: Loaded, network: plain.Network, split: CocoSplit, proposals: list[np.ndarray]
) -> None:
    changed = detect(loaded, split, proposals, score=0.2, nms_iou=0.6, most=6)
    sizes = set()
    for index, found in changed.items():
        if index == 1:
            continue
        image = loop(loaded, network, split, index, proposals[index], score=0.2, iou=0.6, most=6)
        assert_same(found, image)
        sizes.add(len(image))
    assert max(sizes) == 6 > min(sizes)


def test_what_is_around_an_image_does_not_matter(
    loaded: Loaded,
    split: CocoSplit,
    proposals: list[np.ndarray],
    detections: dict[int, DetectionArrays],
) -> None:
    """Its batch, and its place there."""
    chosen = np.array([3, 8])
    part = detect(loaded, split.select(chosen), [proposals[index] for index in chosen])
    for place, index in enumerate(chosen.tolist()):
        for name in ("boxes", "scores", "classes"):
            np.testing.assert_allclose(
                getattr(part[place], name), getattr(detections[index], name), rtol=1e-4, atol=1e-4
            )


def test_a_pass_can_be_ended_between_batches(
    loaded: Loaded, split: CocoSplit, proposals: list[np.ndarray]
) -> None:
    config, weights = loaded
    calls = []

    def stop() -> None:
        calls.append(1)
        raise InterruptedError

    detector = Detector(config, weights.graphdef, weights.mesh)
    arrays = weights.params, weights.batch_stats
    with pytest.raises(InterruptedError):
        list(detector.run(split, *arrays, stop, proposals=proposals.__getitem__))
    assert len(calls) == 1


def test_weights_are_those_of_the_checkpoint_asked_for(split: CocoSplit, tmp_path: Path) -> None:
    config = drawn_config("fast_rcnn", split.folder.parent)
    workdir = make_workdir(tmp_path / "run", config, steps=(3, 5), ema=True)
    (workdir / "best.json").write_text(
        '{"step": 3, "measure": "AP", "value": 1.0, "weights": "raw"}'
    )

    def kernel(checkpoint: str, *, ema: bool = False) -> np.ndarray:
        stored, weights = stored_weights(workdir, "fast_rcnn", checkpoint, ema=ema)
        assert stored.to_dict() == config.to_dict()
        return np.asarray(jax.device_get(weights.params["cls.kernel"]))

    latest = kernel("latest")
    np.testing.assert_array_equal(kernel("5"), latest)
    np.testing.assert_array_equal(kernel("best"), kernel("3"))
    assert not np.array_equal(kernel("3"), latest)
    assert not np.array_equal(kernel("5", ema=True), latest)
    with pytest.raises(WorkdirError, match=r"holds a run of config\.task='fast_rcnn'; give one of"):
        stored_weights(workdir, "rpn")
