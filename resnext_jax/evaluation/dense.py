"""Multi-scale dense testing (paper Sec. 5.1, after He et al. 2015).

The network runs fully convolutionally on nearly the whole image, at several sizes, and an
image's class scores are averaged over all positions and sizes.
"""

import collections
import contextlib
import itertools
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.data.augment import Batch
from resnext_jax.data.pipeline import host_positions, shape_batches, to_devices
from resnext_jax.data.reading import DecodedExamples
from resnext_jax.data.shapes import BLANK, ShapeBatch, by_aspect, image_sizes, plan_batches
from resnext_jax.data.sources import Source
from resnext_jax.errors import DataError
from resnext_jax.evaluation.evaluator import Ensemble, two_behind
from resnext_jax.evaluation.images import EvalResult, score_images, summarize
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
    graphdef: nnx.GraphDef, preprocess: Callable[[Batch], jax.Array], mesh: Mesh, *, image_size: int
) -> DenseStep:
    """Compile the dense scoring of one batch, once per image shape.

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


class PendingImages:
    """Images that were scored at some scales and not yet at others: their logits so far.

    On every host, and no more images than a few batches hold.
    """

    def __init__(self, scales: int):
        """Start empty; an image is complete once it was scored at `scales` scales."""
        self._scales = scales
        self._seen: dict[int, int] = collections.defaultdict(int)
        # `[M, K]` of each image, of each network, summed over scales.
        self._logits: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Return the number of images that are not done."""
        return len(self._seen)

    def add(
        self, images: np.ndarray, batches: Sequence[dict[str, np.ndarray]]
    ) -> list[tuple[int, int, np.ndarray]]:
        """Add a batch, as each network's `DenseStep` scored it.

        Args:
          images: `[B]`, which image is where; `BLANK` for none.
          batches: what each step gave.

        Returns:
          Of each image that is done, and could be decoded at each scale: its index, its label,
          and the logits `[M, K]`, averaged over the scales.
        """
        logits = np.stack([batch["logits"] for batch in batches], axis=1)
        done = []
        for place in np.flatnonzero(images != BLANK):
            image = int(images[place])
            self._seen[image] += 1
            scored = batches[0]["mask"][place]
            if scored and (self._seen[image] == 1 or image in self._logits):
                self._logits[image] = self._logits.get(image, 0) + logits[place]
            else:
                self._logits.pop(image, None)  # it lacks a scale
            if self._seen[image] == self._scales:
                del self._seen[image]
                if image in self._logits:
                    label = int(batches[0]["label"][place])
                    done.append((image, label, self._logits.pop(image) / self._scales))
        return done


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
        first_classes = config.data.eval_first_classes
        self._records = jax.jit(lambda logits, labels: score_images(logits, labels, first_classes))
        self._announced = False

    @property
    def shapes(self) -> int:
        """How many image shapes a step compiles for."""
        return len({planned.shape for planned in self._plan})

    def score(
        self,
        networks: Sequence[Network],
        ensembles: Sequence[Ensemble],
        *,
        between_batches: Callable[[], None] = lambda: None,
    ) -> list[EvalResult]:
        """Score every test image once at each scale; see `run.Evaluation.score`.

        The first time, process 0 prints on standard error how often the steps will compile.
        """
        self._announce()
        pending = PendingImages(len(self._short_sides))
        done: list[tuple[int, int, np.ndarray]] = []
        columns: list[list[dict[str, np.ndarray]]] = [[] for _ in ensembles]

        def record(images: Sequence[tuple[int, int, np.ndarray]]) -> None:
            index, label, logits = (np.stack(part) for part in zip(*images, strict=True))
            for place, ensemble in enumerate(ensembles):
                scored = self._records([logits[:, network] for network in ensemble], label)
                columns[place].append(jax.device_get(scored) | {"index": index})

        for planned, outputs in two_behind(self._outputs(networks, between_batches)):
            done += pending.add(planned.images, jax.device_get(outputs))
            while len(done) >= _CHUNK:
                record(done[:_CHUNK])
                del done[:_CHUNK]
        if done:
            record(done)
        first_classes = self._config.data.eval_first_classes
        return [
            summarize(parts, len(self._source), first_classes=first_classes) for parts in columns
        ]

    def _outputs(
        self, networks: Sequence[Network], between_batches: Callable[[], None]
    ) -> Iterator[tuple[ShapeBatch, list[dict[str, jax.Array]]]]:
        """Start each network's step for each batch of the plan, and yield both."""
        with contextlib.closing(self._batches()) as batches:
            for planned, batch in zip(self._plan, batches, strict=True):
                between_batches()
                yield (
                    planned,
                    [
                        self._step(network.graphdef)(network.params, network.batch_stats, batch)
                        for network in networks
                    ],
                )

    def _step(self, graphdef: nnx.GraphDef) -> DenseStep:
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
        # As much memory as eval_batch_size images of the usual size, whatever the shape.
        pixels = self._config.eval_batch_size * self._image_size**2
        order = by_aspect(sizes)
        plan = itertools.chain.from_iterable(
            plan_batches(
                sizes, order, self._transform, side, pixels=pixels, devices=self._mesh.size
            )
            for side in self._short_sides
        )
        # An image's scales soon after each other, so that few images wait for their last.
        place = np.zeros(len(sizes), np.int64)
        place[order] = np.arange(len(order))
        return sorted(plan, key=lambda batch: place[batch.images[batch.images != BLANK]].max())

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
