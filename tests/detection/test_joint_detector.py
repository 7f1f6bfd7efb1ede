"""Proposals and detections of one pass against plain NumPy, box after box."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.detector import Detector, propose_from_levels
from resnext_jax.detection.proposals import ProposalSpec, propose
from resnext_jax.detection.pyramid import level_anchors
from resnext_jax.detection.setup import anchor_specs
from resnext_jax.models.variables import merge
from resnext_jax.parallel.mesh import make_mesh
from tests.detection import plain
from tests.detection.coco_files import random_split
from tests.detection.small_joint import drawn_weights, small_joint_config

Proposal = tuple[float, list[float]]


def proposed(
    logits: np.ndarray,
    deltas: np.ndarray,
    size: Sequence[float],
    scales: Any,
    anchors: Sequence[np.ndarray],
    spec: ProposalSpec,
) -> list[Proposal]:
    """Propose one box after the other: score and box, the best first."""
    found: list[Proposal] = []
    start = 0
    for level in anchors:
        end, candidates = start + len(level), []
        answers = zip(level, plain.softmax(logits[start:end]), deltas[start:end], strict=True)
        for box, say, change in answers:
            x1, y1, x2, y2 = plain.moved(box, change, *size)
            if min((x2 - x1) / scales[0], (y2 - y1) / scales[1]) >= spec.min_side:
                candidates.append((float(say[1]), [x1, y1, x2, y2]))
        candidates.sort(key=lambda each: -each[0])
        candidates = candidates[: spec.before]
        scores, boxes = [each[0] for each in candidates], [each[1] for each in candidates]
        kept = plain.suppressed(boxes, scores, spec.nms_iou)[: spec.most]
        found += [candidates[place] for place in kept]
        start = end
    return sorted(found, key=lambda each: -each[0])[: spec.most]


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """What an RPN might say of an image of 50x60 at three levels."""
    rng = np.random.default_rng(0)
    anchors = []
    for count, side in ((60, 8.0), (30, 16.0), (9, 32.0)):
        centres = rng.uniform(0, 55, (count, 2))
        anchors.append(np.concatenate([centres - side / 2, centres + side / 2], axis=1))
    logits = rng.normal(0, 2, (99, 2)).astype(np.float32)
    deltas = rng.normal(0, 0.3, (99, 4)).astype(np.float32)
    return logits, deltas, tuple(each.astype(np.float32) for each in anchors)


@pytest.mark.parametrize(
    "spec",
    [
        ProposalSpec(before=20, most=25, nms_iou=0.5, min_side=3),
        ProposalSpec(before=None, most=70, nms_iou=0.6, min_side=6),
    ],
)
def test_levels_are_suppressed_apart_and_chosen_from_together(
    answers: tuple[Any, ...], spec: ProposalSpec
) -> None:
    logits, deltas, anchors = answers
    size, original_size = jnp.array([50.0, 60.0]), jnp.array([40.0, 40.0])
    boxes, scores, filled = jax.jit(
        lambda *image: propose_from_levels(*image, anchors=anchors, spec=spec)
    )(logits, deltas, size, original_size)
    expected = proposed(logits, deltas, (50, 60), (1.5, 1.25), anchors, spec)
    assert int(filled.sum()) == len(expected)
    assert not np.any(filled[len(expected) :])
    wanted_scores, wanted_boxes = zip(*expected, strict=True)
    np.testing.assert_allclose(scores[filled], wanted_scores, rtol=1e-5)
    np.testing.assert_allclose(boxes[filled], wanted_boxes, atol=1e-3)


def test_one_level_is_that_of_the_two_networks(answers: tuple[Any, ...]) -> None:
    logits, deltas, anchors = answers
    image = (logits, deltas, *[jnp.array([50.0, 60.0])] * 2)
    together, spec = np.concatenate(anchors), ProposalSpec(most=20, min_side=4)
    found, expected = jax.jit(
        lambda *image: (
            propose_from_levels(*image, anchors=(together,), spec=spec),
            propose(*image, anchors=together, spec=spec),
        )
    )(*image)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_proposals_are_constants(answers: tuple[Any, ...]) -> None:
    *of_anchors, anchors = answers

    def total(logits: jax.Array, deltas: jax.Array) -> jax.Array:
        boxes, scores, _ = propose_from_levels(
            logits,
            deltas,
            jnp.array([50.0, 60.0]),
            jnp.asarray(1.0),
            anchors=anchors,
            spec=ProposalSpec(most=20),
        )
        return boxes.sum() + scores.sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*of_anchors)
    assert value > 0
    assert not any(np.any(each) for each in gradients)


@pytest.fixture(scope="module")
def split_of_images(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    return random_split(tmp_path_factory.mktemp("images"), landscape=4, portrait=2, odd=2)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="shared map"),
        pytest.param(True, id="pyramid", marks=pytest.mark.slow),
    ],
)
def config(request: pytest.FixtureRequest, split_of_images: CocoSplit) -> ConfigDict:
    config = small_joint_config(split_of_images.folder.parent, pyramid=request.param)
    config.eval_batch_size = 8
    # Pooling on a map of 4x4 makes many regions the same, and their scores ties.
    config.roi.kind = "align"
    return config


def test_detections_of_one_pass_are_those_of_a_loop(
    config: ConfigDict, split_of_images: CocoSplit
) -> None:
    """Features, proposals, regions, suppression: image by image, box by box."""
    split = split_of_images
    graphdef, params, batch_stats = drawn_weights(config, names=3)
    detector = Detector(config, graphdef, make_mesh(8, 1))
    detections = dict(detector.run(split, params, batch_stats))
    assert sorted(detections) == list(range(len(split)))
    model = merge(graphdef, params, batch_stats)
    model.eval()
    features_of = jax.jit(model.features)
    outputs_of, on_regions = jax.jit(model.rpn_outputs), jax.jit(model.on_regions)
    spec = ProposalSpec(before=config.proposals.test_before, most=24, nms_iou=0.7, min_side=4.0)
    anchors = level_anchors(64, 64, anchor_specs(config))
    classes = set()
    for index in range(len(split)):
        canvas, scale, size = plain.canvas_of(split, index, config)
        features = features_of(canvas)
        logits, deltas = (np.asarray(each[0]) for each in outputs_of(features))
        proposals = proposed(logits, deltas, size, scale, anchors, spec)
        regions = np.zeros((1, 24, 4), np.float32)
        regions[0, : len(proposals)] = [box for _, box in proposals]
        logits, deltas = (np.asarray(each[0]) for each in on_regions(features, regions))
        scores = plain.softmax(logits)
        expected = []
        for label in (1, 2, 3):
            chosen = [r for r in range(len(proposals)) if scores[r, label] > 0.05]
            boxes = [
                plain.moved(regions[0, r], deltas[r, label] * plain.STD, *size) for r in chosen
            ]
            own = scores[chosen, label].tolist()
            for place in plain.suppressed(boxes, own, 0.3):
                limits = [split.widths[index], split.heights[index]] * 2
                box = np.minimum(np.array(boxes[place]) / scale, limits)
                expected.append((own[place], label, box.tolist()))
        expected.sort(reverse=True)
        found = detections[index]
        assert len(expected) > 1
        assert len({each[0] for each in expected}) == len(expected)
        np.testing.assert_allclose(found.scores, [each[0] for each in expected], atol=1e-4)
        assert found.classes.tolist() == [each[1] for each in expected]
        np.testing.assert_allclose(found.boxes, [each[2] for each in expected], atol=0.02)
        classes.update(found.classes.tolist())
    assert classes == {1, 2, 3}


def test_a_pass_can_be_ended_between_batches(
    config: ConfigDict, split_of_images: CocoSplit, tmp_path: Path
) -> None:
    graphdef, params, batch_stats = drawn_weights(config, names=3)

    def stop() -> None:
        raise InterruptedError

    detector = Detector(config, graphdef, make_mesh(8, 1))
    with pytest.raises(InterruptedError):
        list(detector.run(split_of_images, params, batch_stats, stop))
