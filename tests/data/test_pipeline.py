"""Batches are a function of (seed, step) alone, and evaluation sees each image once."""

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import grain
import jax
import numpy as np
import pytest

from resnext_jax.data.augment import NUM_RANDOM, SKIPPED
from resnext_jax.data.pipeline import (
    HostBatch,
    eval_batches,
    host_positions,
    to_devices,
    train_batches,
)
from resnext_jax.data.sources import Source
from resnext_jax.data.transforms import EvalTransform, TrainTransform
from resnext_jax.errors import DataError
from resnext_jax.parallel.mesh import batch_sharding, make_mesh, replicated_sharding
from tests.data.images import noise, noise_source, photograph_source

ROOT = Path(__file__).parents[2]

# Not a multiple of the batch, so epochs and batches do not align.
IMAGES, SIZE, BATCH = 10, 4, 8
STEPS = 10  # eight epochs
EPOCHS = STEPS * BATCH // IMAGES
FLIP = TrainTransform(SIZE, "whole", flip=True)


def train(
    *,
    source: Source | None = None,
    transform: TrainTransform = FLIP,
    seed: int = 3,
    batch_size: int = BATCH,
    positions: np.ndarray | None = None,
    start_step: int = 0,
    num_steps: int = STEPS,
    num_workers: int = 0,
    on_error: str = "stop",
) -> list[HostBatch]:
    batches = train_batches(
        source or noise_source(IMAGES),
        transform,
        seed=seed,
        batch_size=batch_size,
        positions=np.arange(batch_size) if positions is None else positions,
        start_step=start_step,
        num_steps=num_steps,
        num_workers=num_workers,
        on_error=on_error,
    )
    return [{name: np.array(array) for name, array in batch.items()} for batch in batches]


def evaluation(
    source: Source,
    positions: np.ndarray | None = None,
    batch_size: int = BATCH,
    num_workers: int = 0,
    on_error: str = "stop",
) -> list[HostBatch]:
    return list(
        eval_batches(
            source,
            EvalTransform(SIZE, short_side=None),
            batch_size=batch_size,
            positions=np.arange(batch_size) if positions is None else positions,
            num_workers=num_workers,
            on_error=on_error,
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
    for batch in batches:
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "image": ((BATCH, SIZE, SIZE, 3), "uint8"),
            "label": ((BATCH,), "int32"),
            "random": ((BATCH, NUM_RANDOM), "float32"),
        }
        for image, label in zip(batch["image"], batch["label"], strict=True):
            original = noise(SIZE, SIZE, seed=label)
            assert any(np.array_equal(image, o) for o in (original, original[:, ::-1]))


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
        for epoch in joined(
            train(source=noise_source(count), seed=seed, num_steps=epochs * count // BATCH)
        )["label"].reshape(epochs, count)
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
    mirrored = np.asarray(
        [
            not np.array_equal(image, noise(SIZE, SIZE, seed=label))
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

    def __init__(self, source: Source) -> None:
        self.read: list[int] = []
        self._examples = source.examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return self._examples[index]


def test_a_host_decodes_only_its_own_images() -> None:
    source = noise_source(IMAGES)
    watched = Watched(source)
    source = dataclasses.replace(source, examples=watched)
    labels = joined(train(source=source, positions=np.arange(2, 4), num_steps=3))["label"]
    assert sorted(watched.read) == sorted(labels.tolist())
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


IMAGENET = TrainTransform(SIZE * 4, "random_sized", flip=True)


SPLITS = [(1, 1, 0), (2, 2, 4), (0, 4, 0), (0, 2, 7)]


@pytest.mark.parametrize("splits", [SPLITS, pytest.param([(4, 1, 5)], marks=pytest.mark.slow)])
def test_workers_hosts_and_start_do_not_matter(splits: list[tuple[int, int, int]]) -> None:
    """JPEGs, random sized crops: bit by bit, for every way to split the work."""
    source = photograph_source(25)

    def read(**options: Any) -> list[HostBatch]:
        return train(source=source, transform=IMAGENET, num_steps=9, **options)

    whole = read()
    assert len({batch["image"].tobytes() for batch in whole}) == 9
    for num_workers, hosts, start_step in splits:
        parts = [
            read(num_workers=num_workers, positions=positions, start_step=start_step)
            for positions in np.arange(BATCH).reshape(hosts, -1)
        ]
        together = [joined(list(batch)) for batch in zip(*parts, strict=True)]
        assert_identical(together, whole[start_step:])


READS = """
import numpy as np
from resnext_jax.data.pipeline import eval_batches
from resnext_jax.data.transforms import EvalTransform
from tests.data.images import noise_source

if __name__ == "__main__":
    options = {"batch_size": 2, "positions": np.arange(2), "num_workers": 1}
    batches = eval_batches(noise_source(20), EvalTransform(64, None), **options)
    next(batches)
    batches.close()
    print("done")
"""


def test_a_script_that_parses_no_flags_reads_with_workers_and_may_stop_early(
    tmp_path: Path,
) -> None:
    """Grain reads absl's flags; Python would call the batches that nobody waits for leaked."""
    (tmp_path / "reads.py").write_text(READS)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, tmp_path / "reads.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_worker_processes_evaluate_the_same_images() -> None:
    source = photograph_source(11)
    assert_identical(evaluation(source, num_workers=2), evaluation(source))


def test_no_more_workers_than_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    options = grain.MultiprocessingOptions

    def without_processes(num_workers: int, **rest: Any) -> grain.MultiprocessingOptions:
        asked.append(num_workers)
        return options(num_workers=0, **rest)

    monkeypatch.setattr(grain, "MultiprocessingOptions", without_processes)
    assert len(evaluation(noise_source(BATCH), num_workers=3)) == 1
    assert len(train(start_step=STEPS - 2, num_workers=3)) == 2
    assert len(train(num_workers=3)) == STEPS
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("count", [1, 7, 8, 10, 16, 21])
def test_evaluation_covers_each_image_once(count: int, hosts: int) -> None:
    parts = [evaluation(noise_source(count), p) for p in np.arange(BATCH).reshape(hosts, -1)]
    batches = [joined(list(batch)) for batch in zip(*parts, strict=True)]
    assert len(batches) == -(-count // BATCH)
    stream = joined(batches)
    mask = stream["mask"]
    assert mask.dtype == np.bool_
    # Real images first, blanks behind them.
    assert mask.tolist() == [place < count for place in range(len(batches) * BATCH)]
    assert stream["label"][mask].tolist() == list(range(count))
    assert stream["label"].dtype == np.int32
    for index, image in enumerate(stream["image"][mask]):
        np.testing.assert_array_equal(image, noise(SIZE, SIZE, seed=index))
    assert not stream["image"][~mask].any()


def test_evaluation_of_nothing_has_no_batches() -> None:
    assert evaluation(noise_source(0)) == []


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


class OneHostOfTwoInParts:
    """Likewise where a batch of 16 comes in two micro-batches."""

    def addressable_devices_indices_map(
        self, shape: tuple[int, ...]
    ) -> dict[str, tuple[slice, ...]]:
        """Return what each device holds, in no special order."""
        assert shape == (2, 8)
        return {"b": (slice(None), slice(6, 8)), "a": (slice(None), slice(4, 6))}


def test_a_host_holds_its_places_of_each_micro_batch() -> None:
    sharding = cast(jax.sharding.Sharding, OneHostOfTwoInParts())
    expected = [4, 5, 6, 7, 12, 13, 14, 15]
    np.testing.assert_array_equal(host_positions(sharding, 16, 2), expected)


def test_micro_batches_follow_each_other_on_the_devices() -> None:
    sharding = batch_sharding(make_mesh(16, 2, accumulate_steps=2), 2)
    assert list(host_positions(sharding, 16, 2)) == list(range(16))
    (batch,) = to_devices(numbered(1), sharding, 16, 2)
    np.testing.assert_array_equal(batch["label"], np.arange(16).reshape(2, 8))
    assert batch["image"].shape == (2, 8, 2, 2, 3)
    assert batch["image"].sharding == sharding


def numbered(batches: int) -> Generator[HostBatch, None, None]:
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

    def endless() -> Generator[HostBatch, None, None]:
        nonlocal sent
        for batch in itertools.chain.from_iterable(itertools.repeat(list(numbered(1)))):
            sent += 1
            yield batch

    sharding = batch_sharding(make_mesh(16, None))
    for used, _ in enumerate(itertools.islice(to_devices(endless(), sharding, 16), 4), start=1):
        assert sent == used + 1


def test_workers_outlive_signals_to_the_process_group() -> None:
    """While they start and while they work: it is the training loop that ends them."""
    code = """
import os, signal, threading
from resnext_jax.errors import STOP_SIGNALS
from tests.data import test_pipeline

for number in STOP_SIGNALS:
    signal.signal(number, lambda number, frame: None)
finished = threading.Event()

def send():
    while not finished.wait(0.01):
        for number in STOP_SIGNALS:
            os.killpg(0, number)

threading.Thread(target=send).start()
try:
    assert len(test_pipeline.train(num_workers=2)) == test_pipeline.STEPS
finally:
    finished.set()
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )
    assert (result.returncode, result.stderr) == (0, "")


BROKEN = {3: b"no image", 4: b"", 9: noise_source(1).examples[0]["image"][:60]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_stops_training_at_its_batch(num_workers: int) -> None:
    whole = train(num_steps=4)
    first = next(step for step, batch in enumerate(whole) if 9 in batch["label"])
    batches = train_batches(
        noise_source(IMAGES, bad={9: BROKEN[9]}),
        FLIP,
        seed=3,
        batch_size=BATCH,
        positions=np.arange(BATCH),
        start_step=0,
        num_steps=4,
        num_workers=num_workers,
    )
    assert_identical(list(itertools.islice(batches, first)), whole[:first])
    with pytest.raises(DataError) as error:
        next(batches)
    message = str(error.value)
    assert message.startswith("image 9 of 'noise', split 'train', file '9.png', cannot be decoded")
    assert "config.data.on_error=skip" in message
    assert "\n" not in message


def test_bad_images_are_replaced_by_the_next_good_one() -> None:
    plain = train()
    actual = train(source=noise_source(IMAGES, bad=BROKEN), on_error="skip")
    stands_for = {3: 5, 4: 5, 9: 0}  # the end is followed by the beginning
    seen = 0
    for ours, theirs in zip(actual, plain, strict=True):
        np.testing.assert_array_equal(ours[SKIPPED], np.isin(theirs["label"], list(BROKEN)))
        expected = [stands_for.get(label, label) for label in theirs["label"].tolist()]
        assert ours["label"].tolist() == expected
        good = ~ours[SKIPPED]
        for name in ("image", "random"):
            np.testing.assert_array_equal(ours[name][good], theirs[name][good])
        for image, label in zip(ours["image"], ours["label"], strict=True):
            original = noise(SIZE, SIZE, seed=label)
            assert any(np.array_equal(image, o) for o in (original, original[:, ::-1]))
        seen += int(ours[SKIPPED].sum())
    assert seen == len(BROKEN) * EPOCHS


def test_nothing_to_replace_a_bad_image_by() -> None:
    source = noise_source(2, bad={0: b"", 1: b""})
    with pytest.raises(DataError, match="the file is empty") as error:
        train(source=source, on_error="skip")
    # Not the advice to do what was done.
    assert str(error.value).endswith(
        "; no usable image follows it within 100; repair the data set."
    )


def test_skipping_changes_nothing_where_all_is_well() -> None:
    actual = train(on_error="skip")
    assert not any(batch.pop(SKIPPED).any() for batch in actual)
    assert_identical(actual, train())


def test_a_bad_test_image_stops_evaluation() -> None:
    with pytest.raises(DataError, match="image 3 of 'noise'"):
        evaluation(noise_source(IMAGES, bad=BROKEN))


def test_bad_test_images_are_masked_out() -> None:
    stream = joined(evaluation(noise_source(IMAGES, bad=BROKEN), on_error="skip"))
    mask, skipped = stream["mask"], stream[SKIPPED]
    assert np.flatnonzero(skipped).tolist() == sorted(BROKEN)
    assert stream["label"][mask].tolist() == [i for i in range(IMAGES) if i not in BROKEN]
    assert not (mask & skipped).any()
    # Blanks behind the end are neither.
    assert not (mask | skipped)[IMAGES:].any()


def test_a_label_outside_the_classes_is_told() -> None:
    source = noise_source(IMAGES)
    examples = [dict(example) for example in source.examples]  # type: ignore[attr-defined]
    examples[6]["label"] = -1
    with pytest.raises(DataError, match=r"image 6 .* has label -1, outside the classes 0 to 9"):
        train(source=dataclasses.replace(source, examples=examples))
