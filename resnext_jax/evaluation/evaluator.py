"""Exact evaluation: every image once, on any number of devices."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from resnext_jax.data.augment import SKIPPED, Batch
from resnext_jax.errors import DataError
from resnext_jax.evaluation.metrics import cross_entropy, topk_wrong, wrong_among_first
from resnext_jax.models.variables import Arrays, merge
from resnext_jax.training.mesh import BATCH, DATA_AXES, REPLICATED

Sums = dict[str, jax.Array]
EvalStep = Callable[[Arrays, Arrays, Batch], Sums]


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Averages over a data set.

    Attributes:
      images: how many were scored.
      loss: mean cross-entropy, in nats; where an image was scored in several parts, that of its
        averaged logits.
      top1_error, top5_error: in percent.
      skipped: images that could not be decoded, and are in none of the averages.
      among_first: by a number of classes K, top-1 and top-5 error in percent when
        only the scores of the first K classes are looked at.
    """

    images: int
    loss: float
    top1_error: float
    top5_error: float
    skipped: int = 0
    among_first: Mapping[int, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def as_record(self) -> dict[str, float]:
        """Return what a line of `metrics.jsonl` says of it."""
        record: dict[str, float] = {
            "loss": self.loss,
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
        }
        for classes, (top1_error, top5_error) in self.among_first.items():
            record[f"top1_error_{classes}way"] = top1_error
            record[f"top5_error_{classes}way"] = top5_error
        return record | ({"skipped_images": self.skipped} if self.skipped else {})


def make_eval_step(
    graphdef: Any,
    preprocess: Callable[[Batch], jax.Array],
    mesh: Mesh,
    *,
    first_classes: int | None = None,
) -> EvalStep:
    """Compile the scoring of one batch.

    Args:
      graphdef: of the model, from `models.variables.split`.
      preprocess: from a shipped batch to normalised images `[N, S, S, 3]`, or to several crops
        of each, `[N, crops, S, S, 3]`, whose logits are averaged.
      mesh: of `training.mesh.make_mesh`.
      first_classes: K, score among the first K classes by themselves too (paper
        Sec. 5.2: ImageNet-5K's networks, 1000 way).

    Returns:
      A function of parameters, running statistics and a global batch with
      `image`, `label` and `mask`, to the sums over its real images: `images`,
      `top1_wrong`, `top5_wrong` (int32) and `loss` (float32 at least), and with
      `first_classes` also `first_top1_wrong` and `first_top5_wrong`; and to the
      number of its `skipped` images.
    """

    def local_sums(params: Arrays, batch_stats: Arrays, batch: Batch) -> Sums:
        model = merge(graphdef, params, batch_stats)
        model.eval()
        images, labels = preprocess(batch), batch["label"]
        logits = model(images.reshape(-1, *images.shape[-3:]))
        # As many rows an image as it has crops: one as a rule.
        logits = logits.reshape(len(labels), -1, logits.shape[1]).mean(axis=1)
        sums = sum_scores(logits, labels, batch["mask"], first_classes)
        if SKIPPED in batch:
            sums[SKIPPED] = batch[SKIPPED].sum()
        return lax.psum(sums, DATA_AXES)

    return jax.jit(
        jax.shard_map(
            local_sums,
            mesh=mesh,
            in_specs=(REPLICATED, REPLICATED, BATCH),
            out_specs=REPLICATED,
        )
    )


def sum_scores(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, first_classes: int | None
) -> Sums:
    """Score images: the sums over those in the mask that `make_eval_step` documents.

    Args:
      logits: `[N, K]`.
      labels: `[N]`, integer.
      mask: `[N]`, bool.
      first_classes: see `make_eval_step`.
    """
    per_image = {
        "images": mask.astype(jnp.int32),
        "top1_wrong": topk_wrong(logits, labels, 1).astype(jnp.int32),
        "top5_wrong": topk_wrong(logits, labels, 5).astype(jnp.int32),
        "loss": cross_entropy(logits, labels),
    }
    if first_classes:
        per_image |= {
            f"first_top{k}_wrong": wrong_among_first(logits, labels, first_classes, k)
            for k in (1, 5)
        }
    # A select, not a product: a blank's loss might not be finite.
    return {name: jnp.where(mask, value, 0).sum() for name, value in per_image.items()}


def evaluate(
    eval_step: EvalStep,
    params: Arrays,
    batch_stats: Arrays,
    batches: Iterable[Batch],
    num_images: int,
    *,
    first_classes: int | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> EvalResult:
    """Score a data set.

    Args:
      eval_step: of `make_eval_step`.
      params: of the model.
      batch_stats: of the model.
      batches: global batches on the devices.
      num_images: that the batches hold, skipped ones included.
      first_classes: as given to `make_eval_step`.
      between_batches: called before each batch; what it raises ends the scoring.

    Raises:
      DataError: every image was skipped.
      RuntimeError: the batches did not hold exactly `num_images` images.
    """
    pending: list[Sums] = []
    for batch in batches:
        between_batches()
        pending.append(eval_step(params, batch_stats, batch))
        if len(pending) > 2:
            # A batch that waits keeps its images on the device: two may, no more.
            jax.block_until_ready(pending[-3])
    return average(pending, num_images, first_classes=first_classes)


def average(
    batches: Sequence[Sums], num_images: int, *, first_classes: int | None = None
) -> EvalResult:
    """Turn the sums of batches into the result.

    Args:
      batches: sums of each, as of an `EvalStep`; at least one.
      num_images: that the batches hold, skipped ones included.
      first_classes: as given to `make_eval_step`.

    Raises:
      DataError: every image was skipped.
      RuntimeError: the batches did not hold exactly `num_images` images.
    """
    sums = jax.device_get(batches)

    def total(name: str) -> int:
        return sum(int(batch[name]) for batch in sums)

    images = total("images")
    skipped = total(SKIPPED) if SKIPPED in sums[0] else 0
    if images + skipped != num_images:
        raise RuntimeError(
            f"evaluation saw {images} images and skipped {skipped} of a data set of {num_images}."
        )
    if images == 0:
        raise DataError("no test image can be decoded; check the data set.")

    def percent(name: str) -> float:
        return 100.0 * total(name) / images

    return EvalResult(
        images=images,
        loss=sum(float(batch["loss"]) for batch in sums) / images,
        top1_error=percent("top1_wrong"),
        top5_error=percent("top5_wrong"),
        skipped=skipped,
        among_first={first_classes: (percent("first_top1_wrong"), percent("first_top5_wrong"))}
        if first_classes
        else {},
    )
