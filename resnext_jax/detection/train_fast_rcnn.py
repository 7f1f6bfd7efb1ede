"""The second stage: training Fast R-CNN on stored proposals (paper App. B; Girshick 2015)."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from resnext_jax.data.augment import Batch
from resnext_jax.detection.detector import Detector
from resnext_jax.detection.losses import fast_rcnn_loss
from resnext_jax.detection.proposals import StoredProposals
from resnext_jax.detection.setup import build_fast_rcnn, region_target_spec
from resnext_jax.detection.stage import Losses, Stage, keys_of, say_metrics
from resnext_jax.detection.targets import BACKGROUND, region_targets
from resnext_jax.detection.testing import LOGGED, find_objects, logged_metrics
from resnext_jax.models.variables import Arrays
from resnext_jax.runs.best import Measure


class FastRCNNTraining(Stage):
    """A run of Fast R-CNN."""

    measure = Measure("AP", "AP (%)", highest=True)

    def open(self) -> int:
        """See `Task`."""
        images = super().open()
        self.max_proposals = self.config.data.train_proposals
        stored, self._test_proposals = (
            StoredProposals(self.config.data.proposals, name, split)
            for name, split in (("train", self.train), ("test", self.test_split))
        )
        self.proposals, self._digest = stored, stored.digest
        return images

    @property
    def title(self) -> str:
        """See `Task`."""
        return f"Fast R-CNN with {self.config.model.name} on {self.config.data.name}"

    def network(self) -> nnx.Module:
        """See `Stage`."""
        return build_fast_rcnn(self.config, self.train.num_classes)

    def image_losses(self, model: Any, images: jax.Array, batch: Batch) -> Losses:
        """See `Stage`."""
        spec = region_target_spec(self.config.targets)
        names = ("proposals", "proposals_valid", "boxes", "classes", "valid", "crowd")
        targets = jax.vmap(functools.partial(region_targets, spec=spec))(
            keys_of(batch), *(batch[name] for name in names)
        )
        logits, deltas = model(images, targets.boxes)
        class_loss, box_loss = jax.vmap(fast_rcnn_loss)(logits, deltas, targets)
        foreground = (targets.labels != BACKGROUND).sum(axis=1).astype(jnp.float32)
        metrics = {"class_loss": class_loss, "box_loss": box_loss, "foreground": foreground}
        return class_loss + box_loss, metrics

    def test(
        self, params: Arrays, batch_stats: Arrays, between_batches: Callable[[], None]
    ) -> dict[str, float]:
        """See `Task`: COCO's metrics, in percent."""
        rows = find_objects(
            self._detector,
            self.test_split,
            self._test_proposals,
            (params, batch_stats),
            between_batches,
        )
        return logged_metrics(self.test_split, rows)

    @functools.cached_property
    def _detector(self) -> Detector:
        return Detector(self.config, self.graphdef, self.mesh)

    def data_details(self) -> str:
        """See `Stage`: a run resumes on the proposals it began with."""
        return self._digest

    def describe_test(self, record: Mapping[str, Any]) -> Iterator[str]:
        """See `Task`."""
        yield from say_metrics(record, {name: name for name in LOGGED})
