"""Batches in a fixed order: a function of (seed, step) alone.

The training stream is the data set reshuffled each epoch, epoch after
epoch; global batch k is positions k * B to (k + 1) * B of it, so epochs need
not align with batches. Position p's image, augmentation included, depends on
the seed and p only: not on workers, devices, hosts, or where a run resumed. A
host asks for the positions of its own devices and decodes no other.
"""

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from resnext_jax.data.augment import SKIPPED
from resnext_jax.data.reading import (
    BAD,
    DIM,
    MARKS,
    REPLACED,
    DecodedExamples,
    black_example,
    marks,
)
from resnext_jax.data.shapes import BLANK, ShapeBatch
from resnext_jax.data.sources import Source
from resnext_jax.data.transforms import DenseTransform
from resnext_jax.errors import STOP_SIGNALS, DataError

HostBatch = dict[str, np.ndarray]
RandomTransform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
FixedTransform = Callable[[dict[str, Any]], dict[str, Any]]

# Batches decoded ahead: enough to hide a slow one, few enough to fit in memory
# (256 images of 224x224 are 38 MB).
_BATCHES_AHEAD = 8
_THREADS = 4

# Batches that nobody waits for when reading ends are freed by Python's tracker of shared memory, a
# process of its own, which would call them leaked. As in python -W; processes started later are
# started with it. Here, and not where workers start: a lock of tqdm's starts that process as well.
_TRACKER_WARNING = "ignore:resource_tracker:UserWarning"
if _TRACKER_WARNING not in sys.warnoptions:
    sys.warnoptions.append(_TRACKER_WARNING)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Prepares the training image at an index."""

    examples: DecodedExamples
    transform: RandomTransform

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return self.examples.read(index, lambda example: self.transform(example, rng))


@dataclasses.dataclass(frozen=True)
class _Share:
    """One host's part of every global batch, as a flat random-access sequence."""

    streams: Sequence[tuple[int, Any]]  # and the step from which each is read
    positions: np.ndarray  # of this host's images within a global batch
    batch_size: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps * len(self.positions)

    def __getitem__(self, index: int) -> Any:
        step, image = divmod(index, len(self.positions))
        stream = next(stream for first, stream in reversed(self.streams) if first <= step)
        return stream[step * self.batch_size + int(self.positions[image])]


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """The order of a stream in which every batch has several copies of its images.

    Copies are as far apart as the batch allows: neighbours, which may be mixed, are different
    images.
    """

    indices: Any
    batch_size: int
    repeats: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> int:
        step, place = divmod(position, self.batch_size)
        images = -(-self.batch_size // self.repeats)
        return self.indices[step * images + place % images]


@dataclasses.dataclass(frozen=True)
class _Padded:
    """A finite sequence, followed by blanks, with a mask that distinguishes them."""

    examples: DecodedExamples
    transform: FixedTransform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> dict[str, Any]:
        real = position < len(self.examples)
        example = self.examples[position] if real else black_example()
        return self.transform(example) | {"mask": np.bool_(real)}


@dataclasses.dataclass(frozen=True)
class _Shaped:
    """One host's parts of batches that have a shape each, as a random-access sequence."""

    examples: DecodedExamples
    transform: DenseTransform
    plan: Sequence[ShapeBatch]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> HostBatch:
        batch = self.plan[step]
        elements = [self._element(int(index), batch) for index in batch.images]
        return {name: np.stack([element[name] for element in elements]) for name in elements[0]}

    def _element(self, index: int, batch: ShapeBatch) -> dict[str, Any]:
        if index == BLANK:
            return _blank(batch.shape)
        example = self.examples[index]
        height, width = example["image"].shape[:2]
        # A header that lies about the size is damage as well.
        fits = self.transform.shape(height, width, batch.short_side) == batch.shape
        if example[BAD] >= 0 or not fits:
            return _blank(batch.shape, index)
        image = self.transform(example["image"], batch.short_side)
        return example | {"image": image, "mask": np.bool_(True)}


def _blank(shape: tuple[int, int], bad_index: int = -1) -> dict[str, Any]:
    return {
        "image": np.zeros((*shape, 3), np.uint8),
        "label": np.int32(0),
        "mask": np.bool_(False),
    } | marks(bad_index)


def train_batches(
    source: Source,
    transform: RandomTransform | Sequence[tuple[int, RandomTransform]],
    *,
    seed: int,
    batch_size: int,
    positions: np.ndarray,
    start_step: int,
    num_steps: int,
    num_workers: int = 0,
    on_error: str = "stop",
    repeats: int = 1,
) -> Generator[HostBatch, None, None]:
    """Yield this host's part of the global batches `start_step` to `num_steps`.

    Args:
      source: the training images.
      transform: host augmentation, given an example and its random generator; or several, each
        with the step from which it applies, the first with 0.
      seed: of order and augmentation.
      batch_size: B, images in a global batch.
      positions: `[b]`, places of this host's images in a global batch.
      start_step: first batch; batch k is the same whatever this is.
      num_steps: batches in the whole run.
      num_workers: decoding processes, at most; 0 decodes in threads of this one.
      on_error: "stop" or "skip", see below.
      repeats: copies of each image in a batch, each augmented by itself (repeated augmentation,
        Hoffer et al. 2020); a batch then has as many fewer images.

    Yields:
      Dictionaries of arrays `[b, ...]`: what the transform gives, and with
      "skip" also `skipped` (bool), True where another image replaces
      one that cannot be decoded.

    Raises:
      DataError: an image cannot be decoded, and `on_error` is "stop" or no
        other image was near.
    """
    examples = DecodedExamples(source, replace=on_error == "skip")
    # Indices are shuffled, and an image is read together with its random numbers, so that
    # only the part of a file that the crop needs is decoded.
    indices = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat()
    if repeats > 1:
        order = _Repeated(indices, batch_size, repeats)
        indices = grain.MapDataset.source(order).seed(seed)
    transforms = [(0, transform)] if callable(transform) else transform
    streams = [
        (first, indices.random_map(_Reader(examples, function))) for first, function in transforms
    ]
    share = _Share(streams, positions, batch_size, num_steps)
    return _checked(_iterate(share, len(positions), start_step, num_workers), examples, on_error)


def eval_batches(
    source: Source,
    transform: FixedTransform,
    *,
    batch_size: int,
    positions: np.ndarray,
    num_workers: int = 0,
    on_error: str = "stop",
) -> Generator[HostBatch, None, None]:
    """Yield this host's part of a pass over `source`, each image once.

    The last batch is filled up with blanks. `mask` (bool `[b]`) is False for
    them, and with `on_error="skip"` also for images that cannot be decoded,
    where `skipped` (bool `[b]`) is True; with "stop" those raise DataError.
    """
    examples = DecodedExamples(source)
    num_steps = -(-len(source) // batch_size)
    share = _Share([(0, _Padded(examples, transform))], positions, batch_size, num_steps)
    return _checked(_iterate(share, len(positions), 0, num_workers), examples, on_error)


def shape_batches(
    source: Source,
    transform: DenseTransform,
    plan: Sequence[ShapeBatch],
    *,
    num_workers: int = 0,
    on_error: str = "stop",
) -> Generator[HostBatch, None, None]:
    """Yield this host's part of test batches of many shapes.

    Args:
      source: the test images.
      transform: host preparation.
      plan: of `shapes.plan_batches`, this host's `part` of each.
      num_workers: see `train_batches`.
      on_error: see `eval_batches`.

    Yields:
      `image` uint8 `[b, H, W, 3]` of the batch's shape, `label`, and `mask` (and `skipped`) as
      `eval_batches` has them.

    Raises:
      DataError: an image cannot be decoded, and `on_error` is "stop".
    """
    examples = DecodedExamples(source)
    batches = grain.MapDataset.source(_Shaped(examples, transform, plan))
    return _checked(read_ahead(batches, num_workers), examples, on_error)


def _iterate(
    share: _Share, local_batch: int, start_step: int, num_workers: int
) -> Generator[HostBatch, None, None]:
    # Batched before iteration, so that worker processes hand over whole
    # batches and resuming is a slice.
    return read_ahead(grain.MapDataset.source(share).batch(local_batch)[start_step:], num_workers)


def read_ahead(batches: grain.MapDataset, num_workers: int) -> Generator[HostBatch, None, None]:
    """Read a data set whose elements are this host's batches, in order, some ahead.

    Args:
      batches: random access to the batches still to come.
      num_workers: see `train_batches`.
    """
    if len(batches) == 0:
        return
    if num_workers == 0:
        reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
        with contextlib.closing(iter(batches.to_iter_dataset(reading))) as threads:
            yield from threads
        return
    # Grain reads absl's flags when it starts workers; only absl programs (train.py) parse them.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    # A process takes whole batches: more processes than those would start for nothing.
    workers = grain.MultiprocessingOptions(
        num_workers=min(num_workers, len(batches)), per_worker_buffer_size=2
    )
    prefetched = batches.to_iter_dataset(reading).mp_prefetch(
        workers, worker_init_fn=_outlive_stop_signals
    )
    with contextlib.closing(iter(prefetched)) as processes:  # ends them, frees what they share
        # They start, and take seconds to reach `_outlive_stop_signals`.
        with _stop_signals_blocked():
            resource_tracker.ensure_running()
        with _stop_signals_blocked():  # again: Python 3.11's tracker unblocks some
            first = next(processes)
        yield first
        yield from processes


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Block them in this thread, and in what it starts; others of this process still get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _checked(
    batches: Generator[HostBatch, None, None], examples: DecodedExamples, on_error: str
) -> Generator[HostBatch, None, None]:
    """Find the bad and the dim images that the readers have marked, and take out the marks."""
    with contextlib.closing(batches):
        for batch in batches:
            bad = batch[BAD] >= 0
            fatal = bad if on_error == "stop" else bad & ~batch[REPLACED] & examples.replace
            if fatal.any():
                raise DataError(examples.explain(int(batch[BAD][np.argmax(fatal)])))
            if (batch[DIM] >= 0).any():
                examples.note_dim(int(batch[DIM].max()))
            kept = {name: array for name, array in batch.items() if name not in MARKS}
            if "mask" in kept:
                kept["mask"] = kept["mask"] & ~bad
            yield kept if on_error == "stop" else kept | {SKIPPED: bad}


def _outlive_stop_signals(worker: int, count: int) -> None:
    """Let the training process decide when a worker ends.

    Terminals and batch queues signal the whole process group. A worker that
    died of it would take away the batch that the loop waits for, and with it
    the chance to save.
    """
    del worker, count
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the training process is gone: one that was killed could not say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def host_positions(
    sharding: jax.sharding.Sharding, batch_size: int, micro_batches: int = 1
) -> np.ndarray:
    """Places in a global batch of the images that this host's devices hold, in order.

    Args:
      sharding: of `[batch_size, ...]`, or where there are several micro-batches of
        `[micro_batches, batch_size / micro_batches, ...]`.
      batch_size: images in a global batch.
      micro_batches: in how many parts the batch is used, one after the other.
    """
    places = np.arange(batch_size).reshape(_leading_shape(batch_size, micro_batches))
    shards = sharding.addressable_devices_indices_map(places.shape).values()
    return np.unique(np.concatenate([places[shard].ravel() for shard in shards]))


def to_devices(
    batches: Generator[HostBatch, None, None],
    sharding: jax.sharding.Sharding,
    batch_size: int | None,
    micro_batches: int = 1,
) -> Generator[dict[str, jax.Array], None, None]:
    """Send host batches to the devices, one ahead of the one in use.

    Args:
      batches: this host's parts, of the images of `host_positions`; closed in the end.
      sharding: of the global batches, see `host_positions`.
      batch_size: of the global batches; None where it changes: each is then as large as the
        parts of all hosts, which have to be equal, together.
      micro_batches: see `host_positions`.
    """

    def send(batch: HostBatch) -> dict[str, jax.Array]:
        return {name: send_array(array) for name, array in batch.items()}

    def send_array(array: np.ndarray) -> jax.Array:
        shape = None
        if batch_size is not None:
            local = _leading_shape(len(array), micro_batches)
            shape = (*_leading_shape(batch_size, micro_batches), *array.shape[1:])
            array = array.reshape(*local, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    with contextlib.closing(batches):
        ahead = collections.deque(map(send, itertools.islice(batches, 2)))
        while ahead:
            yield ahead.popleft()
            ahead.extend(map(send, itertools.islice(batches, 1)))


def _leading_shape(batch_size: int, micro_batches: int) -> tuple[int, ...]:
    if micro_batches == 1:
        return (batch_size,)
    return (micro_batches, batch_size // micro_batches)
