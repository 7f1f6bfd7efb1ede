"""Non-maximum suppression on the device, in static shapes, and the detections of an image.

Greedy suppression is sequential: a box survives if no better survivor covers it. Here boxes
are taken by falling score in tiles. A tile is tested only against the survivors so far, all at
once, then settled within itself; work ends with the last valid box, or when enough are kept.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from resnext_jax.detection.boxes import iou

# Survivors that a tile is tested against at once.
_CHUNK = 512

# Where in the order the next tile starts, how many boxes are kept, and their places in the order.
_State = tuple[jax.Array, jax.Array, jax.Array]


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float | Float[Array, ""],
    max_outputs: int,
    tile: int = 256,
) -> tuple[Int32[Array, " {max_outputs}"], Bool[Array, " {max_outputs}"]]:
    """Keep the best of boxes that overlap (greedy non-maximum suppression).

    By falling score, a box is kept unless its IoU with one kept before is above the threshold.
    Of equal scores the lower index comes first. The result is, index for index, that of ONNX's
    `NonMaxSuppression`. It can be mapped over images with `jax.vmap`.

    Args:
      boxes: `[N, 4]`, corners in order.
      scores: `[N]`, floating point; NaN counts as not valid.
      valid: bool `[N]`, which are boxes and not padding.
      iou_threshold: in 0..1.
      max_outputs: how many to keep at most.
      tile: boxes that are settled at once; changes the time, not the result.

    Returns:
      Indices of the kept boxes by falling score, int32 `[max_outputs]`, and which of them are
      one, bool `[max_outputs]`; beyond the kept boxes the index is 0.

    Raises:
      ValueError: shapes do not fit, or `max_outputs` or `tile` is below 1.
    """
    return _suppress(boxes, scores, valid, None, iou_threshold, max_outputs, tile)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Detections:
    """What was found in an image, by falling score; zeros where `valid` is False.

    Attributes:
      boxes: `[D, 4]`.
      scores: `[D]`.
      classes: int32 `[D]`, from 1.
      valid: bool `[D]`, which places are filled.
    """

    boxes: Float[Array, "d 4"]
    scores: Float[Array, " d"]
    classes: Int32[Array, " d"]
    valid: Bool[Array, " d"]


def detect(
    scores: Float[Array, "r k"],
    boxes: Float[Array, "r k 4"],
    valid: Bool[Array, " r"],
    *,
    score_threshold: float = 0.05,
    iou_threshold: float | Float[Array, ""] = 0.3,
    max_per_image: int = 100,
) -> Detections:
    """Turn scored regions into detections (Girshick 2015, Sec. 2.4).

    Suppression is a class's own; then the best detections of all classes are kept. Both are one
    pass: with the classes in one order of scores, and boxes of others never suppressed, the first
    `max_per_image` survivors are the best.

    Args:
      scores: `[R, K]`, of K classes; class 0 is background and never detected.
      boxes: `[R, K, 4]`, a region's box for each class.
      valid: bool `[R]`, which regions are not padding.
      score_threshold: scores must be above it.
      iou_threshold: of suppression, in 0..1.
      max_per_image: D. Of equal scores at the end, the lower class and then the lower region
        is kept.

    Returns:
      The detections, at most D.

    Raises:
      ValueError: shapes do not fit, or there is no region, or no class but background.
    """
    regions, classes = scores.shape
    if regions < 1 or classes < 2 or boxes.shape != (regions, classes, 4):
        raise ValueError(
            f"scores of shape {scores.shape} need boxes of shape {(*scores.shape, 4)}, one region "
            f"and two classes at least, background among them; got boxes of shape {boxes.shape}."
        )
    flat_scores = scores[:, 1:].T.ravel()
    flat_boxes = boxes[:, 1:].swapaxes(0, 1).reshape(-1, 4)
    flat_classes = jnp.repeat(jnp.arange(1, classes, dtype=jnp.int32), regions)
    wanted = jnp.tile(valid, classes - 1) & (flat_scores > score_threshold)
    indices, kept = _suppress(
        flat_boxes, flat_scores, wanted, flat_classes, iou_threshold, max_per_image, tile=256
    )
    return Detections(
        boxes=jnp.where(kept[:, None], flat_boxes[indices], 0),
        scores=jnp.where(kept, flat_scores[indices], 0),
        classes=jnp.where(kept, flat_classes[indices], 0),
        valid=kept,
    )


def _suppress(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    groups: jax.Array | None,
    iou_threshold: float | jax.Array,
    max_outputs: int,
    tile: int,
) -> tuple[jax.Array, jax.Array]:
    """`nms`, where boxes of different groups (int32 `[N]`) never suppress each other."""
    number = scores.size
    if boxes.shape != (number, 4) or scores.shape != (number,) or valid.shape != (number,):
        raise ValueError(
            f"boxes, scores and valid must be [N, 4], [N] and [N]; got {boxes.shape}, "
            f"{scores.shape} and {valid.shape}."
        )
    if max_outputs < 1 or tile < 1:
        raise ValueError(f"max_outputs and tile must be at least 1; got {max_outputs}, {tile}.")
    if number == 0:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    tile = min(tile, number)
    chunk = min(_CHUNK, max_outputs)
    valid = valid & ~jnp.isnan(scores)
    # A valid score of -inf ties with the rest: which are valid is looked up afterwards.
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
    order = jnp.pad(order, (0, -number % tile))
    boxes = boxes[order]
    groups = None if groups is None else groups[order]
    candidates = valid[order] & (jnp.arange(order.size) < number)
    end = jnp.max(jnp.where(candidates, jnp.arange(1, order.size + 1, dtype=jnp.int32), 0))
    in_tile = jnp.arange(tile, dtype=jnp.int32)
    in_chunk = jnp.arange(chunk, dtype=jnp.int32)

    def covers(better: jax.Array, worse: jax.Array) -> jax.Array:
        """Of places in the order, `[A]` and `[B]`, say which suppress which, `[A, B]`."""
        above = iou(boxes[better], boxes[worse]) > iou_threshold
        return above if groups is None else above & (groups[better][:, None] == groups[worse])

    def settle_tile(state: _State) -> _State:
        start, count, kept = state
        here = start + in_tile

        def test(index: jax.Array, free: jax.Array) -> jax.Array:
            slots = index * chunk + in_chunk
            covered = covers(kept[slots], here) & (slots < count)[:, None]
            return free & ~covered.any(axis=0)

        free = lax.fori_loop(0, (count + chunk - 1) // chunk, test, candidates[here])
        survives = _settle(covers(here, here) & (in_tile[:, None] < in_tile), free)
        ranks = jnp.cumsum(survives, dtype=jnp.int32)
        slots = jnp.where(survives, count + ranks - 1, kept.size)
        return start + tile, count + ranks[-1], kept.at[slots].set(here, mode="drop")

    def is_open(state: _State) -> jax.Array:
        start, count, _ = state
        return (start < end) & (count < max_outputs)

    kept = jnp.zeros(-(-max_outputs // chunk) * chunk, jnp.int32)
    # Under shard_map a loop's state must differ between devices from the start, as boxes do.
    zero = jnp.where(False, end + boxes[0, 0].astype(jnp.int32), 0)
    _, count, kept = lax.while_loop(is_open, settle_tile, (zero, zero, kept + zero))
    is_kept = jnp.arange(max_outputs) < count
    return jnp.where(is_kept, order[kept[:max_outputs]], 0), is_kept


def _settle(covers: jax.Array, free: jax.Array) -> jax.Array:
    """Suppress boxes of a tile by better ones of it.

    The survivors are those free boxes that no survivor covers. There is one such set. Applied
    again and again, the rule settles at least one more box in order each time, mostly many.

    Args:
      covers: bool `[T, T]`, which suppress which; false unless the first is better.
      free: bool `[T]`, which are not suppressed yet.

    Returns:
      bool `[T]`, which survive.
    """

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        survives, _ = state
        settled = free & ~(covers & survives[:, None]).any(axis=0)
        return settled, (settled != survives).any()

    return lax.while_loop(lambda state: state[1], again, (free, free.any()))[0]
