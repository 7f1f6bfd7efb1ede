"""Exact evaluation: every image once, on any number of devices."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from resnext_jax.data.augment import Batch
from resnext_jax.evaluation.images import (
    Columns,
    EvalResult,
    fetched,
    make_record_step,
    summarize,
)
from resnext_jax.models.variables import Arrays, Network, merge
from resnext_jax.parallel.mesh import BATCH, REPLICATED

T = TypeVar("T")
EvalStep = Callable[[Arrays, Arrays, Batch], jax.Array]
# Indices of the networks whose probabilities are averaged; one index for a single network.
Ensemble = tuple[int, ...]


def each_network(networks: Sequence[Network]) -> list[Ensemble]:
    """Return one single-network ensemble per network: [(0,), (1,), ...]."""
    return [(index,) for index in range(len(networks))]


def make_eval_step(
    graphdef: nnx.GraphDef, preprocess: Callable[[Batch], jax.Array], mesh: Mesh
) -> EvalStep:
    """Compile a network's logits of one batch.

    Args:
      graphdef: of the model, from `models.variables.split`.
      preprocess: from a shipped batch to normalised images `[N, S, S, 3]`, or to several crops
        of each, `[N, crops, S, S, 3]`, whose logits are averaged.
      mesh: of `parallel.mesh.make_mesh`.

    Returns:
      A function of parameters, running statistics and a global batch with `image`, to the logits
      `[N, K]`, which stay where the images are.
    """

    def local_step(params: Arrays, batch_stats: Arrays, batch: Batch) -> jax.Array:
        model = merge(graphdef, params, batch_stats)
        model.eval()
        images = preprocess(batch)
        logits = model(images.reshape(-1, *images.shape[-3:]))
        # As many rows an image as it has crops: one as a rule.
        averaged: jax.Array = logits.reshape(len(images), -1, logits.shape[1]).mean(axis=1)
        return averaged

    sharded = jax.shard_map(
        local_step, mesh=mesh, in_specs=(REPLICATED, REPLICATED, BATCH), out_specs=BATCH
    )
    return jax.jit(sharded)


class Scorer:
    """Scores batches by networks and their ensembles; each network runs once a batch."""

    def __init__(
        self,
        preprocess: Callable[[Batch], jax.Array],
        mesh: Mesh,
        *,
        first_classes: int | None = None,
    ):
        """Prepare; steps compile when first run. See `make_eval_step` and `make_record_step`."""
        self.first_classes = first_classes
        self._preprocess, self._mesh = preprocess, mesh
        self._steps: dict[Any, EvalStep] = {}
        self._records = make_record_step(mesh, first_classes=first_classes)

    def score(
        self, networks: Sequence[Network], ensembles: Sequence[Ensemble], batch: Batch
    ) -> list[Columns]:
        """Score a global batch on the devices: for each ensemble what `make_record_step` gives."""
        logits = [
            self._step(network.graphdef)(network.params, network.batch_stats, batch)
            for network in networks
        ]
        return [
            self._records([logits[index] for index in ensemble], batch) for ensemble in ensembles
        ]

    def _step(self, graphdef: nnx.GraphDef) -> EvalStep:
        # Networks of equal structure, raw and averaged weights say, share what is compiled.
        if graphdef not in self._steps:
            self._steps[graphdef] = make_eval_step(graphdef, self._preprocess, self._mesh)
        return self._steps[graphdef]


def two_behind(started: Iterable[T]) -> Iterator[T]:
    """Yield each batch's results two batches after its step was started.

    The device computes while the host reads. No more than two batches wait, because one that waits
    keeps its images on the device.
    """
    waiting: collections.deque[T] = collections.deque()
    for results in started:
        waiting.append(results)
        if len(waiting) > 2:
            yield waiting.popleft()
    yield from waiting


def score_batches(
    scorer: Scorer,
    networks: Sequence[Network],
    ensembles: Sequence[Ensemble],
    batches: Iterable[Batch],
    num_images: int,
    *,
    between_batches: Callable[[], None] = lambda: None,
) -> list[EvalResult]:
    """Score a data set.

    Args:
      scorer: of the batches.
      networks: to score.
      ensembles: of which networks each result is.
      batches: global batches on the devices, in the order of the data set; blanks come last.
      num_images: that the batches hold, skipped ones included.
      between_batches: called before each batch; what it raises ends the scoring.

    Returns:
      A result for each ensemble.

    Raises:
      DataError: every image was skipped.
      RuntimeError: the batches did not hold exactly `num_images` images.
    """

    def started() -> Iterator[tuple[int, list[Columns]]]:
        first = 0
        for batch in batches:
            between_batches()
            yield first, scorer.score(networks, ensembles, batch)
            first += len(batch["label"])

    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in ensembles]
    skipped = 0
    for first, scored in two_behind(started()):
        for place, columns in enumerate(scored):
            part, left_out = fetched(columns, first)
            parts[place].append(part)
        skipped += left_out
    seen = sum(len(part["index"]) for part in parts[0])
    if seen + skipped != num_images:
        raise RuntimeError(
            f"evaluation saw {seen} images and skipped {skipped} of a data set of {num_images}."
        )
    return [summarize(part, num_images, first_classes=scorer.first_classes) for part in parts]
