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
from resnext_jax.evaluation.guesses import (
    Guesses,
    join_guesses,
    make_guess_step,
    without_images,
)
from resnext_jax.evaluation.metrics import (
    cross_entropy,
    ensemble,
    topk_wrong,
    wrong_among_first,
)
from resnext_jax.models.variables import Arrays, Network, merge
from resnext_jax.parallel.mesh import BATCH, DATA_AXES, REPLICATED

Sums = dict[str, jax.Array]
EvalStep = Callable[[Arrays, Arrays, Batch], tuple[Sums, jax.Array]]
EnsembleStep = Callable[[Sequence[jax.Array], Batch], tuple[Sums, jax.Array]]
Row = tuple[int, ...]


def alone(networks: Sequence[Network]) -> list[Row]:
    """Return a row for each network by itself; a row names the networks that are averaged."""
    return [(index,) for index in range(len(networks))]


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
      guesses: what became of each image, where that was asked for.
    """

    images: int
    loss: float
    top1_error: float
    top5_error: float
    skipped: int = 0
    among_first: Mapping[int, tuple[float, float]] = dataclasses.field(default_factory=dict)
    guesses: Guesses | None = dataclasses.field(default=None, compare=False)

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
      mesh: of `parallel.mesh.make_mesh`.
      first_classes: K, score among the first K classes by themselves too (paper
        Sec. 5.2: ImageNet-5K's networks, 1000 way).

    Returns:
      A function of parameters, running statistics and a global batch with
      `image`, `label` and `mask`, to

      - the sums over its real images: `images`, `top1_wrong`, `top5_wrong` (int32) and `loss`
        (float32 at least), and with `first_classes` also `first_top1_wrong` and
        `first_top5_wrong`; and the number of its `skipped` images;
      - the logits `[N, K]`, which stay where the images are.
    """

    def local_step(params: Arrays, batch_stats: Arrays, batch: Batch) -> tuple[Sums, jax.Array]:
        model = merge(graphdef, params, batch_stats)
        model.eval()
        images = preprocess(batch)
        logits = model(images.reshape(-1, *images.shape[-3:]))
        # As many rows an image as it has crops: one as a rule.
        logits = logits.reshape(len(images), -1, logits.shape[1]).mean(axis=1)
        return _sum_over_devices([logits], batch, first_classes), logits

    sharded = jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(REPLICATED, REPLICATED, BATCH),
        out_specs=(REPLICATED, BATCH),
    )
    return jax.jit(sharded)


def make_ensemble_step(mesh: Mesh, *, first_classes: int | None = None) -> EnsembleStep:
    """Compile the scoring of one batch by several networks, from their logits of it.

    Args:
      mesh: of `parallel.mesh.make_mesh`.
      first_classes: see `make_eval_step`.

    Returns:
      A function of each network's logits `[N, K]` and the batch that they are of, to the sums
      that `make_eval_step` documents, and the ensemble's scores `[N, K]`, see `metrics.ensemble`.
    """

    def local_step(logits: list[jax.Array], batch: Batch) -> tuple[Sums, jax.Array]:
        return _sum_over_devices(logits, batch, first_classes), ensemble(logits)

    sharded = jax.jit(
        jax.shard_map(local_step, mesh=mesh, in_specs=(BATCH, BATCH), out_specs=(REPLICATED, BATCH))
    )
    return lambda logits, batch: sharded(list(logits), without_images(batch))


def _sum_over_devices(logits: Sequence[jax.Array], batch: Batch, first_classes: int | None) -> Sums:
    sums = sum_scores(logits, batch["label"], batch["mask"], first_classes)
    if SKIPPED in batch:
        sums[SKIPPED] = batch[SKIPPED].sum()
    return lax.psum(sums, DATA_AXES)


def sum_scores(
    logits: Sequence[jax.Array], labels: jax.Array, mask: jax.Array, first_classes: int | None
) -> Sums:
    """Score images: the sums over those in the mask that `make_eval_step` documents.

    Args:
      logits: `[N, K]` of each network of an ensemble, or of one alone.
      labels: `[N]`, integer.
      mask: `[N]`, bool.
      first_classes: see `make_eval_step`.
    """
    scores = ensemble(logits)
    per_image = {
        "images": mask.astype(jnp.int32),
        "top1_wrong": topk_wrong(scores, labels, 1).astype(jnp.int32),
        "top5_wrong": topk_wrong(scores, labels, 5).astype(jnp.int32),
        "loss": cross_entropy(scores, labels),
    }
    if first_classes:
        # Each network's probabilities of the first classes alone, averaged.
        first = ensemble([scores[:, :first_classes] for scores in logits])
        per_image |= {
            f"first_top{k}_wrong": wrong_among_first(first, labels, first_classes, k)
            for k in (1, 5)
        }
    # A select, not a product: a blank's loss might not be finite.
    return {name: jnp.where(mask, value, 0).sum() for name, value in per_image.items()}


class Scorer:
    """Scores batches by networks and their ensembles; each network runs once a batch."""

    def __init__(
        self,
        preprocess: Callable[[Batch], jax.Array],
        mesh: Mesh,
        *,
        first_classes: int | None = None,
    ):
        """Prepare; steps compile when first run. See `make_eval_step`."""
        self.first_classes = first_classes
        self._preprocess, self._mesh = preprocess, mesh
        self._steps: dict[Any, EvalStep] = {}
        self._ensemble = make_ensemble_step(mesh, first_classes=first_classes)
        self._guess = make_guess_step(mesh)

    def score(
        self, networks: Sequence[Network], rows: Sequence[Row], batch: Batch, *, guesses: bool
    ) -> list[tuple[Sums, Sums]]:
        """Score a batch.

        Args:
          networks: the networks.
          rows: which of them make up each result; one by itself, or several as an ensemble.
          batch: global, on the devices.
          guesses: whether to tell of each image.

        Returns:
          For each row the sums of `make_eval_step`, and what `make_guess_step` gives ({} where
          that was not asked for).
        """
        scored = [
            self._step(network.graphdef)(network.params, network.batch_stats, batch)
            for network in networks
        ]
        results = []
        for row in rows:
            sums, scores = scored[row[0]]
            if len(row) > 1:
                sums, scores = self._ensemble([scored[index][1] for index in row], batch)
            results.append((sums, self._guess(scores, batch) if guesses else {}))
        return results

    def _step(self, graphdef: Any) -> EvalStep:
        # Networks of equal structure, raw and averaged weights say, share what is compiled.
        if graphdef not in self._steps:
            self._steps[graphdef] = make_eval_step(
                graphdef, self._preprocess, self._mesh, first_classes=self.first_classes
            )
        return self._steps[graphdef]


def evaluate(
    scorer: Scorer,
    networks: Sequence[Network],
    rows: Sequence[Row],
    batches: Iterable[Batch],
    num_images: int,
    *,
    guesses: bool = False,
    between_batches: Callable[[], None] = lambda: None,
) -> list[EvalResult]:
    """Score a data set.

    Args:
      scorer: of the batches.
      networks: to score.
      rows: see `Scorer.score`.
      batches: global batches on the devices.
      num_images: that the batches hold, skipped ones included.
      guesses: whether to tell of each image.
      between_batches: called before each batch; what it raises ends the scoring.

    Returns:
      A result for each row.

    Raises:
      DataError: every image was skipped.
      RuntimeError: the batches did not hold exactly `num_images` images.
    """
    pending: list[list[tuple[Sums, Sums]]] = []
    for batch in batches:
        between_batches()
        pending.append(scorer.score(networks, rows, batch, guesses=guesses))
        if len(pending) > 2:
            # A batch that waits keeps its images on the device: two may, no more.
            jax.block_until_ready(pending[-3])
    return [
        dataclasses.replace(
            average([sums for sums, _ in row], num_images, first_classes=scorer.first_classes),
            guesses=join_guesses([told for _, told in row]),
        )
        for row in zip(*pending, strict=True)
    ]


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
