"""Batches in a fixed order: a function of (seed, step) alone.

The training stream is the data set shuffled anew each epoch, epoch after
epoch; global batch k is positions k * B to (k + 1) * B of it, so epochs need
not align with batches. Position p's image, augmentation included, depends on
the seed and p only: not on workers, devices, hosts, or where a run resumed. A
host asks for the positions of its own devices and decodes no other.
"""

import collections
import dataclasses
import itertools
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

import grain
import jax
import numpy as np

from resnext_jax.data.sources import Examples

HostBatch = dict[str, np.ndarray]
Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]

# Batches decoded ahead: enough to hide a slow one, few enough to fit in memory
# (256 images of 224x224 are 38 MB).
_BATCHES_AHEAD = 8
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class _Share:
    """One host's part of every global batch, as a flat random-access sequence."""

    stream: Any
    positions: np.ndarray  # of this host's images within a global batch
    batch_size: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps * len(self.positions)

    def __getitem__(self, index: int) -> Any:
        step, image = divmod(index, len(self.positions))
        return self.stream[step * self.batch_size + int(self.positions[image])]


@dataclasses.dataclass(frozen=True)
class _Padded:
    """A finite sequence, followed by blanks, with a mask that tells them apart."""

    examples: Examples
    transform: Callable[[dict[str, Any]], dict[str, Any]]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> dict[str, Any]:
        real = position < len(self.examples)
        element = self.transform(self.examples[position if real else 0])
        if not real:
            element = {name: np.zeros_like(value) for name, value in element.items()}
        return element | {"mask": np.bool_(real)}


def train_batches(
    examples: Examples,
    transform: Transform,
    *,
    seed: int,
    batch_size: int,
    positions: np.ndarray,
    start_step: int,
    num_steps: int,
    num_workers: int = 0,
) -> Iterator[HostBatch]:
    """Yield this host's part of the global batches `start_step` to `num_steps`.

    Args:
      examples: the training images.
      transform: host augmentation, given an example and its random generator.
      seed: of order and augmentation.
      batch_size: B, images in a global batch.
      positions: `[b]`, places of this host's images in a global batch.
      start_step: first batch; batch k is the same whatever this is.
      num_steps: batches in the whole run.
      num_workers: decoding processes; 0 decodes in threads of this one.

    Yields:
      Dictionaries of arrays `[b, ...]`.
    """
    stream = grain.MapDataset.source(examples).seed(seed).shuffle().repeat().random_map(transform)
    share = _Share(stream, positions, batch_size, num_steps)
    return _iterate(share, len(positions), start_step, num_workers)


def eval_batches(
    examples: Examples,
    transform: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    batch_size: int,
    positions: np.ndarray,
    num_workers: int = 0,
) -> Iterator[HostBatch]:
    """Yield this host's part of a pass over `examples`, each image once.

    The last batch is filled up with blanks. `mask` (bool `[b]`) is False for them.
    """
    num_steps = -(-len(examples) // batch_size)
    share = _Share(_Padded(examples, transform), positions, batch_size, num_steps)
    return _iterate(share, len(positions), 0, num_workers)


def _iterate(
    share: _Share, local_batch: int, start_step: int, num_workers: int
) -> Iterator[HostBatch]:
    # Batched before iteration, so that worker processes hand over whole
    # batches and resuming is a slice.
    batches = grain.MapDataset.source(share).batch(local_batch)[start_step:]
    if len(batches) == 0:
        return iter(())
    if num_workers == 0:
        reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
        return iter(batches.to_iter_dataset(reading))
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    prefetched = batches.to_iter_dataset(reading).mp_prefetch(
        workers, worker_init_fn=_outlive_stop_signals
    )
    return iter(prefetched)


def _outlive_stop_signals(worker: int, count: int) -> None:
    """Let the training process decide when a worker ends.

    Ctrl-C and batch queues signal the whole process group. A worker that died
    of it would take away the batch that the loop waits for, and with it the
    chance to save.
    """
    del worker, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def host_positions(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Places in a global batch of the images that this host's devices hold, in order."""
    places = np.arange(batch_size)
    shards = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([places[shard] for shard in shards]))


def to_devices(
    batches: Iterator[HostBatch], sharding: jax.sharding.Sharding, batch_size: int
) -> Generator[dict[str, jax.Array], None, None]:
    """Send host batches to the devices, one ahead of the one in use."""

    def send(batch: HostBatch) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(
                sharding, array, (batch_size, *array.shape[1:])
            )
            for name, array in batch.items()
        }

    try:
        ahead = collections.deque(map(send, itertools.islice(batches, 2)))
        while ahead:
            yield ahead.popleft()
            ahead.extend(map(send, itertools.islice(batches, 1)))
    finally:
        if isinstance(batches, grain.DatasetIterator):
            batches.close()  # ends worker processes and frees what they share
