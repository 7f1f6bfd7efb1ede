"""Detection batches are a function of (seed, step) alone; boxes go where their image goes."""

import collections
import dataclasses
import itertools
import threading
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from resnext_jax.data import deep_images
from resnext_jax.data.pipeline import HostBatch, host_positions, to_devices
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.loading import (
    TrainingOrder,
    box_places,
    detection_batches,
    eval_detection_batches,
    training_order,
)
from resnext_jax.detection.sizes import ImageSpec, original_boxes, prepare_image, resized_shape
from resnext_jax.errors import ConfigError, DataError
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from tests.data.deep_files import png, tiff
from tests.detection.coco_files import annotation, image, pixels, random_split, write_coco

# Images of 48x64 become 60x80.
SMALL = ImageSpec(short_side=60, long_side=100)
BATCH, STEPS = 4, 10


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    """Seven landscape and three portrait images: two epochs are five batches of eight."""
    return random_split(tmp_path_factory.mktemp("split"))


def proposals(index: int) -> np.ndarray:
    """Return `index` boxes, which tell where they come from."""
    return np.array([[n, index, n + 5, index + 10] for n in range(index)], np.float32).reshape(
        -1, 4
    )


def train(split: CocoSplit, spec: ImageSpec = SMALL, **options: Any) -> list[HostBatch]:
    options = {"batch_size": BATCH, "start_step": 0, "num_steps": STEPS, "seed": 3} | options
    options.setdefault("positions", np.arange(options["batch_size"]))
    batches = detection_batches(split, spec, **options)
    return [{name: np.array(array) for name, array in batch.items()} for batch in batches]


def evaluation(split: CocoSplit, spec: ImageSpec = SMALL, **options: Any) -> list[HostBatch]:
    options.setdefault("positions", np.arange(BATCH))
    return list(eval_detection_batches(split, spec, batch_size=BATCH, **options))


def joined(batches: list[HostBatch]) -> HostBatch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_identical(actual: list[HostBatch], expected: list[HostBatch]) -> None:
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])


def order_of(
    split: CocoSplit, *, batch_size: int = BATCH, seed: int = 3, flip: bool = True
) -> TrainingOrder:
    spec = dataclasses.replace(SMALL, flip=flip)
    return training_order(split, spec, seed=seed, batch_size=batch_size)


def test_canvases_alternate_evenly_and_any_batch_s_is_known(split: CocoSplit) -> None:
    canvases = [order_of(split).canvas(step) for step in range(100)]
    assert canvases[:10] == [0, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert canvases == canvases[:10] * 10
    # Without those before it.
    late = 3_000_000_003
    assert order_of(split).canvas(late) == canvases[3] == 1


def test_every_image_and_its_mirror_are_seen_equally_often(split: CocoSplit) -> None:
    order = order_of(split)
    assert len(order) == 20
    seen: collections.Counter[tuple[int, bool]] = collections.Counter()
    for step in range(10 * len(order) // BATCH):
        indices, mirrored = order.elements(step, np.arange(BATCH))
        # One canvas a batch.
        assert set(split.heights[indices] > split.widths[indices]) == {bool(order.canvas(step))}
        seen.update(zip(indices.tolist(), mirrored.tolist(), strict=True))
    assert seen == {(index, flip): 10 for index in range(10) for flip in (False, True)}


def test_orders_differ_by_epoch_seed_and_canvas(tmp_path: Path) -> None:
    images = [image(n, *((4, 8) if n % 2 else (8, 4))) for n in range(200)]
    split = write_coco(tmp_path, images, [annotation(n, n, 1, [0, 0, 4, 4]) for n in range(200)])
    orders = []
    for seed in (0, 1):
        order = order_of(split, seed=seed, batch_size=100, flip=False)
        steps = [order.elements(step, np.arange(100))[0] // 2 for step in range(6)]
        orders += [step.tolist() for step in steps]
    for one, other in itertools.combinations([*orders, list(range(100))], 2):
        assert sorted(one) == list(range(100))
        # Two random orders agree in one place, on average.
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


def test_flips_are_left_out_when_not_asked_for(split: CocoSplit) -> None:
    order = order_of(split, flip=False)
    assert len(order) == 10
    assert not any(order.elements(step, np.arange(BATCH))[1].any() for step in range(20))


def test_only_images_with_single_objects_are_trained_on(tmp_path: Path) -> None:
    images = [image(number) for number in (1, 2, 3)]
    annotations = [
        annotation(1, 1, 1, [0, 0, 9, 9], iscrowd=1),
        annotation(2, 3, 1, [0, 0, 9, 9], iscrowd=1),
        annotation(3, 3, 1, [0, 0, 9, 9]),
    ]
    split = write_coco(tmp_path, images, annotations)
    order = order_of(split)
    assert [group.tolist() for group in order.groups] == [[2], []]
    assert len(order) == 2
    with pytest.raises(DataError, match=r"no image of .*instances_train\.json has a box"):
        train(split.select(np.array([0, 1])))


def test_images_without_objects_can_be_trained_on(tmp_path: Path) -> None:
    """Whatever they have: nothing, or crowds alone."""
    crowd = annotation(1, 1, 1, [0, 0, 9, 9], iscrowd=1)
    images = [image(number) for number in (1, 2, 3)]
    split = write_coco(tmp_path, images, [crowd, annotation(3, 3, 1, [0, 0, 9, 9])])
    spec = dataclasses.replace(SMALL, keep_empty=True)
    order = training_order(split, spec, seed=3, batch_size=3)
    assert [group.tolist() for group in order.groups] == [[0, 1, 2], []]
    batch = joined(train(split, spec, batch_size=3, num_steps=2))
    assert sorted((batch["valid"] & ~batch["crowd"]).sum(axis=1)) == [0, 0, 0, 0, 1, 1]
    with pytest.raises(DataError, match="has a box to train on"):
        train(split.select(np.array([0, 1])), spec)


def test_batches_hold_what_a_step_needs(split: CocoSplit) -> None:
    batches = train(split, proposals=proposals, max_proposals=12)
    assert len(batches) == STEPS
    for step, batch in enumerate(batches):
        canvas = SMALL.canvases[order_of(split).canvas(step)]
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "image": ((BATCH, *canvas, 3), "uint8"),
            "size": ((BATCH, 2), "float32"),
            "original_size": ((BATCH, 2), "float32"),
            "boxes": ((BATCH, 8, 4), "float32"),
            "classes": ((BATCH, 8), "int32"),
            "valid": ((BATCH, 8), "bool"),
            "crowd": ((BATCH, 8), "bool"),
            "seed": ((BATCH,), "uint32"),
            "proposals": ((BATCH, 12, 4), "float32"),
            "proposals_valid": ((BATCH, 12), "bool"),
        }


def test_images_boxes_and_proposals_are_resized_and_mirrored_together(tmp_path: Path) -> None:
    split = random_split(tmp_path, landscape=3, portrait=3, odd=4)
    order, mirrors = order_of(split), 0
    for step, batch in enumerate(train(split, proposals=proposals, max_proposals=5)):
        for place, (index, mirrored) in enumerate(
            zip(*order.elements(step, np.arange(BATCH)), strict=True)
        ):
            truth, mirrors = split.ground_truth(index), mirrors + mirrored
            height, width = int(split.heights[index]), int(split.widths[index])
            stored = pixels(int(split.image_ids[index]), height, width)
            stored = stored[:, ::-1] if mirrored else stored
            new_height, new_width = resized_shape(height, width, SMALL)
            scales = np.tile([new_width / width, new_height / height], 2)
            np.testing.assert_array_equal(batch["size"][place], (new_height, new_width))
            np.testing.assert_array_equal(batch["original_size"][place], (height, width))
            np.testing.assert_array_equal(
                batch["image"][place, :new_height, :new_width],
                cv2.resize(stored, (new_width, new_height), interpolation=cv2.INTER_LINEAR),
            )

            def there(
                boxes: np.ndarray,
                *,
                width: int = width,
                scales: np.ndarray = scales,
                mirrored: bool = mirrored,
            ) -> np.ndarray:
                x1, y1, x2, y2 = boxes.T
                if mirrored:
                    x1, x2 = width - x2, width - x1
                return scales * np.stack([x1, y1, x2, y2], axis=1)

            count = len(truth.boxes)
            np.testing.assert_array_equal(batch["valid"][place], np.arange(8) < count)
            np.testing.assert_allclose(batch["boxes"][place, :count], there(truth.boxes), rtol=1e-6)
            np.testing.assert_array_equal(batch["classes"][place, :count], truth.classes)
            np.testing.assert_array_equal(batch["crowd"][place, :count], truth.crowd)
            for name in ("boxes", "classes", "crowd"):
                assert not batch[name][place, count:].any()
            count = min(5, index)
            np.testing.assert_array_equal(batch["proposals_valid"][place], np.arange(5) < count)
            np.testing.assert_allclose(
                batch["proposals"][place, :count], there(proposals(index)[:5]), rtol=1e-6
            )
            assert not batch["proposals"][place, count:].any()
    assert 0 < mirrors < STEPS * BATCH


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_still_frames_its_object(mirrored: bool, tmp_path: Path) -> None:
    # A white rectangle on black, half the size when it is loaded.
    split = write_coco(tmp_path, [image(1, 96, 128)], [annotation(1, 1, 1, [20, 40, 60, 30])])
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[40:70, 20:80] = 255
    split.path(0).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    spec = ImageSpec(short_side=48, long_side=64)
    order = training_order(split, spec, seed=0, batch_size=1)
    step = next(n for n in range(9) if order.elements(n, np.arange(1))[1][0] == mirrored)
    batch = train(split, spec, seed=0, batch_size=1, start_step=step, num_steps=step + 1)[0]
    expected = [24, 20, 54, 35] if mirrored else [10, 20, 40, 35]
    np.testing.assert_array_equal(batch["boxes"][0, 0], expected)
    rows, columns = np.nonzero(batch["image"][0, ..., 0] > 127)
    edges = [np.min(columns), np.min(rows), np.max(columns) + 1, np.max(rows) + 1]
    np.testing.assert_array_equal(edges, expected)


def test_every_object_has_a_place(tmp_path: Path) -> None:
    """Also of an image with many; what had none would be learned as background."""
    counts = (1, 130)
    annotations = [
        annotation(200 * number + place, number, 1, [0, 0, 2 + place % 30, 9], iscrowd=place % 2)
        for number, count in enumerate(counts)
        for place in range(count)
    ]
    split = write_coco(tmp_path, [image(number) for number in range(2)], annotations)
    for max_boxes, places in ((None, 136), (130, 130), (200, 200)):
        assert box_places(split, max_boxes) == places
        batch = train(split, batch_size=2, num_steps=1, max_boxes=max_boxes)[0]
        assert batch["valid"].shape == (2, places)
        assert sorted(batch["valid"].sum(axis=1)) == [1, 130]
    with pytest.raises(
        ConfigError,
        match=r"config.data.max_boxes=129 is too small: 1 of 2 images of .* have more objects, "
        r"image id 1 has 130; give at least 130, or None\.",
    ):
        train(split, max_boxes=129)


def test_seeds_on_the_device_follow_the_place_in_the_run(split: CocoSplit) -> None:
    def seeds_of(**options: Any) -> np.ndarray:
        return np.concatenate([batch["seed"] for batch in train(split, **options)])

    seeds = seeds_of()
    assert len(np.unique(seeds)) == STEPS * BATCH
    # Whatever the batches are: those of two halves are those of the whole.
    np.testing.assert_array_equal(seeds_of(batch_size=8, num_steps=5), seeds)
    assert not np.isin(seeds_of(seed=4), seeds).any()


def test_any_batch_is_the_same_wherever_a_run_starts(split: CocoSplit) -> None:
    whole = train(split, proposals=proposals)
    assert_identical(train(split, proposals=proposals), whole)
    for start in (1, 7, STEPS):
        assert_identical(train(split, proposals=proposals, start_step=start), whole[start:])
    other = train(split, seed=4)
    assert any(
        not np.array_equal(one["classes"], two["classes"])
        for one, two in zip(whole, other, strict=True)
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_hold_the_parts_of_one_global_batch(split: CocoSplit, hosts: int) -> None:
    parts = [train(split, positions=part) for part in np.arange(BATCH).reshape(hosts, -1)]
    assert_identical([joined(list(batch)) for batch in zip(*parts, strict=True)], train(split))


def test_a_host_decodes_its_own_images_alone(
    split: CocoSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = Path.read_bytes

    def watched(path: Path) -> bytes:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    positions = np.array([1, 2])
    train(split, positions=positions, num_steps=3)
    wanted = [order_of(split).elements(step, positions)[0] for step in range(3)]
    assert sorted(read) == sorted(split.file_names[i] for i in np.concatenate(wanted))


@pytest.mark.slow
def test_worker_processes_change_nothing(split: CocoSplit) -> None:
    expected = train(split, proposals=proposals, start_step=3)
    assert_identical(train(split, proposals=proposals, start_step=3, num_workers=2), expected)
    assert_identical(evaluation(split, num_workers=2), evaluation(split))


def test_batches_go_to_the_devices(split: CocoSplit) -> None:
    sharding = batch_sharding(make_mesh(batch_size=8, bn_group_size=1))
    positions = host_positions(sharding, 8)
    batches = detection_batches(
        split, SMALL, seed=3, batch_size=8, positions=positions, start_step=0, num_steps=2
    )
    expected = train(split, batch_size=8, num_steps=2)
    for sent, batch in zip(to_devices(batches, sharding, 8), expected, strict=True):
        assert len(sent["image"].sharding.device_set) == 8 == len(jax.devices())
        assert_identical([{name: np.asarray(array) for name, array in sent.items()}], [batch])


def test_evaluation_has_every_image_once(split: CocoSplit) -> None:
    batches = evaluation(split, proposals=proposals, max_proposals=6)
    assert [batch["image"].shape[1:3] for batch in batches] == [(64, 112), (64, 112), (112, 64)]
    kinds = {name: (array.shape[1:], array.dtype.name) for name, array in batches[0].items()}
    assert kinds == {
        "image": ((64, 112, 3), "uint8"),
        "size": ((2,), "float32"),
        "original_size": ((2,), "float32"),
        "index": ((), "int32"),
        "mask": ((), "bool"),
        "proposals": ((6, 4), "float32"),
        "proposals_valid": ((6,), "bool"),
    }
    flat = joined([{k: v for k, v in b.items() if k not in ("image", "seed")} for b in batches])
    assert flat["index"].tolist() == [0, 1, 2, 3, 4, 5, 6, -1, 7, 8, 9, -1]
    np.testing.assert_array_equal(flat["mask"], flat["index"] >= 0)
    for place, index in enumerate(flat["index"].tolist()):
        if index < 0:
            assert not flat["proposals_valid"][place].any()
            continue
        size = split.heights[index], split.widths[index]
        np.testing.assert_array_equal(flat["original_size"][place], size)
        np.testing.assert_array_equal(flat["size"][place], 1.25 * np.array(size))
        count = min(index, 6)
        assert flat["proposals_valid"][place].sum() == count
        back = original_boxes(flat["proposals"][place, :count], flat["size"][place], np.array(size))
        np.testing.assert_allclose(back, proposals(index)[:6], atol=1e-4)
    first = prepare_image(pixels(1, 48, 64), SMALL)[0]
    np.testing.assert_array_equal(batches[0]["image"][0], first)
    assert not batches[1]["image"][3].any()


def test_evaluation_of_some_images_by_several_hosts(split: CocoSplit) -> None:
    some = split.select(np.array([9, 0, 4]))
    whole = evaluation(some)
    assert [batch["index"].tolist() for batch in whole] == [[0, 1, -1, -1], [2, -1, -1, -1]]
    parts = [evaluation(some, positions=part) for part in ([0, 2], [1, 3])]
    order = np.argsort([0, 2, 1, 3])
    together = [joined(list(batch)) for batch in zip(*parts, strict=True)]
    assert_identical([{k: v[order] for k, v in batch.items()} for batch in together], whole)


DAMAGE = {
    "empty": (b"", "the file is empty"),
    "no image": (b"hello", "it is no image of a known kind"),
    "floating-point": (
        tiff(np.zeros((48, 64), np.float32)),
        r"32-bit floating-point numbers, .* as 8-bit PNG; replace the file",
    ),
    "turned": (None, "it is 48x64 pixels and should be 64x48"),
    "missing": (None, "No such file or directory"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_image_that_cannot_be_used_is_named(kind: str, tmp_path: Path) -> None:
    split = random_split(tmp_path, landscape=3, portrait=0)
    path, (data, reason) = split.path(1), DAMAGE[kind]
    path.unlink()
    if kind == "turned":
        path.write_bytes(cv2.imencode(".png", pixels(0, 64, 48))[1].tobytes())
    elif data is not None:
        path.write_bytes(data)
    for read in (train, evaluation):
        with pytest.raises(DataError, match=reason) as caught:
            read(split)
        assert f"image {path} (id 2) cannot be used" in str(caught.value)


def test_the_first_dim_image_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deep_images, "_unnoted", threading.Lock())
    split = random_split(tmp_path, landscape=3, portrait=0)
    split.path(1).write_bytes(png(np.full((48, 64), 4095, np.uint16)))
    for read in (train, evaluation):
        assert all("dim_index" not in batch for batch in read(split))
    assert capfd.readouterr().err.count(f"16-bit samples of {split.path(1)} are all below") == 1


def test_batches_before_a_bad_image_are_given(tmp_path: Path) -> None:
    split = random_split(tmp_path, landscape=8, portrait=0)
    split.path(7).write_bytes(b"")
    batches = eval_detection_batches(split, SMALL, batch_size=2, positions=np.arange(2))
    assert [next(batches)["index"].tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(DataError, match=split.file_names[7]):
        next(batches)
