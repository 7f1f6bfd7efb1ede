"""From images to detections in one pass: Faster R-CNN as one network, see `joint`."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.augment import Batch
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.detector import detect_in_batch, detections_of
from resnext_jax.detection.evaluate import Detections
from resnext_jax.detection.proposals import ProposalSpec, proposal_spec, propose
from resnext_jax.detection.pyramid import level_anchors
from resnext_jax.detection.setup import ImagePass, anchor_specs
from resnext_jax.models.variables import Arrays


def propose_from_levels(
    logits: jax.Array,
    deltas: jax.Array,
    size: jax.Array,
    scale: jax.Array,
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
      scale: of the resizing.
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
        propose(own_logits, own_deltas, size, scale, anchors=own_anchors, spec=spec)
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

    return jax.vmap(of_image)(logits, deltas, batch["size"], batch["scale"])


class JointDetector:
    """Faster R-CNN of one network, ready to be run on the images of a split."""

    def __init__(self, config: ConfigDict, graphdef: Any, mesh: Mesh):
        """Prepare the step (it compiles when first run)."""

        def results(model: Any, images: jax.Array, batch: Batch) -> dict[str, jax.Array]:
            features = model.features(images)
            logits, deltas = model.rpn_outputs(features)
            regions, filled = propose_in_batch(logits, deltas, batch, config, training=False)
            logits, deltas = model.on_regions(features, regions)
            return detect_in_batch(logits, deltas, regions, filled, batch["size"], config)

        self._pass = ImagePass(config, graphdef, mesh, results)

    def run(
        self,
        split: CocoSplit,
        params: Arrays,
        batch_stats: Arrays,
        between_batches: Callable[[], None] = lambda: None,
    ) -> Generator[tuple[int, Detections], None, None]:
        """Yield the index of each image, and what was found in it, on all hosts.

        Args:
          split: the images.
          params: of the network.
          batch_stats: of the network.
          between_batches: called before each batch; what it raises ends the pass.
        """
        found = self._pass.run(split, params, batch_stats, between_batches=between_batches)
        for index, image in found:
            yield index, detections_of(image)
