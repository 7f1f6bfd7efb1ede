"""Per-image records of a test, from which every metric is computed on the host in float64."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resnext_jax.data.augment import SKIPPED, Batch
from resnext_jax.errors import DataError
from resnext_jax.evaluation.metrics import cross_entropy, ensemble, label_rank, rank_among_first
from resnext_jax.parallel.mesh import BATCH, replicated_sharding

# Fields of `ImageRecords` by name, `[N, ...]` each, of a batch.
Columns = dict[str, jax.Array]
RecordStep = Callable[[Sequence[jax.Array], Batch], Columns]

_TOP = 5


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRecords:
    """Per-image results, ordered by `index`.

    Attributes:
      index: int64 `[N]`, place in the data set.
      label: int32 `[N]`, the true class.
      loss: float64 `[N]`, cross-entropy in nats.
      rank: int32 `[N]`, how many classes are scored better than the true one, of equals the
        first: 0 is right. The largest int32 where a score is not a number.
      first_rank: the same among the first classes alone, also the largest where the true class is
        another; None if there are no first classes.
      top5: int32 `[N, 5]`, the best-scored classes, the best first, of equals the first; -1 where
        a score is not a number, or there are fewer classes.
    """

    index: np.ndarray
    label: np.ndarray
    loss: np.ndarray
    rank: np.ndarray
    first_rank: np.ndarray | None
    top5: np.ndarray

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.index)


# Further measures, by the name that they get in `metrics.jsonl` and `eval.json`.
METRICS: dict[str, Callable[[ImageRecords], float]] = {}


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Averages over a data set.

    Attributes:
      images: how many were scored.
      loss: mean cross-entropy, in nats; where an image was scored in several parts, that of its
        averaged logits.
      top1_error, top5_error: in percent.
      skipped: images that could not be decoded, and are left out of the averages.
      among_first: by a number of classes K, top-1 and top-5 error in percent when
        only the scores of the first K classes are looked at.
      others: of `METRICS`, by name.
      records: the per-image results.
    """

    images: int
    loss: float
    top1_error: float
    top5_error: float
    skipped: int = 0
    among_first: Mapping[int, tuple[float, float]] = dataclasses.field(default_factory=dict)
    others: Mapping[str, float] = dataclasses.field(default_factory=dict)
    records: ImageRecords | None = dataclasses.field(default=None, compare=False, repr=False)

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
        record |= self.others
        return record | ({"skipped_images": self.skipped} if self.skipped else {})


def score_images(
    logits: Sequence[jax.Array], labels: jax.Array, first_classes: int | None
) -> Columns:
    """Score images: the columns of `ImageRecords` but for the index; loss in the logits' dtype.

    Args:
      logits: `[N, K]` of each network of an ensemble, or of one alone.
      labels: `[N]`, integer.
      first_classes: also rank among this many first classes (paper Sec. 5.2: ImageNet-5K's
        networks, 1000 way); None: don't.
    """
    scores = ensemble(logits)
    _, top = jax.lax.top_k(scores, min(_TOP, scores.shape[1]))
    top = jnp.pad(top, ((0, 0), (0, _TOP - top.shape[1])), constant_values=-1)
    columns = {
        "label": labels,
        "loss": cross_entropy(scores, labels),
        "rank": label_rank(scores, labels),
        "top5": jnp.where(jnp.isnan(scores).any(axis=1, keepdims=True), -1, top),
    }
    if first_classes:
        # Each network's probabilities of the first classes alone, averaged.
        first = ensemble([one[:, :first_classes] for one in logits])
        columns["first_rank"] = rank_among_first(first, labels, first_classes)
    return columns


def make_record_step(mesh: Mesh, *, first_classes: int | None = None) -> RecordStep:
    """Compile the scoring of a batch from each network's logits of it.

    Args:
      mesh: of `parallel.mesh.make_mesh`.
      first_classes: see `score_images`.

    Returns:
      A function of logits `[N, K]` and their batch, to the columns of `score_images`, the batch's
      `mask`, and perhaps which were skipped; all of them on every device.
    """

    def local_step(logits: list[jax.Array], batch: Batch) -> Columns:
        columns = score_images(logits, batch["label"], first_classes)
        return columns | {name: batch[name] for name in ("mask", SKIPPED) if name in batch}

    sharded = jax.shard_map(local_step, mesh=mesh, in_specs=(BATCH, BATCH), out_specs=BATCH)
    step = jax.jit(sharded, out_shardings=replicated_sharding(mesh))

    def without_images(logits: Sequence[jax.Array], batch: Batch) -> Columns:
        read = {name: batch[name] for name in ("label", "mask", SKIPPED) if name in batch}
        columns: Columns = step(list(logits), read)
        return columns

    return without_images


def summarize(
    columns: Iterable[Mapping[str, np.ndarray]],
    num_images: int,
    *,
    first_classes: int | None = None,
) -> EvalResult:
    """Average over a data set.

    Args:
      columns: of each batch those of `score_images` and `index`, without images that were skipped.
      num_images: of the data set; those that are in no batch were skipped.
      first_classes: as given to `score_images`.

    Raises:
      DataError: every image was skipped.
    """
    parts = list(columns)
    if not sum(len(part["index"]) for part in parts):
        raise DataError("no test image can be decoded; check the data set.")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["index"])
    joined = {name: column[order] for name, column in joined.items()}
    records = ImageRecords(
        index=joined["index"],
        label=joined["label"],
        loss=joined["loss"].astype(np.float64),
        rank=joined["rank"],
        first_rank=joined.get("first_rank"),
        top5=joined["top5"],
    )
    among_first = {}
    if first_classes and records.first_rank is not None:
        among_first[first_classes] = (
            _error(records.first_rank, 1),
            _error(records.first_rank, _TOP),
        )
    return EvalResult(
        images=len(records),
        loss=float(records.loss.mean()),
        top1_error=_error(records.rank, 1),
        top5_error=_error(records.rank, _TOP),
        skipped=num_images - len(records),
        among_first=among_first,
        others={name: float(measure(records)) for name, measure in METRICS.items()},
        records=records,
    )


def _error(rank: np.ndarray, k: int) -> float:
    """Return the share of images whose class is not among the k best-scored, in percent."""
    return 100.0 * int((rank >= k).sum()) / len(rank)


def fetched(columns: Columns, first: int) -> tuple[dict[str, np.ndarray], int]:
    """Fetch a batch's columns of `make_record_step`.

    Args:
      columns: of images that follow each other in the data set.
      first: place of the first of them.

    Returns:
      The columns of real images with their index, and how many images were skipped.
    """
    arrays: dict[str, Any] = jax.device_get(columns)
    mask, skipped = arrays.pop("mask"), arrays.pop(SKIPPED, np.zeros(0))
    arrays["index"] = first + np.arange(len(mask))
    return {name: array[mask] for name, array in arrays.items()}, int(skipped.sum())
