"""Test images of many shapes come in batches of one shape, each image once."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data.augment import SKIPPED
from resnext_jax.data.pipeline import HostBatch, shape_batches
from resnext_jax.data.reading import DecodedExamples
from resnext_jax.data.shapes import BLANK, ShapeBatch, by_aspect, image_sizes, plan_batches
from resnext_jax.data.sources import Source
from resnext_jax.data.transforms import DenseTransform
from resnext_jax.errors import DataError
from tests.data.images import encoded, noise, noise_file, noise_source, photograph

TRANSFORM = DenseTransform(stride=4)
# Heights and widths; with a short side of 8, three shapes.
SIZES = [(16, 16), (16, 28), (28, 16), (8, 8), (16, 26), (17, 31), (9, 9)]
BY_SHAPE = {(8, 8): [0, 3, 6], (8, 12): [1, 4, 5], (12, 8): [2]}
HEADER_ONLY = noise_file(16, 28, seed=1)[:60]


def source_of(files: Iterable[bytes]) -> Source:
    examples: list[dict[str, Any]] = [
        {"image": file, "label": index, "file_name": f"{index}.png"}
        for index, file in enumerate(files)
    ]
    return Source("shapes", "test", examples, tuple(map(str, range(len(examples)))))


def shapes_source(bad: dict[int, bytes] | None = None) -> Source:
    files = [noise_file(*size, seed=index) for index, size in enumerate(SIZES)]
    return source_of((bad or {}).get(index, file) for index, file in enumerate(files))


def plan_of(sizes: Iterable[tuple[int, int]], pixels: int, devices: int) -> list[ShapeBatch]:
    array = np.array(list(sizes))
    order = np.flatnonzero(array[:, 0])
    return plan_batches(array, order, TRANSFORM, 8, pixels=pixels, devices=devices)


def test_sizes_are_read_from_every_kind_of_file() -> None:
    picture = photograph("china", 31, 20)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown upright, which nothing here does
    files = [
        encoded(picture, "JPEG"),
        encoded(picture, "JPEG", exif=turned),
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(picture.convert("P"), "PNG"),
        encoded(picture.convert("L"), "GIF"),
        encoded(picture, "WEBP"),
    ]
    examples = DecodedExamples(source_of(files))
    sizes = image_sizes(examples)
    assert sizes.tolist() == [[20, 31]] * len(files)
    assert sizes.tolist() == [[*examples[i]["image"].shape[:2]] for i in range(len(files))]


def test_sizes_are_read_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: DecodedExamples, index: int) -> None:
        raise AssertionError(f"image {index} was decoded")

    monkeypatch.setattr(DecodedExamples, "__getitem__", refuse)
    assert image_sizes(DecodedExamples(shapes_source())).tolist() == list(map(list, SIZES))


def test_bad_images_have_no_size_unless_their_header_is_good() -> None:
    bad = {1: HEADER_ONLY, 2: b"", 5: b"no image"}
    sizes = image_sizes(DecodedExamples(shapes_source(bad)))
    assert sizes.tolist() == [
        [0, 0] if index in (2, 5) else [*size] for index, size in enumerate(SIZES)
    ]


def test_an_image_whose_header_pillow_refuses_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(data: bytes) -> None:
        raise Image.DecompressionBombError("image size exceeds limit")

    monkeypatch.setattr("resnext_jax.data.shapes.open_picture", too_large)
    assert image_sizes(DecodedExamples(shapes_source())).tolist() == list(map(list, SIZES))


def test_no_images_have_no_sizes() -> None:
    assert image_sizes(DecodedExamples(source_of([]))).shape == (0, 2)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("pixels", [1, 64, 200, 10_000])
def test_each_image_is_in_one_batch_of_its_shape(pixels: int, devices: int) -> None:
    plan = plan_of(SIZES, pixels, devices)
    found: dict[tuple[int, int], list[int]] = {}
    for batch in plan:
        assert batch.short_side == 8
        assert len(batch.images) % devices == 0
        area = batch.shape[0] * batch.shape[1]
        assert len(batch.images) * area <= pixels or len(batch.images) == devices
        found.setdefault(batch.shape, []).extend(batch.images[batch.images != BLANK].tolist())
    assert found == BY_SHAPE


def test_batches_of_a_shape_are_equal_and_have_few_blanks() -> None:
    plan = plan_of([(8, 8)] * 9, pixels=4 * 64, devices=1)
    assert [batch.images.tolist() for batch in plan] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
    ]
    plan = plan_of([(8, 8)] * 9, pixels=4 * 64, devices=2)
    assert [batch.images.tolist() for batch in plan] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, BLANK, BLANK, BLANK],
    ]


def test_images_of_a_shape_are_neighbours_by_aspect() -> None:
    """At every scale; images without a size are left out."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 400, (300, 2))
    sizes[7] = 0
    order = by_aspect(sizes)
    assert sorted(order) == [index for index in range(300) if index != 7]
    for side in (8, 14, 40):
        shapes = [TRANSFORM.shape(height, width, side) for height, width in sizes[order].tolist()]
        changes = sum(one != other for one, other in itertools.pairwise(shapes))
        assert changes == len(set(shapes)) - 1


def test_images_without_size_are_left_out() -> None:
    (batch,) = plan_of([(0, 0), (8, 8), (0, 0)], pixels=1000, devices=1)
    assert batch.images.tolist() == [1]
    assert plan_of([(0, 0)], pixels=1000, devices=1) == []


def read(
    source: Source,
    positions: np.ndarray | None = None,
    num_workers: int = 0,
    on_error: str = "stop",
) -> list[HostBatch]:
    """Return the batches, of four places each, or a host's part of them."""
    plan = plan_of(SIZES, pixels=4 * 64, devices=4)
    parts = plan if positions is None else [batch.part(positions) for batch in plan]
    return list(shape_batches(source, TRANSFORM, parts, num_workers=num_workers, on_error=on_error))


def test_batches_hold_the_images_of_the_plan() -> None:
    batches = read(shapes_source())
    assert [batch["image"].shape[1:3] for batch in batches] == list(BY_SHAPE)
    for batch, indices in zip(batches, BY_SHAPE.values(), strict=True):
        assert batch.keys() == {"image", "label", "mask"}
        assert batch["label"].dtype == np.int32
        mask = batch["mask"]
        assert mask.tolist() == [True] * len(indices) + [False] * (4 - len(indices))
        assert batch["label"][mask].tolist() == indices
        for image, index in zip(batch["image"][mask], indices, strict=True):
            expected = TRANSFORM(noise(*SIZES[index], seed=index), 8)
            np.testing.assert_array_equal(image, expected)
        assert not batch["image"][~mask].any()


def test_hosts_and_workers_do_not_matter() -> None:
    whole = read(shapes_source())
    hosts = [read(shapes_source(), positions=p) for p in np.arange(4).reshape(2, -1)]
    together = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]
    for other in (together, read(shapes_source(), num_workers=1)):
        for ours, theirs in zip(other, whole, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_bad_image_stops_or_is_masked_out() -> None:
    source = shapes_source({1: HEADER_ONLY})
    with pytest.raises(DataError, match=r"image 1 of 'shapes', split 'test', file '1\.png'"):
        read(source)
    first, second, third = read(source, on_error="skip")
    assert second[SKIPPED].tolist() == [True, False, False, False]
    assert second["mask"].tolist() == [False, True, True, False]
    assert not second["image"][0].any()
    assert not (first[SKIPPED] | third[SKIPPED]).any()


def test_an_image_of_another_size_than_planned_is_bad() -> None:
    """As where a header lies about what follows."""
    skipped = [batch[SKIPPED].sum() for batch in read(noise_source(7, 8, 8), on_error="skip")]
    assert skipped == [0, 3, 1]
