"""Batches are a function of (seed, step) alone, and evaluation sees each image once."""

import itertools
from collections.abc import Iterator
from typing import Any, cast

import jax
import numpy as np
import pytest

from resnext_jax.data.pipeline import (
    HostBatch,
    eval_batches,
    host_positions,
    to_devices,
    train_batches,
)
from resnext_jax.data.transforms import EvalTransform, TrainTransform
from resnext_jax.training.mesh import batch_sharding, make_mesh, replicated_sharding

# Not a multiple of the batch, so epochs and batches do not align.
IMAGES, SIZE, BATCH = 10, 4, 8
STEPS = 10  # eight epochs
EPOCHS = STEPS * BATCH // IMAGES


def examples(count: int = IMAGES) -> list[dict[str, Any]]:
    """Images that differ from each other and from their mirror; the label is the index."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (count, SIZE, SIZE, 1), dtype=np.uint8)
    return [{"image": image, "label": index} for index, image in enumerate(images)]


def train(
    *,
    seed: int = 3,
    batch_size: int = BATCH,
    positions: np.ndarray | None = None,
    start_step: int = 0,
    num_steps: int = STEPS,
    num_workers: int = 0,
    count: int = IMAGES,
) -> list[HostBatch]:
    batches = train_batches(
        examples(count),
        TrainTransform(SIZE, flip=True),
        seed=seed,
        batch_size=batch_size,
        positions=np.arange(batch_size) if positions is None else positions,
        start_step=start_step,
        num_steps=num_steps,
        num_workers=num_workers,
    )
    return [{name: np.array(array) for name, array in batch.items()} for batch in batches]


def evaluation(
    count: int, positions: np.ndarray, batch_size: int = BATCH, num_workers: int = 0
) -> list[HostBatch]:
    return list(
        eval_batches(
            examples(count),
            EvalTransform(SIZE),
            batch_size=batch_size,
            positions=positions,
            num_workers=num_workers,
        )
    )


def joined(batches: list[HostBatch]) -> HostBatch:
    """Put batches, or the hosts' parts of one, together in order."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_identical(actual: list[HostBatch], expected: list[HostBatch]) -> None:
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_batches_hold_images_labels_and_random_numbers() -> None:
    batches = train()
    assert len(batches) == STEPS
    originals = examples()
    for batch in batches:
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "image": ((BATCH, SIZE, SIZE, 3), "uint8"),
            "label": ((BATCH,), "int32"),
            "random": ((BATCH, 2), "float32"),
        }
        for image, label in zip(batch["image"], batch["label"], strict=True):
            original = originals[label]["image"]
            assert any(np.array_equal(image[..., :1], o) for o in (original, original[:, ::-1]))


def test_repeats_bit_for_bit() -> None:
    assert_identical(train(), train())


def test_every_epoch_covers_each_image_once() -> None:
    epochs = joined(train())["label"].reshape(EPOCHS, IMAGES)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(IMAGES))


def test_every_epoch_and_every_seed_has_its_own_order() -> None:
    # With ten images Grain's shuffle gives some orders more than once, among them none at all.
    count, epochs = 104, 3
    orders = [
        epoch
        for seed in (0, 1, 2)
        for epoch in joined(train(seed=seed, count=count, num_steps=epochs * count // BATCH))[
            "label"
        ].reshape(epochs, count)
    ]
    orders.append(np.arange(count))
    for one, other in itertools.combinations(orders, 2):
        assert sorted(one.tolist()) == list(range(count))
        # Two random orders agree in one place, on average.
        assert (one == other).sum() < 10


def test_augmentation_differs_between_images_epochs_and_seeds() -> None:
    drawn = np.concatenate([joined(train(seed=seed))["random"] for seed in (0, 1, 2)])
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 3 * STEPS * BATCH


def test_an_image_is_mirrored_in_some_epochs() -> None:
    stream = joined(train())
    originals = examples()
    mirrored = np.asarray(
        [
            not np.array_equal(image[..., :1], originals[label]["image"])
            for image, label in zip(stream["image"], stream["label"], strict=True)
        ]
    )
    shares = [mirrored[stream["label"] == label].mean() for label in range(IMAGES)]
    assert 0.3 < np.mean(shares) < 0.7
    assert any(0 < share < 1 for share in shares)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_hold_the_parts_of_one_global_batch(hosts: int) -> None:
    parts = [train(positions=p) for p in np.arange(BATCH).reshape(hosts, -1)]
    assert all(batch["label"].shape == (BATCH // hosts,) for part in parts for batch in part)
    assert_identical([joined(list(batch)) for batch in zip(*parts, strict=True)], train())


def test_a_host_may_hold_any_positions() -> None:
    positions = np.asarray([0, 1, 6, 7])
    expected = [{name: array[positions] for name, array in batch.items()} for batch in train()]
    assert_identical(train(positions=positions), expected)


class Watched:
    """Examples that remember which of them were read."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self._examples = examples()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return self._examples[index]


def test_a_host_decodes_only_its_own_images() -> None:
    watched = Watched()
    batches = train_batches(
        watched,
        TrainTransform(SIZE, flip=True),
        seed=3,
        batch_size=BATCH,
        positions=np.arange(2, 4),
        start_step=0,
        num_steps=3,
    )
    labels = joined(list(batches))["label"].tolist()
    assert sorted(watched.read) == sorted(labels)
    assert len(labels) == 6


@pytest.mark.parametrize("start_step", [1, 7, STEPS])
def test_starting_late_gives_the_rest_of_the_run(start_step: int) -> None:
    assert_identical(train(start_step=start_step), train()[start_step:])


def test_the_length_of_the_run_does_not_matter() -> None:
    assert_identical(train(num_steps=STEPS)[:4], train(num_steps=4))


def test_a_position_does_not_depend_on_the_batch_size() -> None:
    assert_identical(
        [joined(train(batch_size=BATCH, num_steps=5))],
        [joined(train(batch_size=5, num_steps=8))],
    )


def test_worker_processes_give_the_same_batches() -> None:
    """From a later step on, for one host of two: everything at once, as processes are slow."""
    positions = np.arange(BATCH // 2, BATCH)
    expected = train(positions=positions, start_step=3)
    actual = train(positions=positions, start_step=3, num_workers=2)
    assert_identical(actual, expected)


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("count", [1, 7, 8, 10, 16, 21])
def test_evaluation_covers_each_image_once(count: int, hosts: int) -> None:
    parts = [evaluation(count, p) for p in np.arange(BATCH).reshape(hosts, -1)]
    batches = [joined(list(batch)) for batch in zip(*parts, strict=True)]
    assert len(batches) == -(-count // BATCH)
    stream = joined(batches)
    mask = stream["mask"]
    assert mask.dtype == np.bool_
    # Real images first, blanks behind them.
    assert mask.tolist() == [place < count for place in range(len(batches) * BATCH)]
    assert stream["label"][mask].tolist() == list(range(count))
    assert stream["label"].dtype == np.int32
    for image, original in zip(stream["image"][mask], examples(count), strict=True):
        np.testing.assert_array_equal(image[..., :1], original["image"])
    assert not stream["image"][~mask].any()


def test_evaluation_of_nothing_has_no_batches() -> None:
    assert evaluation(0, np.arange(BATCH)) == []


def test_this_host_holds_the_whole_batch() -> None:
    mesh = make_mesh(32, 8)
    assert mesh.size == 8
    np.testing.assert_array_equal(host_positions(batch_sharding(mesh), 32), np.arange(32))
    # Each place once, though every device holds all of them.
    np.testing.assert_array_equal(host_positions(replicated_sharding(mesh), 32), np.arange(32))


class OneHostOfTwo:
    """What `host_positions` asks of a sharding, as the second of two hosts would see it."""

    def addressable_devices_indices_map(
        self, shape: tuple[int, ...]
    ) -> dict[str, tuple[slice, ...]]:
        """Return what each device holds, in no special order."""
        assert shape == (16,)
        return {"b": (slice(12, 16),), "a": (slice(8, 12),)}


def test_a_host_holds_the_places_of_its_own_devices_in_order() -> None:
    sharding = cast(jax.sharding.Sharding, OneHostOfTwo())
    np.testing.assert_array_equal(host_positions(sharding, 16), np.arange(8, 16))


def numbered(batches: int) -> Iterator[HostBatch]:
    for step in range(batches):
        yield {
            "image": np.full((16, 2, 2, 3), step, np.uint8),
            "label": np.arange(16, dtype=np.int32) + 100 * step,
        }


@pytest.mark.parametrize("group", [2, 8, None])
def test_devices_hold_consecutive_images(group: int | None) -> None:
    sharding = batch_sharding(make_mesh(16, group))
    batches = list(to_devices(numbered(3), sharding, 16))
    assert len(batches) == 3
    for step, (batch, expected) in enumerate(zip(batches, numbered(3), strict=True)):
        assert batch.keys() == expected.keys()
        for name, array in batch.items():
            assert array.sharding == sharding
            np.testing.assert_array_equal(np.asarray(array), expected[name])
            assert array.dtype == expected[name].dtype
        shards = {shard.device.id: shard.data for shard in batch["label"].addressable_shards}
        for place, device in enumerate(sharding.mesh.devices.flat):
            first = 100 * step + 2 * place
            assert shards[device.id].tolist() == [first, first + 1]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_batches_are_sent_too(count: int) -> None:
    sharding = batch_sharding(make_mesh(16, None))
    assert len(list(to_devices(numbered(count), sharding, 16))) == count


def test_only_one_batch_is_sent_ahead() -> None:
    """More would fill the devices' memory."""
    sent = 0

    def endless() -> Iterator[HostBatch]:
        nonlocal sent
        for batch in itertools.chain.from_iterable(itertools.repeat(list(numbered(1)))):
            sent += 1
            yield batch

    sharding = batch_sharding(make_mesh(16, None))
    for used, _ in enumerate(itertools.islice(to_devices(endless(), sharding, 16), 4), start=1):
        assert sent == used + 1
