"""From regions to detections: trained detectors on images."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.augment import Batch
from resnext_jax.detection import boxes as geometry
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.evaluate import DetectionArrays
from resnext_jax.detection.loading import Proposals
from resnext_jax.detection.nms import detect
from resnext_jax.detection.proposals import ProposalSpec, proposal_spec, propose
from resnext_jax.detection.pyramid import level_anchors
from resnext_jax.detection.setup import ImagePass, anchor_specs
from resnext_jax.detection.sizes import original_boxes
from resnext_jax.detection.targets import RegionTargetSpec
from resnext_jax.models.variables import Arrays

_STD = RegionTargetSpec().std


def detect_in_batch(
    logits: jax.Array,
    deltas: jax.Array,
    regions: jax.Array,
    valid: jax.Array,
    sizes: jax.Array,
    config: ConfigDict,
) -> dict[str, jax.Array]:
    """Turn what a network says of the regions of a batch's images into detections.

    Args:
      logits: `[N, R, K]`.
      deltas: `[N, R, K, 4]`, in units of their standard deviations.
      regions: `[N, R, 4]`.
      valid: bool `[N, R]`, which of them are boxes and not padding.
      sizes: `[N, 2]`, of the images without padding.
      config: of the run: what is a detection.

    Returns:
      Arrays `boxes`, `scores`, `classes` and `valid`, `[N, D, ...]`; see `nms.Detections`.
    """
    spec = config.detections

    def of_image(
        logits: jax.Array, deltas: jax.Array, regions: jax.Array, valid: jax.Array, size: jax.Array
    ) -> dict[str, jax.Array]:
        moved = geometry.decode(deltas * jnp.asarray(_STD, deltas.dtype), regions[:, None])
        found = detect(
            jax.nn.softmax(logits),
            geometry.clip(moved, size),
            valid,
            score_threshold=spec.score,
            iou_threshold=spec.nms_iou,
            max_per_image=spec.most,
        )
        return {
            "boxes": found.boxes,
            "scores": found.scores,
            "classes": found.classes,
            "valid": found.valid,
        }

    return jax.vmap(of_image)(logits, deltas, regions, valid, sizes)


def detections_of(image: Mapping[str, np.ndarray]) -> DetectionArrays:
    """Take what `detect_in_batch` found in an image to the image as it is stored.

    Args:
      image: of `setup.ImagePass.run`.
    """
    valid = image["valid"]
    boxes = original_boxes(image["boxes"][valid], image["size"], image["original_size"])
    scores = image["scores"][valid].astype(np.float32)
    return DetectionArrays(boxes, scores, image["classes"][valid])


def propose_from_levels(
    logits: jax.Array,
    deltas: jax.Array,
    size: jax.Array,
    original_size: jax.Array,
    *,
    anchors: Sequence[np.ndarray],
    spec: ProposalSpec,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Turn what the RPN says of an image at several levels into proposals, best first.

    Each level has its own suppression, of its best `spec.before`; the best `spec.most` of all
    levels are kept (as in Detectron). With one level this is `propose`.

    Args:
      logits: `[N, 2]`, level after level.
      deltas: `[N, 4]`.
      size: `[2]`, see `propose`, also for the next.
      original_size: `[2]`.
      anchors: of each level.
      spec: which become proposals.

    Returns:
      Boxes `[P, 4]`, scores `[P]`, and which places are filled, bool `[P]`; constants, in that no
      gradient reaches logits and deltas.
    """
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    bounds = np.cumsum([len(each) for each in anchors])[:-1]
    levels = zip(jnp.split(logits, bounds), jnp.split(deltas, bounds), anchors, strict=True)
    found = [
        propose(own_logits, own_deltas, size, original_size, anchors=own_anchors, spec=spec)
        for own_logits, own_deltas, own_anchors in levels
    ]
    if len(found) == 1:
        return found[0]
    boxes, scores, filled = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
    _, best = jax.lax.top_k(jnp.where(filled, scores, -1), spec.most)
    return boxes[best], scores[best], filled[best]


def propose_in_batch(
    logits: jax.Array, deltas: jax.Array, batch: Batch, config: ConfigDict, *, training: bool
) -> tuple[jax.Array, jax.Array]:
    """Make the proposals of a batch's images.

    Args:
      logits: `[N, K, 2]`.
      deltas: `[N, K, 4]`.
      batch: of `loading`.
      config: of the run.
      training: whether they are to be trained on.

    Returns:
      Boxes `[N, P, 4]` and which places are filled, bool `[N, P]`.
    """
    spec = proposal_spec(config, training=training)
    _, height, width, _ = batch["image"].shape
    anchors = level_anchors(height, width, anchor_specs(config))

    def of_image(*image: jax.Array) -> tuple[jax.Array, jax.Array]:
        boxes, _, filled = propose_from_levels(*image, anchors=anchors, spec=spec)
        return boxes, filled

    return jax.vmap(of_image)(logits, deltas, batch["size"], batch["original_size"])


class Detector:
    """Fast R-CNN, or Faster R-CNN of one network, ready to be run on the images of a split."""

    def __init__(self, config: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh):
        """Prepare the step (it compiles when first run)."""
        makes_proposals = config.task == "faster_rcnn"
        self._max_proposals = 0 if makes_proposals else config.data.test_proposals

        def results(model: Any, images: jax.Array, batch: Batch) -> dict[str, jax.Array]:
            if makes_proposals:
                features = model.features(images)
                logits, deltas = model.rpn_outputs(features)
                regions, valid = propose_in_batch(logits, deltas, batch, config, training=False)
                logits, deltas = model.on_regions(features, regions)
            else:
                regions, valid = batch["proposals"], batch["proposals_valid"]
                logits, deltas = model(images, regions)
            return detect_in_batch(logits, deltas, regions, valid, batch["size"], config)

        self._pass = ImagePass(config, graphdef, mesh, results)

    def run(
        self,
        split: CocoSplit,
        params: Arrays,
        batch_stats: Arrays,
        between_batches: Callable[[], None] = lambda: None,
        *,
        proposals: Proposals | None = None,
    ) -> Generator[tuple[int, DetectionArrays], None, None]:
        """Yield the index of each image, and what was found in it, on all hosts.

        Args:
          split: the images.
          params: of the network.
          batch_stats: of the network.
          between_batches: called before each batch; what it raises ends the pass.
          proposals: of each image, for Fast R-CNN.
        """
        found = self._pass.run(
            split,
            params,
            batch_stats,
            proposals=proposals,
            max_proposals=self._max_proposals,
            between_batches=between_batches,
        )
        for index, image in found:
            yield index, detections_of(image)
