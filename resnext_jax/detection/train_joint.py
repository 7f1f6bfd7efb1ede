"""One run for both stages: training Faster R-CNN end to end (Ren et al. 2017, Sec. 3.2).

That is their approximate joint training: the losses of both stages are added up, and the proposals
that the second learns from are those of the same step, taken as constants.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from resnext_jax.data.augment import Batch
from resnext_jax.detection.joint_detector import JointDetector, propose_in_batch
from resnext_jax.detection.losses import fast_rcnn_loss, rpn_loss
from resnext_jax.detection.pyramid import level_anchors
from resnext_jax.detection.setup import (
    anchor_specs,
    build_faster_rcnn,
    region_target_spec,
    rpn_target_spec,
)
from resnext_jax.detection.stage import Losses, Stage, keys_of, say_metrics
from resnext_jax.detection.targets import (
    BACKGROUND,
    RegionTargets,
    RpnTargets,
    region_targets,
    rpn_targets,
)
from resnext_jax.detection.testing import LOGGED, find_objects_jointly, logged_metrics
from resnext_jax.models.variables import Arrays
from resnext_jax.runs.best import Measure


class JointTargets(NamedTuple):
    """What a batch's images are learned from, `[N, ...]` each.

    Attributes:
      anchors: what the region proposal network should say.
      regions: those drawn among proposals and ground truth, and what the other head should say.
    """

    anchors: RpnTargets
    regions: RegionTargets


def joint_targets(
    batch: Batch, proposals: jax.Array, filled: jax.Array, config: ConfigDict
) -> JointTargets:
    """Draw what a batch's images are learned from.

    Args:
      batch: of `loading.detection_batches`.
      proposals: `[N, P, 4]`.
      filled: bool `[N, P]`, which of them are boxes and not padding.
      config: of the run.
    """
    for_anchors = rpn_target_spec(config.targets)
    for_regions = region_target_spec(config.regions)
    _, height, width, _ = batch["image"].shape
    anchors = np.concatenate(level_anchors(height, width, anchor_specs(config)))

    def of_image(
        key: jax.Array, proposals: jax.Array, filled: jax.Array, truth: Mapping[str, jax.Array]
    ) -> JointTargets:
        anchor_key, region_key = jax.random.split(key)
        boxes, valid, crowd = truth["boxes"], truth["valid"], truth["crowd"]
        return JointTargets(
            rpn_targets(anchor_key, anchors, boxes, valid, crowd, truth["size"], for_anchors),
            region_targets(
                region_key, proposals, filled, boxes, truth["classes"], valid, crowd, for_regions
            ),
        )

    truth = {name: batch[name] for name in ("boxes", "classes", "valid", "crowd", "size")}
    return jax.vmap(of_image)(keys_of(batch), proposals, filled, truth)


class JointTraining(Stage):
    """A run of Faster R-CNN as one network."""

    measure = Measure("AP", "AP (%)", highest=True)

    @property
    def title(self) -> str:
        """See `Task`."""
        pyramid = " and a feature pyramid" if self.config.pyramid.enabled else ""
        return f"Faster R-CNN with {self.config.model.name}{pyramid} on {self.config.data.name}"

    def network(self) -> nnx.Module:
        """See `Stage`."""
        return build_faster_rcnn(self.config, self.train.num_classes)

    def image_losses(self, model: Any, images: jax.Array, batch: Batch) -> Losses:
        """See `Stage`: the sum of four losses."""
        features = model.features(images)
        logits, deltas = model.rpn_outputs(features)
        proposals, filled = propose_in_batch(logits, deltas, batch, self.config, training=True)
        targets = joint_targets(batch, proposals, filled, self.config)
        rpn_class_loss, rpn_box_loss = jax.vmap(rpn_loss)(logits, deltas, targets.anchors)
        logits, deltas = model.on_regions(features, targets.regions.boxes)
        class_loss, box_loss = jax.vmap(fast_rcnn_loss)(logits, deltas, targets.regions)
        foreground = (targets.regions.labels != BACKGROUND).sum(axis=1).astype(jnp.float32)
        losses = {
            "rpn_class_loss": rpn_class_loss,
            "rpn_box_loss": rpn_box_loss,
            "class_loss": class_loss,
            "box_loss": box_loss,
        }
        return sum(losses.values(), start=jnp.zeros(())), losses | {"foreground": foreground}

    def test(
        self, params: Arrays, batch_stats: Arrays, between_batches: Callable[[], None]
    ) -> dict[str, float]:
        """See `Task`: COCO's metrics, in percent."""
        weights = (params, batch_stats)
        rows = find_objects_jointly(self._detector, self.test_split, weights, between_batches)
        return logged_metrics(self.test_split, rows)

    @functools.cached_property
    def _detector(self) -> JointDetector:
        return JointDetector(self.config, self.graphdef, self.mesh)

    def describe_test(self, record: Mapping[str, Any]) -> Iterator[str]:
        """See `Task`."""
        yield from say_metrics(record, {name: name for name in LOGGED})
