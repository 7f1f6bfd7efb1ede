"""Multi-scale dense testing (paper Sec. 5.1, after He et al. 2015).

The network runs fully convolutionally on nearly the whole image, at several sizes, and an
image's class scores are averaged over all positions and sizes.
"""

import collections
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.data.augment import SKIPPED, Batch
from resnext_jax.data.pipeline import host_positions, shape_batches, to_devices
from resnext_jax.data.reading import DecodedExamples
from resnext_jax.data.shapes import BLANK, ShapeBatch, image_sizes, plan_batches
from resnext_jax.data.sources import Source
from resnext_jax.errors import DataError
from resnext_jax.evaluation.evaluator import (
    EvalResult,
    Row,
    Sums,
    average,
    sum_scores,
)
from resnext_jax.evaluation.guesses import Told, guesses_of, join_guesses
from resnext_jax.evaluation.metrics import ensemble
from resnext_jax.models.variables import Arrays, Network, merge
from resnext_jax.parallel.distributed import is_first_host
from resnext_jax.parallel.mesh import BATCH, REPLICATED, batch_sharding, replicated_sharding

DenseStep = Callable[[Arrays, Arrays, Batch], dict[str, jax.Array]]

# Images scored at a time, once all their logits are there.
_CHUNK = 1024


def short_sides(image_size: int) -> tuple[int, ...]:
    """Lengths to which an image's short side is resized, in pixels.

    He et al.'s for a network of 224x224 images, in proportion for any other.
    """
    return tuple(round(side * image_size / 224) for side in (224, 256, 384, 480, 640))


def make_dense_step(
    graphdef: Any, preprocess: Callable[[Batch], jax.Array], mesh: Mesh, *, image_size: int
) -> DenseStep:
    """Compile the dense scoring of one batch, anew for each shape of images.

    Args:
      graphdef: of the model, from `models.variables.split`.
      preprocess: from a shipped batch to normalised images `[N, H, W, 3]`.
      mesh: of `parallel.mesh.make_mesh`.
      image_size: side of what is classified at a position, in pixels; see
        `ResNeXt.dense_logits`, which counts it in positions.

    Returns:
      A function of parameters, running statistics and a global batch with `image`, `label` and
      `mask`, to `logits` `[N, K]`, `label` and `mask`, all of them on every device: an image's
      other scales are in other batches, on other hosts.
    """

    def local_logits(params: Arrays, batch_stats: Arrays, batch: Batch) -> Batch:
        model = merge(graphdef, params, batch_stats)
        model.eval()
        # Maps are rounded up where they are halved.
        window = -(-image_size // model.spec.architecture.total_stride)
        logits = model.dense_logits(preprocess(batch), window)
        return {"logits": logits, "label": batch["label"], "mask": batch["mask"]}

    sharded = jax.shard_map(
        local_logits, mesh=mesh, in_specs=(REPLICATED, REPLICATED, BATCH), out_specs=BATCH
    )
    return jax.jit(sharded, out_shardings=replicated_sharding(mesh))


@dataclasses.dataclass
class DenseScores:
    """What is known of each image so far, on every host.

    Attributes:
      logits: float32 `[M, N, K]`, of each network, summed over scales.
      labels: int32 `[N]`.
      scales: int64 `[N]`, how many scales an image was scored at.
    """

    logits: np.ndarray
    labels: np.ndarray
    scales: np.ndarray

    @classmethod
    def empty(cls, networks: int, images: int, classes: int) -> "DenseScores":
        """Start with no image scored."""
        return cls(
            np.zeros((networks, images, classes), np.float32),
            np.zeros(images, np.int32),
            np.zeros(images, np.int64),
        )

    def add(self, images: np.ndarray, batches: Sequence[dict[str, np.ndarray]]) -> None:
        """Add a batch, as each network's `DenseStep` scored it.

        Args:
          images: `[B]`, which image is where; `BLANK` for none.
          batches: what each step gave.
        """
        label, mask = batches[0]["label"], batches[0]["mask"]
        real = mask & (images != BLANK)
        for logits, batch in zip(self.logits, batches, strict=True):
            logits[images[real]] += batch["logits"][real]
        self.labels[images[real]] = label[real]
        self.scales[images[real]] += 1

    def results(
        self, scales: int, rows: Sequence[Row], first_classes: int | None, *, guesses: bool = False
    ) -> list[EvalResult]:
        """Average over the scales, and score; images that lack one are skipped.

        Args:
          scales: number of scales.
          rows: see `run.Evaluation.score`.
          first_classes: see `evaluator.make_eval_step`.
          guesses: whether to tell of each image.

        Raises:
          DataError: every image lacks one.
        """
        scored = self.scales == scales
        sums: list[list[Sums]] = [[] for _ in rows]
        told: list[list[Told]] = [[] for _ in rows]
        for start in range(0, len(scored), _CHUNK):
            part = slice(start, start + _CHUNK)
            labels, mask = jnp.asarray(self.labels[part]), jnp.asarray(scored[part])
            averaged = [jnp.asarray(logits[part] / scales) for logits in self.logits]
            for place, row in enumerate(rows):
                logits = [averaged[index] for index in row]
                counted = sum_scores(logits, labels, mask, first_classes)
                sums[place].append(counted | {SKIPPED: (~mask).sum()})
                if guesses:
                    told[place].append(guesses_of(ensemble(logits), labels) | {"mask": mask})
        return [
            dataclasses.replace(
                average(counted, len(scored), first_classes=first_classes),
                guesses=join_guesses(one) if guesses else None,
            )
            for counted, one in zip(sums, told, strict=True)
        ]


class DenseEvaluation:
    """A test set, ready to be scored densely again and again."""

    def __init__(self, config: ConfigDict, source: Source, mesh: Mesh):
        """Read the images' sizes and plan the batches; steps compile when first run.

        Raises:
          DataError: an image cannot be read and `config.data.on_error` is "stop", or none can.
        """
        self._config, self._source, self._mesh = config, source, mesh
        self._image_size = config.data.eval_image_size or config.data.image_size
        self._transform = build.dense_transform(config)
        self._short_sides = short_sides(self._image_size)
        self._plan = self._make_plan()
        self._steps: dict[Any, DenseStep] = {}
        self._announced = False

    @property
    def shapes(self) -> int:
        """How many image shapes a step compiles for."""
        return len({planned.shape for planned in self._plan})

    def score(
        self,
        networks: Sequence[Network],
        rows: Sequence[Row],
        *,
        guesses: bool = False,
        between_batches: Callable[[], None] = lambda: None,
    ) -> list[EvalResult]:
        """Score every test image once at each scale; see `run.Evaluation.score`.

        The first time, process 0 tells on standard error how often the steps will compile.
        """
        self._announce()
        scores = DenseScores.empty(len(networks), len(self._source), self._source.num_classes)
        waiting: collections.deque[tuple[ShapeBatch, list[dict[str, jax.Array]]]]
        waiting = collections.deque()
        with contextlib.closing(self._batches()) as batches:
            for planned, batch in zip(self._plan, batches, strict=True):
                between_batches()
                outputs = [
                    self._step(network.graphdef)(network.params, network.batch_stats, batch)
                    for network in networks
                ]
                waiting.append((planned, outputs))
                if len(waiting) > 2:
                    # A batch that waits keeps its images on the device: two may, no more.
                    _collect(scores, *waiting.popleft())
        for planned, outputs in waiting:
            _collect(scores, planned, outputs)
        first_classes = self._config.data.eval_first_classes
        return scores.results(len(self._short_sides), rows, first_classes, guesses=guesses)

    def _step(self, graphdef: Any) -> DenseStep:
        if graphdef not in self._steps:
            preprocess = build.device_transform(self._config).test
            self._steps[graphdef] = make_dense_step(
                graphdef, preprocess, self._mesh, image_size=self._image_size
            )
        return self._steps[graphdef]

    def _announce(self) -> None:
        if self._announced:
            return
        self._announced = True
        if is_first_host():
            # Compiling may take minutes without a sign of life.
            print(
                f"dense testing compiles once for each of {self.shapes} image shapes",
                file=sys.stderr,
                flush=True,
            )

    def _make_plan(self) -> list[ShapeBatch]:
        """Plan all scales, the same on every host."""
        examples = DecodedExamples(self._source)
        sizes = image_sizes(examples)
        bad = np.flatnonzero(sizes[:, 0] == 0)
        if len(bad) and self._config.data.on_error == "stop":
            raise DataError(examples.explain(int(bad[0])))
        # As much memory as so many images of the usual size take, whatever the shape.
        pixels = self._config.eval_batch_size * self._image_size**2
        return list(
            itertools.chain.from_iterable(
                plan_batches(sizes, self._transform, side, pixels=pixels, devices=self._mesh.size)
                for side in self._short_sides
            )
        )

    def _batches(self) -> Generator[Batch, None, None]:
        sharding = batch_sharding(self._mesh)
        parts = [
            planned.part(host_positions(sharding, len(planned.images))) for planned in self._plan
        ]
        batches = shape_batches(
            self._source,
            self._transform,
            parts,
            num_workers=self._config.data.num_workers,
            on_error=self._config.data.on_error,
        )
        return to_devices(batches, sharding, batch_size=None)


def _collect(scores: DenseScores, planned: ShapeBatch, outputs: list[dict[str, jax.Array]]) -> None:
    scores.add(planned.images, jax.device_get(outputs))
