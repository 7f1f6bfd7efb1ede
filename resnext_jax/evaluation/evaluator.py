"""Exact evaluation: every image once, on any number of devices."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from resnext_jax.data.augment import Batch
from resnext_jax.evaluation.metrics import cross_entropy, topk_wrong
from resnext_jax.models.variables import Arrays, merge
from resnext_jax.training.mesh import BATCH, DATA_AXES, REPLICATED

Sums = dict[str, jax.Array]
EvalStep = Callable[[Arrays, Arrays, Batch], Sums]


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Averages over a data set.

    Attributes:
      images: how many were scored.
      loss: mean cross-entropy, in nats.
      top1_error, top5_error: in percent.
    """

    images: int
    loss: float
    top1_error: float
    top5_error: float

    def as_record(self) -> dict[str, float]:
        """Return what a line of `metrics.jsonl` says of it."""
        return {
            "loss": self.loss,
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
        }


def make_eval_step(graphdef: Any, preprocess: Callable[[Batch], jax.Array], mesh: Mesh) -> EvalStep:
    """Compile the scoring of one batch.

    Args:
      graphdef: of the model, from `models.variables.split`.
      preprocess: from a shipped batch to normalised images.
      mesh: of `training.mesh.make_mesh`.

    Returns:
      A function of parameters, running statistics and a global batch with
      `image`, `label` and `mask`, to the sums over its real images: `images`,
      `top1_wrong`, `top5_wrong` (int32) and `loss` (float32 at least).
    """

    def local_sums(params: Arrays, batch_stats: Arrays, batch: Batch) -> Sums:
        model = merge(graphdef, params, batch_stats)
        model.eval()
        logits = model(preprocess(batch))
        labels, mask = batch["label"], batch["mask"]
        per_image = {
            "images": mask.astype(jnp.int32),
            "top1_wrong": topk_wrong(logits, labels, 1).astype(jnp.int32),
            "top5_wrong": topk_wrong(logits, labels, 5).astype(jnp.int32),
            "loss": cross_entropy(logits, labels),
        }
        # A select, not a product: a blank's loss might not be finite.
        sums = {name: jnp.where(mask, value, 0).sum() for name, value in per_image.items()}
        return lax.psum(sums, DATA_AXES)

    return jax.jit(
        jax.shard_map(
            local_sums,
            mesh=mesh,
            in_specs=(REPLICATED, REPLICATED, BATCH),
            out_specs=REPLICATED,
        )
    )


def evaluate(
    eval_step: EvalStep,
    params: Arrays,
    batch_stats: Arrays,
    batches: Iterable[Batch],
    num_images: int,
) -> EvalResult:
    """Score a data set.

    Raises:
      RuntimeError: the batches did not hold exactly `num_images` images.
    """
    pending: list[Sums] = []
    for batch in batches:
        pending.append(eval_step(params, batch_stats, batch))
        if len(pending) > 2:
            # A batch that waits keeps its images on the device: two may, no more.
            jax.block_until_ready(pending[-3])
    sums = jax.device_get(pending)
    images = sum(int(batch["images"]) for batch in sums)
    if images != num_images:
        raise RuntimeError(f"evaluation saw {images} images of a data set of {num_images}.")
    return EvalResult(
        images=images,
        loss=sum(float(batch["loss"]) for batch in sums) / images,
        top1_error=100.0 * sum(int(batch["top1_wrong"]) for batch in sums) / images,
        top5_error=100.0 * sum(int(batch["top5_wrong"]) for batch in sums) / images,
    )
