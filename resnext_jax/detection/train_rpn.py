"""The first stage: training the region proposal network (paper App. B; Ren et al. 2015)."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from resnext_jax.data.augment import Batch
from resnext_jax.detection.anchors import make_anchors
from resnext_jax.detection.losses import rpn_loss
from resnext_jax.detection.models import STRIDE
from resnext_jax.detection.proposals import Proposer
from resnext_jax.detection.setup import anchor_spec, build_rpn, rpn_target_spec
from resnext_jax.detection.stage import Losses, Stage, keys_of, say_metrics
from resnext_jax.detection.targets import POSITIVE, rpn_targets
from resnext_jax.detection.testing import RECALL_AT, score_proposals
from resnext_jax.models.variables import Arrays
from resnext_jax.runs.best import Measure


class RPNTraining(Stage):
    """A run of the region proposal network."""

    measure = Measure("recall100", "recall@100 at IoU .5 (%)", highest=True)

    @property
    def title(self) -> str:
        """See `Task`."""
        return f"RPN with {self.config.model.name} on {self.config.data.name}"

    def network(self) -> nnx.Module:
        """See `Stage`."""
        return build_rpn(self.config)

    def image_losses(self, model: Any, images: jax.Array, batch: Batch) -> Losses:
        """See `Stage`."""
        spec = rpn_target_spec(self.config.targets)
        logits, deltas = model(images)
        height, width = (side // STRIDE for side in images.shape[1:3])
        anchors = make_anchors(height, width, anchor_spec(self.config))

        def losses(key: jax.Array, *of_image: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits, deltas, boxes, valid, crowd, size = of_image
            targets = rpn_targets(key, anchors, boxes, valid, crowd, size, spec)
            class_loss, box_loss = rpn_loss(logits, deltas, targets)
            return class_loss, box_loss, (targets.labels == POSITIVE).sum()

        truth = (batch[name] for name in ("boxes", "valid", "crowd", "size"))
        class_loss, box_loss, positives = jax.vmap(losses)(keys_of(batch), logits, deltas, *truth)
        metrics = {
            "class_loss": class_loss,
            "box_loss": box_loss,
            "foreground": positives.astype(jnp.float32),
        }
        return class_loss + box_loss, metrics

    def test(
        self, params: Arrays, batch_stats: Arrays, between_batches: Callable[[], None]
    ) -> dict[str, float]:
        """See `Task`: the share of objects that the best proposals cover, in percent."""
        weights = (params, batch_stats)
        return score_proposals(self._proposer, self.test_split, weights, between_batches)

    @functools.cached_property
    def _proposer(self) -> Proposer:
        return Proposer(self.config, self.graphdef, self.mesh, training=False)

    def describe_test(self, record: Mapping[str, Any]) -> Iterator[str]:
        """See `Task`."""
        yield from say_metrics(
            record, {f"recall{limit}": f"recall@{limit} (%)" for limit in RECALL_AT}
        )
