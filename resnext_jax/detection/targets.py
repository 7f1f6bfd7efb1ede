"""Training targets of the RPN and Fast R-CNN, drawn at every step.

One image at a time; all in static shapes, on the device. Ground truth is padded, with a mask.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer, PRNGKeyArray, Real

from resnext_jax.detection import boxes as geometry


def draw_scores(key: PRNGKeyArray, mask: Bool[Array, " n"]) -> Float32[Array, " n"]:
    """Draw a random score for each candidate.

    Args:
      key: a `jax.random` key.
      mask: bool `[N]`, which are candidates.

    Returns:
      float32 `[N]`, in 0..1, and -1 where there is no candidate.
    """
    # float32 also in double precision, which would draw others. Its 2^23 values are enough: that
    # the last one taken ties with the next is a matter of N in 8 million.
    return jnp.where(mask, jax.random.uniform(key, mask.shape, jnp.float32), -1)


def take_best(
    scores: Float[Array, " n"], size: int
) -> tuple[Int32[Array, " {size}"], Bool[Array, " {size}"]]:
    """Take the candidates with the highest scores.

    Args:
      scores: `[N]`, of `draw_scores`; negative ones are never taken.
      size: how many, at most.

    Returns:
      int32 `[size]`, indices, each of them once, by falling score; and bool `[size]`, which of
      them are candidates: the first ones, and all if there are enough. The others' index is 0.
    """
    values, indices = lax.top_k(scores, min(size, scores.shape[0]))
    missing = (0, size - values.shape[0])
    valid = jnp.pad(values >= 0, missing)
    return jnp.where(valid, jnp.pad(indices, missing), 0).astype(jnp.int32), valid


def choose(
    key: PRNGKeyArray, mask: Bool[Array, " n"], size: int
) -> tuple[Int32[Array, " {size}"], Bool[Array, " {size}"]]:
    """Draw at most `size` candidates into as many places.

    Args:
      key: a `jax.random` key.
      mask: bool `[N]`, which are candidates.
      size: how many, at most.

    Returns:
      Indices and which of them count, see `take_best`; in random order.
    """
    return take_best(draw_scores(key, mask), size)


def sample(
    key: PRNGKeyArray,
    mask: Bool[Array, " n"],
    quota: int | Integer[Array, ""],
    most: int | None = None,
) -> Bool[Array, " n"]:
    """Keep a random subset of at most `quota` candidates.

    Args:
      key: a `jax.random` key.
      mask: bool `[N]`, which are candidates.
      quota: how many, at most; may be traced.
      most: a static bound on the quota, which saves ranking all N; None is the quota itself, or
        N where that is traced.

    Returns:
      bool `[N]`, with `min(quota, mask.sum())` of the entries of `mask` (and no more than
      `most`).
    """
    if most is None:
        most = quota if isinstance(quota, int) else mask.shape[0]
    indices, valid = choose(key, mask, most)
    kept = valid & (jnp.arange(most) < quota)
    # Places that are not kept write nowhere.
    where = jnp.where(kept, indices, mask.shape[0])
    return jnp.zeros_like(mask).at[where].set(True, mode="drop")


# Labels of anchors. Those of regions are classes, and 0.
UNUSED, NEGATIVE, POSITIVE = -1, 0, 1
BACKGROUND = 0

CROWDS = ("ignore", "legacy")

# Overlaps that differ by rounding tie: symmetric anchors do, and each box keeps its best anchor
# even where the compiler computes the overlap twice, in different ways.
_TIE = 1e-6


@dataclasses.dataclass(frozen=True)
class RpnTargetSpec:
    """Which anchors the RPN learns from (Ren et al. 2015, Sec. 3.1.2 and 3.1.3).

    Attributes:
      positive: IoU with a box from which an anchor is positive.
      negative: IoU with every box below which it is negative.
      samples: anchors an image, at most.
      positives: positive ones among them, at most.
      crowds: "ignore": a crowd is no object, and a negative anchor that lies in one is left
        unused; "legacy": it is an object like any other, as in py-faster-rcnn.
      crowd_coverage: share of an anchor's area beyond which it lies in a crowd.
    """

    positive: float = 0.7
    negative: float = 0.3
    samples: int = 256
    positives: int = 128
    crowds: str = "ignore"
    crowd_coverage: float = 0.7

    def __post_init__(self) -> None:
        if self.crowds not in CROWDS:
            raise ValueError(f"crowds is {self.crowds!r}; it must be one of {', '.join(CROWDS)}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RpnTargets:
    """What the RPN should say of the anchors of an image.

    Attributes:
      labels: int32 `[N]`, `POSITIVE` (1), `NEGATIVE` (0) or `UNUSED` (-1).
      deltas: `[N, 4]`, from a positive anchor to the box it overlaps most (see `boxes.encode`,
        not normalised); 0 for all others.
    """

    labels: Int32[Array, " n"]
    deltas: Float[Array, "n 4"]


def rpn_targets(
    key: PRNGKeyArray,
    anchors: Float[Array | np.ndarray, "n 4"],
    boxes: Float[Array, "g 4"],
    valid: Bool[Array, " g"],
    crowd: Bool[Array, " g"],
    size: Real[Array, "2"] | tuple[int, int],
    spec: RpnTargetSpec | None = None,
) -> RpnTargets:
    """Label the anchors of an image, and draw those that count.

    Only anchors wholly inside the image count. One is positive if its IoU with a box is at
    least `positive`, or if no other has a higher one with that box (all that tie, but none
    without overlap); else negative if its IoU with every box is below `negative`.

    Args:
      key: a `jax.random` key, of the image and the step.
      anchors: `[N, 4]`, of `anchors.make_anchors`.
      boxes: ground truth `[G, 4]`.
      valid: bool `[G]`, which of them are boxes and not padding. With none all anchors inside
        the image are negative.
      crowd: bool `[G]`, which are crowds.
      size: height and width of the image, without padding.
      spec: numbers; None is py-faster-rcnn's.

    Returns:
      Labels and deltas, where at most `samples` anchors are not `UNUSED`.
    """
    spec = spec or RpnTargetSpec()
    anchors, boxes = jnp.asarray(anchors), jnp.asarray(boxes)
    objects = valid if spec.crowds == "legacy" else valid & ~crowd
    inside = _inside(anchors, size)
    overlaps = geometry.iou(anchors, boxes, objects)
    highest = overlaps.max(axis=1)
    record = jnp.where(inside[:, None], overlaps, -1).max(axis=0)
    best_for_some = (overlaps >= record * (1 - _TIE)) & (record > 0)
    positive = inside & ((highest >= spec.positive) | best_for_some.any(axis=1))
    negative = inside & (highest < spec.negative) & ~positive
    if spec.crowds == "ignore":
        negative &= ~_in_crowd(anchors, boxes, valid & crowd, spec.crowd_coverage)

    # One key serves both: no anchor is in both, and each has a score of its own.
    positive = sample(key, positive, min(spec.positives, spec.samples))
    rest = spec.samples - positive.sum()
    negative = sample(key, negative, rest, most=spec.samples)
    labels = jnp.where(positive, POSITIVE, jnp.where(negative, NEGATIVE, UNUSED))
    deltas = geometry.encode(boxes[overlaps.argmax(axis=1)], anchors)
    return RpnTargets(labels.astype(jnp.int32), jnp.where(positive[:, None], deltas, 0))


@dataclasses.dataclass(frozen=True)
class RegionTargetSpec:
    """Which regions Fast R-CNN learns from (Girshick 2015, Sec. 2.3).

    Attributes:
      samples: R, regions an image.
      foregrounds: regions with an object among them, at most.
      foreground: IoU with a box from which a region has its class.
      background: IoU with every box from which a region below `foreground` is background.
      crowd_coverage: share of a proposal's area beyond which it lies in a crowd, and is
        dropped.
      std: what deltas are divided by.
    """

    samples: int = 64
    foregrounds: int = 16
    foreground: float = 0.5
    background: float = 0.0
    crowd_coverage: float = 0.7
    std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RegionTargets:
    """Regions of an image, and what Fast R-CNN should say of them.

    Attributes:
      boxes: `[R, 4]`, foregrounds first; a place that is not filled has an empty box of zeros.
      labels: int32 `[R]`, classes; 0 is background.
      deltas: `[R, 4]`, from a foreground to the box it overlaps most, normalised (divided by
        `std`); 0 for all others.
      weights: float32 `[R]`, 1, and 0 for a place that is not filled.
    """

    boxes: Float[Array, "r 4"]
    labels: Int32[Array, " r"]
    deltas: Float[Array, "r 4"]
    weights: Float32[Array, " r"]


def region_targets(
    key: PRNGKeyArray,
    proposals: Float[Array, "p 4"],
    proposals_valid: Bool[Array, " p"],
    boxes: Float[Array, "g 4"],
    classes: Int[Array, " g"],
    valid: Bool[Array, " g"],
    crowd: Bool[Array, " g"],
    spec: RegionTargetSpec | None = None,
) -> RegionTargets:
    """Draw the regions of an image, and label them.

    Candidates are the proposals and the ground truth without crowds, all with an area above 0.
    Where there are too few backgrounds, places are left: foregrounds never exceed their share.

    Args:
      key: a `jax.random` key, of the image and the step.
      proposals: `[P, 4]`.
      proposals_valid: bool `[P]`, which of them are boxes and not padding.
      boxes: ground truth `[G, 4]`.
      classes: int32 `[G]`, from 1.
      valid: bool `[G]`, which of the ground truth are boxes and not padding. With none all
        proposals are at IoU 0.
      crowd: bool `[G]`, which are crowds: never objects.
      spec: numbers; None is the paper's.

    Returns:
      R regions; constants, in that no gradient reaches the proposals.
    """
    spec = spec or RegionTargetSpec()
    boxes, classes = jnp.asarray(boxes), jnp.asarray(classes)
    objects = valid & ~crowd
    proposals_valid = proposals_valid & ~_in_crowd(
        proposals, boxes, valid & crowd, spec.crowd_coverage
    )
    regions = jax.lax.stop_gradient(jnp.concatenate([proposals, boxes]))
    candidates = jnp.concatenate([proposals_valid, objects]) & (geometry.area(regions) > 0)
    overlaps = geometry.iou(regions, boxes, objects)
    highest = jnp.maximum(overlaps.max(axis=1), 0)
    foreground = highest >= spec.foreground
    background = ~foreground & (highest >= spec.background)

    # One score serves both, as no region is in both. Proposals and ground truth have keys of
    # their own, so that the padding of the ones does not change what is drawn of the others.
    keys = jax.random.split(key)
    masks = jnp.split(candidates, [len(proposals)])
    scores = jnp.concatenate([draw_scores(*pair) for pair in zip(keys, masks, strict=True)])
    drawn = [
        take_best(jnp.where(group, scores, -1), size)
        for group, size in ((foreground, spec.foregrounds), (background, spec.samples))
    ]
    indices, filled = (jnp.concatenate(parts) for parts in zip(*drawn, strict=True))
    # Close the gaps, and leave out the backgrounds that are too many.
    order = jnp.argsort(~filled, stable=True)[: spec.samples]
    indices, filled = indices[order], filled[order]

    closest = overlaps.argmax(axis=1)[indices]
    has_object = filled & foreground[indices]
    picked = jnp.where(filled[:, None], regions[indices], 0)
    deltas = geometry.encode(boxes[closest], picked) / jnp.array(spec.std, boxes.dtype)
    return RegionTargets(
        boxes=picked,
        labels=jnp.where(has_object, classes[closest], BACKGROUND).astype(jnp.int32),
        deltas=jnp.where(has_object[:, None], deltas, 0),
        weights=filled.astype(jnp.float32),
    )


def _inside(boxes: jax.Array, size: jax.Array | tuple[int, int]) -> jax.Array:
    """Mark the boxes that are wholly inside the image, bool `[N]`."""
    x1, y1, x2, y2 = boxes.T
    return (x1 >= 0) & (y1 >= 0) & (x2 <= size[1]) & (y2 <= size[0])


def _in_crowd(boxes: jax.Array, truth: jax.Array, crowd: jax.Array, share: float) -> jax.Array:
    """Mark the boxes with more than a share of their area in one crowd, bool `[N]`."""
    return jnp.any((geometry.coverage(boxes, truth) > share) & crowd, axis=1)
