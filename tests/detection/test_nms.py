"""Suppression against onnxruntime's, index for index, and detections against a loop over it."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from resnext_jax.detection.boxes import area, iou
from resnext_jax.detection.nms import Detections, detect, nms
from tests.detection.onnx_graph import run_operator

run = jax.jit(nms, static_argnames=("max_outputs", "tile"))


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes and scores, half of the boxes around a few objects as proposals are."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, (1000, 600), (count, 2))
    sizes = np.exp(rng.normal(4, 0.8, (count, 2)))
    moves, growths = rng.normal(0, 0.1, (2, count // 2, 2))
    object_of = 2 * rng.integers(0, min(20, max(count // 2, 1)), count // 2)
    centres[1::2] = centres[object_of] + moves * sizes[object_of]
    sizes[1::2] = sizes[object_of] * np.exp(growths)
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    boxes = corners.clip(0, (1000, 600, 1000, 600)).astype(np.float32)
    return boxes, rng.random(count, np.float32)


def onnx_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    max_outputs: int,
) -> np.ndarray:
    inputs = {
        "boxes": boxes[None],
        "scores": scores[None, None],
        "max_outputs": np.array([max_outputs]),
        "iou_threshold": np.array([iou_threshold], np.float32),
    }
    return run_operator("NonMaxSuppression", inputs, output="int64")[:, 2]


def kept_by(result: tuple[jax.Array, jax.Array]) -> np.ndarray:
    """Return the indices alone; check how the places beyond them are filled."""
    indices, kept = (np.asarray(array) for array in result)
    assert indices.dtype == np.int32
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, np.arange(kept.size) < kept.sum())
    np.testing.assert_array_equal(indices[~kept], 0)
    return indices[kept]


@pytest.mark.parametrize(
    ("count", "max_outputs", "iou_threshold"),
    [(1000, 1000, 0.3), (6000, 300, 0.7), (12000, 2000, 0.7)],
)
def test_indices_are_onnxruntimes(count: int, max_outputs: int, iou_threshold: float) -> None:
    valid = np.ones(count, bool)
    for seed in range(5):
        boxes, scores = draw(count, seed)
        expected = onnx_nms(boxes, scores, iou_threshold, max_outputs)
        assert len(expected) > 200
        result = run(boxes, scores, valid, iou_threshold=iou_threshold, max_outputs=max_outputs)
        np.testing.assert_array_equal(kept_by(result), expected)


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    """With five different scores, and boxes that are there twice."""
    boxes, _ = draw(600, seed=0)
    boxes[300:] = boxes[:300]
    scores = np.random.default_rng(1).integers(0, 5, 600).astype(np.float32)
    expected = onnx_nms(boxes, scores, 0.5, 600)
    actual = kept_by(run(boxes, scores, np.ones(600, bool), iou_threshold=0.5, max_outputs=600))
    np.testing.assert_array_equal(actual, expected)
    scores = np.where(scores > 2, 0.0, -0.0).astype(np.float32)
    expected = onnx_nms(boxes, scores, 0.5, 600)
    actual = kept_by(run(boxes, scores, np.ones(600, bool), iou_threshold=0.5, max_outputs=600))
    np.testing.assert_array_equal(actual, expected)


def test_an_overlap_at_the_threshold_does_not_suppress() -> None:
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)
    scores, valid = np.array([2, 1], np.float32), np.ones(2, bool)
    for threshold, expected in ((0.5, [0, 1]), (0.499, [0])):
        np.testing.assert_array_equal(onnx_nms(boxes, scores, threshold, 2), expected)
        result = run(boxes, scores, valid, iou_threshold=threshold, max_outputs=2)
        np.testing.assert_array_equal(kept_by(result), expected)


def test_overlaps_are_rounded_as_onnxruntimes() -> None:
    """Pairs whose overlap, in float32 and each operation rounded, is exactly the threshold.

    With padding to a size at which compilers fuse multiplications and additions if they can.
    """
    rng = np.random.default_rng(0)
    first = np.concatenate([rng.uniform(0, 9, (500, 2)), rng.uniform(20, 29, (500, 2))], axis=1)
    pairs = np.stack([first, first + rng.uniform(-3, 3, (500, 4))], axis=1).astype(np.float32)
    low, high = pairs[..., :2].max(axis=1), pairs[..., 2:].min(axis=1)
    shared = area(np.concatenate([low, high], axis=1))
    overlaps = shared / (area(pairs[:, 0]) + area(pairs[:, 1]) - shared)
    for pair, overlap in zip(pairs[:5], overlaps, strict=False):
        np.testing.assert_array_equal(onnx_nms(pair, np.ones(2, np.float32), overlap, 2), [0, 1])

    @jax.jit
    @jax.vmap
    def count_kept(pair: jax.Array, threshold: jax.Array) -> jax.Array:
        boxes = jnp.pad(pair, ((0, 62), (0, 0)))
        valid = jnp.arange(64) < 2
        return nms(boxes, jnp.ones(64), valid, iou_threshold=threshold, max_outputs=2)[1].sum()

    np.testing.assert_array_equal(count_kept(pairs, overlaps), 2)
    np.testing.assert_array_equal(count_kept(pairs, np.nextafter(overlaps, 0)), 1)


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_boxes(count: int) -> None:
    boxes, scores = draw(count, seed=3)
    result = run(boxes, scores, np.ones(count, bool), iou_threshold=0.5, max_outputs=5)
    np.testing.assert_array_equal(kept_by(result), np.arange(count))


def test_only_valid_boxes_count() -> None:
    """NaN is no score, infinities are."""
    boxes, scores = draw(600, seed=4)
    valid = np.random.default_rng(5).random(600) < 0.7
    first, second, third = np.flatnonzero(valid)[[0, 1, 2]]
    scores[[first, second, third]] = np.nan, np.inf, -np.inf
    boxes[third] = 2000, 2000, 2010, 2010  # where nothing suppresses it
    candidates = np.flatnonzero(valid & ~np.isnan(scores))
    expected = candidates[onnx_nms(boxes[candidates], scores[candidates], 0.5, 600)]
    assert (expected[0], expected[-1]) == (second, third)
    scores[~valid] = 7
    no_scores = np.full(600, np.nan, np.float32)
    nothing = np.zeros(600, bool)
    for its_scores, its_valid, wanted in (
        (scores, valid, expected),
        (scores, nothing, []),
        (no_scores, valid, []),
    ):
        result = run(boxes, its_scores, its_valid, iou_threshold=0.5, max_outputs=600)
        np.testing.assert_array_equal(kept_by(result), wanted)


def test_a_box_that_is_not_valid_suppresses_none() -> None:
    """Not even where it comes first, because all scores are the lowest there is."""
    boxes, _ = draw(600, seed=9)
    boxes[[0, 500]] = 2000, 2000, 2010, 2010
    scores = np.full(600, -np.inf, np.float32)
    valid = np.arange(600) > 0
    expected = 1 + onnx_nms(boxes[1:], scores[1:], 0.5, 600)
    assert 500 in expected
    result = run(boxes, scores, valid, iou_threshold=0.5, max_outputs=600)
    np.testing.assert_array_equal(kept_by(result), expected)


def test_a_long_chain_is_settled_one_by_one() -> None:
    """Each box covers the next alone, so that every other one survives."""
    places = np.arange(600, dtype=np.float32)
    boxes = np.stack([places, 0 * places, places + 2, 0 * places + 1], axis=1)
    result = run(boxes, -places, np.ones(600, bool), iou_threshold=0.3, max_outputs=600)
    np.testing.assert_array_equal(kept_by(result), np.arange(0, 600, 2))


def test_few_outputs_are_the_first_of_many() -> None:
    """More than a tile gives, and less than two."""
    boxes, scores = draw(600, seed=6)
    valid = np.ones(600, bool)
    all_of_them = kept_by(run(boxes, scores, valid, iou_threshold=0.5, max_outputs=600))
    few = kept_by(run(boxes, scores, valid, iou_threshold=0.5, max_outputs=260))
    np.testing.assert_array_equal(few, all_of_them[:260])


def test_images_are_mapped_and_spread_over_devices() -> None:
    """Two images on each of two devices, that take different numbers of rounds; one is empty."""
    scenes = [draw(150, seed) for seed in range(4)]
    boxes, scores = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    valid = np.arange(150) < np.array([150, 40, 0, 149])[:, None]
    one = functools.partial(nms, iou_threshold=0.6, max_outputs=100, tile=32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_data = PartitionSpec("data")
    spread = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=over_data, out_specs=over_data)
    indices, kept = jax.jit(spread)(boxes, scores, valid)
    for index in range(4):
        chosen = valid[index].sum()
        expected = onnx_nms(boxes[index, :chosen], scores[index, :chosen], 0.6, 100)
        np.testing.assert_array_equal(kept_by((indices[index], kept[index])), expected)


def test_gradients_pass_beside_the_indices() -> None:
    boxes, scores = draw(20, seed=7)

    def total(boxes: jax.Array, scores: jax.Array) -> jax.Array:
        indices, kept = nms(
            boxes, scores, jnp.ones(20, bool), iou_threshold=0.5, max_outputs=20, tile=8
        )
        return jnp.where(kept[:, None], boxes[indices], 0).sum() + scores[indices][0]

    by_boxes, by_scores = jax.jit(jax.grad(total, argnums=(0, 1)))(boxes, scores)
    kept = onnx_nms(boxes, scores, 0.5, 20)
    np.testing.assert_array_equal(by_boxes[:, 0], np.isin(np.arange(20), kept))
    np.testing.assert_array_equal(by_scores, np.arange(20) == kept[0])


@pytest.mark.usefixtures("float64")
def test_indices_stay_int32() -> None:
    boxes, scores, valid = jnp.zeros((600, 4)), jnp.zeros(600), jnp.ones(600, bool)
    small = functools.partial(nms, iou_threshold=0.5, max_outputs=9)
    indices, _ = jax.eval_shape(small, boxes, scores, valid)
    assert boxes.dtype == np.float64
    assert indices.dtype == np.int32


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_refused() -> None:
    boxes, scores, valid = jnp.zeros((3, 4)), jnp.zeros(3), jnp.ones(3, bool)
    with pytest.raises(ValueError, match=r"must be \[N, 4\], \[N\] and \[N\]; got"):
        nms(boxes, scores[:2], valid, iou_threshold=0.5, max_outputs=3)
    with pytest.raises(ValueError, match="max_outputs and tile must be at least 1; got 0, 256"):
        nms(boxes, scores, valid, iou_threshold=0.5, max_outputs=0)
    for regions, classes in ((3, 1), (0, 2)):
        with pytest.raises(ValueError, match="one region and two classes at least"):
            detect(jnp.zeros((regions, classes)), jnp.zeros((regions, classes, 4)), valid)
    with pytest.raises(ValueError, match=r"got boxes of shape \(3, 4\)"):
        detect(jnp.zeros((3, 2)), boxes, valid)


REGIONS, CLASSES = 60, 6


def scored_regions(seed: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, boxes and which are valid, of regions that overlap and mostly score low."""
    rng = np.random.default_rng(seed)
    boxes = draw(REGIONS, seed)[0][:, None] + rng.normal(0, 5, (REGIONS, CLASSES, 4))
    scores = rng.dirichlet(np.full(CLASSES, 0.3), REGIONS)
    return scores.astype(np.float32), boxes.astype(np.float32), rng.random(REGIONS) < share


def detect_in_loops(
    scores: np.ndarray, boxes: np.ndarray, valid: np.ndarray, most: int
) -> list[tuple[float, int, np.ndarray]]:
    found = []
    for label in range(1, CLASSES):
        chosen = np.flatnonzero(valid & (scores[:, label] > 0.05))
        kept = chosen[onnx_nms(boxes[chosen, label], scores[chosen, label], 0.3, REGIONS)]
        found += [(scores[region, label], label, boxes[region, label]) for region in kept]
    return sorted(found, key=lambda detection: -detection[0])[:most]


def as_list(detections: Detections) -> list[tuple[float, int, np.ndarray]]:
    scores, classes, boxes, valid = (
        np.asarray(array)
        for array in (detections.scores, detections.classes, detections.boxes, detections.valid)
    )
    assert classes.dtype == np.int32
    np.testing.assert_array_equal(valid, np.arange(valid.size) < valid.sum())
    for array in (scores, classes, boxes):
        np.testing.assert_array_equal(array[~valid], 0)
    return list(zip(scores[valid], classes[valid], boxes[valid], strict=True))


def test_detections_are_the_best_of_each_class_s_own() -> None:
    """Of two images at once: one has less than there is room for, the other has more."""
    images = [scored_regions(0, share=0.2), scored_regions(1, share=0.8)]
    together = [np.stack(arrays) for arrays in zip(*images, strict=True)]
    both = jax.jit(jax.vmap(functools.partial(detect, max_per_image=40)))(*together)
    lengths = []
    for index, image in enumerate(images):
        expected = detect_in_loops(*image, most=40)
        lengths.append(len(expected))
        actual = as_list(jax.tree.map(operator.itemgetter(index), both))
        assert [found[:2] for found in actual] == [found[:2] for found in expected]
        for found, wanted in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(found[2], wanted[2])
    assert lengths[0] < lengths[1] == 40


def test_boxes_of_two_classes_do_not_suppress_each_other() -> None:
    boxes = jnp.broadcast_to(jnp.array([0.0, 0, 10, 10]), (2, 4, 4))
    scores = jnp.array([[0.9, 0.5, 0.05, 0.2], [0.9, 0.4, 0.05, 0.2]])
    found = as_list(jax.jit(detect)(scores, boxes, jnp.ones(2, bool)))
    # Each class once; none for background, nor for a score at the threshold.
    assert [(round(float(score), 2), label) for score, label, _ in found] == [(0.5, 1), (0.2, 3)]
    assert iou(boxes[0, 1:2], boxes[0, 3:4]) == 1
