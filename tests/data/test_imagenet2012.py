"""ImageNet-1K prepared from small archives: as tfds's own builder would have it."""

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from resnext_jax.data.builders import imagenet2012
from resnext_jax.data.builders.base import Inputs
from resnext_jax.data.builders.imagenet2012 import Imagenet2012
from resnext_jax.data.builders.synsets import imagenet1k
from resnext_jax.errors import DataError
from tests.data import raw_imagenet
from tests.data.raw_imagenet import TRAIN, VALIDATION, tar_bytes, write_ilsvrc, write_tar

# ImageNet's own CMYK and PNG files have other numbers; synsets are theirs.
SPECIAL = {
    "n01739381_2.JPEG": raw_imagenet.cmyk_jpeg(),
    "n02105855_1.JPEG": raw_imagenet.png(),
}
# Of the first validation images, as every published list has them.
VALIDATION_LABELS = [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """ImageNet-1K prepared, its archives, and the images in them by split and name."""

    raw: Path
    data_dir: Path
    images: dict[str, dict[str, bytes]]

    def examples(self, split: str) -> list[dict[str, Any]]:
        """Read a split in its order on disk."""
        builder = tfds.builder_from_directory(self.data_dir / "imagenet2012" / "5.1.0")
        decoders = {"image": tfds.decode.SkipDecoding()}
        return list(builder.as_data_source(split, decoders=decoders))


def create(raw: Path | None, data_dir: Path, *, trust: bool = True) -> Any:
    return Imagenet2012.create(Inputs(manual_dir=raw, trust_archives=trust), str(data_dir))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    raw, data_dir = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("tfds")
    images = write_ilsvrc(raw, per_synset=2, val_images=10, special=SPECIAL)
    builder = create(raw, data_dir)
    builder.check_inputs()
    builder.download_and_prepare()
    return Prepared(raw, data_dir, images)


@pytest.mark.parametrize(("split", "number"), [("train", 2000), ("validation", 10)])
def test_images_are_stored_as_they_are(prepared: Prepared, split: str, number: int) -> None:
    stored = {
        example["file_name"].decode(): example["image"] for example in prepared.examples(split)
    }
    assert len(stored) == number
    assert stored == prepared.images[split]


def test_inks_and_disguised_png_are_stored_as_they_are(prepared: Prepared) -> None:
    stored = {
        example["file_name"].decode(): example["image"] for example in prepared.examples("train")
    }
    assert {name: stored[name] for name in SPECIAL} == SPECIAL


@pytest.mark.parametrize("split", ["train", "validation"])
def test_order_on_disk_is_that_of_tfds(prepared: Prepared, split: str) -> None:
    # tfds orders by the md5 of split and key; its own builder's keys are the file names.
    names = [example["file_name"] for example in prepared.examples(split)]
    assert names == sorted(names, key=lambda name: hashlib.md5(split.encode() + name).hexdigest())


def test_training_labels(prepared: Prepared) -> None:
    for example in prepared.examples("train"):
        assert imagenet1k()[example["label"]] == example["file_name"][:9].decode()


def test_validation_labels(prepared: Prepared) -> None:
    labels = {
        int(example["file_name"][-13:-5]): example["label"]
        for example in prepared.examples("validation")
    }
    assert [labels[number] for number in range(1, 11)] == VALIDATION_LABELS


def test_validation_labels_have_every_class_50_times() -> None:
    labels = imagenet2012.validation_labels()
    assert sorted(labels) == sorted(list(range(1000)) * 50)


def test_is_what_stock_tfds_has(prepared: Prepared, tmp_path: Path) -> None:
    ours = create(prepared.raw, prepared.data_dir).info
    stock = tfds.builder("imagenet2012", data_dir=str(tmp_path))
    assert not isinstance(stock, Imagenet2012)
    assert (ours.name, str(ours.version)) == (stock.name, str(stock.version))
    assert ours.features.to_json() == stock.info.features.to_json()
    assert ours.features["label"].names == stock.info.features["label"].names
    assert ours.supervised_keys == stock.info.supervised_keys
    assert "tensorflow" not in sys.modules


def test_stock_tfds_reads_it(prepared: Prepared) -> None:
    stock = tfds.builder("imagenet2012", data_dir=str(prepared.data_dir))
    assert not isinstance(stock, Imagenet2012)
    assert {name: split.num_examples for name, split in stock.info.splits.items()} == {
        "train": 2000,
        "validation": 10,
    }
    example = stock.as_data_source("validation", file_format="array_record")[0]
    assert example["image"].shape == (8, 8, 3)


def test_needs_as_much_room_as_the_archives(prepared: Prepared, tmp_path: Path) -> None:
    sizes = [(prepared.raw / name).stat().st_size for name in (TRAIN, VALIDATION)]
    assert create(prepared.raw, tmp_path).check_inputs() == sum(sizes)


def test_nothing_is_written_by_checking(prepared: Prepared, tmp_path: Path) -> None:
    create(prepared.raw, tmp_path).check_inputs()
    assert not list(tmp_path.iterdir())


def check_fails(raw: Path | None, tmp_path: Path, sentence: str, *, trust: bool = True) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        create(raw, tmp_path / "tfds", trust=trust).check_inputs()
    assert "\n" not in str(caught.value)


def prepare_fails(raw: Path, tmp_path: Path, sentence: str, *, trust: bool = True) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        create(raw, tmp_path / "tfds", trust=trust).download_and_prepare()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "tfds" / "imagenet2012").iterdir())


def test_folder_of_archives_is_missing(tmp_path: Path) -> None:
    check_fails(None, tmp_path, "ImageNet-1K is prepared from archives .* --manual_dir=FOLDER")
    check_fails(tmp_path / "none", tmp_path, "none, where the archives of ImageNet-1K should be")


@pytest.mark.parametrize("missing", [[TRAIN], [VALIDATION], [TRAIN, VALIDATION]])
def test_archives_are_missing(tmp_path: Path, missing: list[str]) -> None:
    for name in {TRAIN, VALIDATION} - set(missing):
        write_tar(tmp_path / name, [])
    check_fails(tmp_path, tmp_path, f"needs {' and '.join(missing)}, not found in .*image-net.org")


@pytest.mark.parametrize("name", [TRAIN, VALIDATION])
def test_archive_of_another_size(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = {name: (prepared.raw / name).stat().st_size for name in (TRAIN, VALIDATION)}
    monkeypatch.setattr(imagenet2012, "ARCHIVE_BYTES", real | {name: 123_456})
    sentence = f"{name} has {real[name]:,} bytes where the published one has 123,456"
    check_fails(prepared.raw, tmp_path, sentence, trust=False)


def test_published_sizes_and_numbers() -> None:
    assert imagenet2012.ARCHIVE_BYTES == {TRAIN: 147_897_477_120, VALIDATION: 6_744_924_160}
    assert (imagenet2012.TRAIN_IMAGES, imagenet2012.VALIDATION_IMAGES) == (1_281_167, 50_000)


def publish(monkeypatch: pytest.MonkeyPatch, raw: Path, train: int, validation: int) -> None:
    """Pretend that the archives of a folder are the published ones."""
    sizes = {name: (raw / name).stat().st_size for name in (TRAIN, VALIDATION)}
    monkeypatch.setattr(imagenet2012, "ARCHIVE_BYTES", sizes)
    monkeypatch.setattr(imagenet2012, "TRAIN_IMAGES", train)
    monkeypatch.setattr(imagenet2012, "VALIDATION_IMAGES", validation)


def test_published_archives_are_taken_without_trust(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, prepared.raw, 2000, 10)
    builder = create(prepared.raw, tmp_path, trust=False)
    builder.check_inputs()
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == 2000


@pytest.mark.parametrize(
    ("train", "validation", "sentence"),
    [(2001, 10, "2,000 images where .* 2,001"), (2000, 9, "10 images where .* has 9;")],
)
def test_published_archives_with_another_number_of_images(
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: int,
    validation: int,
    sentence: str,
) -> None:
    publish(monkeypatch, prepared.raw, train, validation)
    prepare_fails(prepared.raw, tmp_path, sentence, trust=False)


@pytest.mark.parametrize(
    ("synsets", "sentence"),
    [
        ([*imagenet1k(), "n99999999"], "n99999999 are not among ImageNet-1K's synsets"),
        (imagenet1k()[1:], r"lacks .* 1 of the 1,000 synsets \(n01440764\)"),
        (imagenet1k()[:100], r"lacks .* 900 of the 1,000 synsets \(.* and 897 more\)"),
    ],
)
def test_training_archive_with_other_synsets(
    tmp_path: Path, synsets: Sequence[str], sentence: str
) -> None:
    write_ilsvrc(tmp_path, synsets, val_images=1)
    check_fails(tmp_path, tmp_path, f"{TRAIN} .*{sentence}")
    prepare_fails(tmp_path, tmp_path, sentence)


def write_with(folder: Path, label: int, archive: bytes) -> str:
    """Write archives where that of one class is `archive`; return its synset."""
    synset = imagenet1k()[label]
    usual = {name: tar_bytes([(f"{name}_1.JPEG", b"jpeg")]) for name in imagenet1k()}
    members = usual | {synset: archive}
    write_tar(folder / TRAIN, [(f"{name}.tar", data) for name, data in members.items()])
    raw_imagenet.write_validation(folder, [1])
    return synset


@pytest.mark.parametrize("label", [0, 7])
def test_class_without_training_images(tmp_path: Path, label: int) -> None:
    synset = write_with(tmp_path, label, tar_bytes([]))
    prepare_fails(tmp_path, tmp_path, f"{synset}.tar has no images of synset {synset}")
    if label == 0:  # of the others, only preparing looks inside
        check_fails(tmp_path, tmp_path, f"no images of synset {synset}")


def test_truncated_archive_of_a_class(tmp_path: Path) -> None:
    whole = tar_bytes([(f"{imagenet1k()[3]}_1.JPEG", raw_imagenet.jpeg("")), ("x", b"")])
    synset = write_with(tmp_path, 3, whole[:800])
    prepare_fails(tmp_path, tmp_path, rf"{TRAIN}/{synset}\.tar is not a whole tar archive")


def test_training_archive_of_images(tmp_path: Path) -> None:
    write_ilsvrc(tmp_path, val_images=1)
    write_tar(tmp_path / TRAIN, [("n01440764_1.JPEG", b"")])
    check_fails(tmp_path, tmp_path, "'n01440764_1.JPEG' is not an archive of a synset")


@pytest.mark.parametrize(
    "names",
    [
        ["n01440764_1.JPEG"],
        ["ILSVRC2012_val_00000000.JPEG"],
        ["ILSVRC2012_val_00050001.JPEG"],
        ["ILSVRC2012_val_1.JPEG"],
        ["ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000001.JPEG"],
    ],
)
def test_validation_archive_of_other_images(
    prepared: Prepared, tmp_path: Path, names: list[str]
) -> None:
    (tmp_path / TRAIN).symlink_to(prepared.raw / TRAIN)
    write_tar(tmp_path / VALIDATION, [(name, b"jpeg") for name in names])
    sentence = f"{VALIDATION} is refused: member '{names[-1]}' is not one of the images"
    prepare_fails(tmp_path, tmp_path, sentence)
    if len(names) == 1:  # checking reads the first
        check_fails(tmp_path, tmp_path, sentence)


def test_validation_archive_without_images(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / TRAIN).symlink_to(prepared.raw / TRAIN)
    write_tar(tmp_path / VALIDATION, [])
    check_fails(tmp_path, tmp_path, f"{VALIDATION} has 0 images")


def test_last_validation_image_is_known(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / TRAIN).symlink_to(prepared.raw / TRAIN)
    raw_imagenet.write_validation(tmp_path, [50_000])
    builder = create(tmp_path, tmp_path / "tfds")
    builder.download_and_prepare()
    decoders = {"image": tfds.decode.SkipDecoding()}
    assert builder.as_data_source("validation", decoders=decoders)[0]["label"] == 355
