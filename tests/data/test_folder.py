"""Folders of images, one per class: what is an image, which class it is, what is refused."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from resnext_jax.data.builders.base import Builder, Inputs
from resnext_jax.data.builders.copies import RECORD
from resnext_jax.data.builders.folder import Folder, Listing, list_images
from resnext_jax.data.file_names import SUFFIXES
from resnext_jax.data.prepare import prepare
from resnext_jax.errors import DataError
from tests.data.images import encoded
from tests.data.raw import write_folder

IMAGE = encoded(Image.new("RGB", (3, 2), (77, 77, 77)), "PNG")
# Names of our splits and of their folders.
SPLITS = {"train": "train", "validation": "val"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a cat and a dog for training and for validation."""
    for split in SPLITS.values():
        for name in ("cat", "dog"):
            add(tmp_path / "pets" / split / name / "1.png")
    return tmp_path / "pets"


def add(path: Path, data: bytes = IMAGE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def names(listing: Listing, split: str = "train") -> list[tuple[str, int]]:
    return [(image.name, image.label) for image in listing.images[split]]


def prepared(folder: Path, data_dir: Path) -> Builder:
    return prepare("folder", Inputs(manual_dir=folder), str(data_dir))


def encoded_examples(builder: tfds.core.DatasetBuilder, split: str) -> list[dict[str, Any]]:
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(builder.as_data_source(split=split, decoders=decoders))


def refusal(folder: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        list_images(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("split", SPLITS)
def test_images_are_stored_as_they_are(tmp_path: Path, split: str) -> None:
    written = write_folder(tmp_path / "raw", classes=("dog", "cat", "Emu"), per_class=4)
    builder = prepared(tmp_path / "raw", tmp_path / "data")
    label = builder.info.features["label"]
    assert label.names == ["Emu", "cat", "dog"]
    found = {}
    for example in encoded_examples(builder, split):
        name = example["file_name"].decode()
        found[name] = example["image"]
        assert label.names[example["label"]] == name.split("/")[0]
    assert found == written[SPLITS[split]]
    assert len(found) == 12


def test_has_the_features_of_imagenet(root: Path, tmp_path: Path) -> None:
    info = prepared(root, tmp_path / "data").info
    assert set(info.features) == {"image", "label", "file_name"}
    assert info.features["image"].shape == (None, None, 3)
    assert info.supervised_keys == ("image", "label")
    assert set(info.splits) == {"train", "validation"}


def test_finds_images_by_any_extension_in_any_case(root: Path) -> None:
    for extension in SUFFIXES:
        add(root / "train" / "cat" / f"2{extension}")
        add(root / "train" / "cat" / f"3{extension.upper()}")
    assert len(list_images(root).images["train"]) == 2 + 2 * len(SUFFIXES)


def test_passes_over_what_is_no_image(root: Path) -> None:
    before = names(list_images(root))
    for name in ("notes.txt", "image.jpg.part", "jpg", ".hidden.jpg", "._1.png", "Thumbs.db"):
        add(root / "train" / "cat" / name)
    add(root / "train" / "cat" / ".cache" / "2.png")
    add(root / "train" / ".checkpoints" / "2.png")
    add(root / "train" / "cat" / "@eaDir" / "1.png" / "SYNOPHOTO_THUMB_M.jpg")
    add(root / "train" / "@eaDir" / "1.png")
    add(root / "val" / "__MACOSX" / "1.png")
    add(root / "@eaDir" / "cat" / "1.png")
    add(root / "train" / "loose.png")
    add(root / "test" / "cat" / "2.png")  # val is there
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    assert names(list_images(root)) == before == [("cat/1.png", 0), ("dog/1.png", 1)]


def test_every_start_counts_what_is_ignored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(root, tmp_path / "data")
    assert "ignored" not in capsys.readouterr().err
    for name in ("a.jfif", "b.AVIF", "more/c.avif", "d.heic", "notes", "Thumbs.db", ".hidden.txt"):
        add(root / "train" / "cat" / name)
    add(root / "val" / "dog" / "e.dng")
    add(root / "val" / "loose.png")
    add(root / "val" / "loose.txt")
    for _ in range(2):
        prepared(root, tmp_path / "data")
        assert (
            "ignored: 8 files (.avif 2, .dng 1, .heic 1, .jfif 1, .txt 1, no extension 1, "
            f"1 image outside the classes' folders) in {root}, where images end in .jpg, "
        ) in capsys.readouterr().err


def test_a_single_class_is_noted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the folder is one level too deep."""
    for split in SPLITS.values():
        (root / split).rename(root / "all")
        (root / split).mkdir()
        (root / "all").rename(root / split / "all")
    note = f"note: {root}/train has only one class, 'all', so there is nothing to distinguish;"
    for _ in range(2):
        assert prepared(root, tmp_path / "data").info.features["label"].names == ["all"]
        assert note in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "noted"),
    [
        (range(12), "label 2 is class 10; weights that"),
        ((1, 2, 3, 4, 5, 50, 6), "label 5 is class 50; weights that"),
        (range(10), ""),
        (["00", "01", "10"], ""),
        (["1", "10", "2", "other"], ""),
    ],
)
def test_numbers_that_are_in_order_as_text_only_are_noted(
    tmp_path: Path, classes: Any, noted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in SPLITS.values():
        for name in classes:
            add(tmp_path / "raw" / split / str(name) / "1.png")
    for _ in range(2):
        Folder.create(Inputs(manual_dir=tmp_path / "raw"), str(tmp_path / "data"))
        written = capsys.readouterr().err
        assert ("are numbers" in written) == bool(noted)
        assert noted in written


def test_finds_images_in_folders_in_a_class(root: Path) -> None:
    add(root / "train" / "cat" / "b" / "deep" / "1.png")
    add(root / "train" / "cat" / "a" / "1.png")
    assert names(list_images(root)) == [
        ("cat/1.png", 0),
        ("cat/a/1.png", 0),
        ("cat/b/deep/1.png", 0),
        ("dog/1.png", 1),
    ]


def test_follows_links(root: Path, tmp_path: Path) -> None:
    add(tmp_path / "elsewhere" / "2.png", IMAGE + b" ")
    (root / "train" / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "train" / "emu").symlink_to(tmp_path / "elsewhere")
    listing = list_images(root)
    assert listing.classes == ("cat", "dog", "emu")
    assert ("cat/link.png", 0) in names(listing)
    assert ("emu/2.png", 2) in names(listing)
    examples = encoded_examples(prepared(root, tmp_path / "data"), "train")
    images = {example["file_name"]: example["image"] for example in examples}
    assert images[b"cat/link.png"] == images[b"emu/2.png"] == IMAGE + b" "


@pytest.mark.parametrize("name", ["2.png", "notes.txt", "more"])
def test_refuses_a_broken_link(root: Path, name: str) -> None:
    (root / "train" / "cat" / name).symlink_to(root / "nowhere")
    assert f"{root}/train/cat/{name} is a broken link" in refusal(root)


def test_refuses_a_class_that_is_a_broken_link(root: Path) -> None:
    (root / "val" / "emu").symlink_to(root / "nowhere")
    assert f"{root}/val/emu is a broken link" in refusal(root)


def test_refuses_a_folder_that_contains_itself(root: Path) -> None:
    (root / "train" / "cat" / "all").symlink_to(root / "train")
    assert "contains itself by a link" in refusal(root)


@pytest.mark.parametrize("name", ["validation", "valid", "Valid", "dev"])
def test_takes_other_folders_for_validation(
    root: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "val").rename(root / name)
    add(root / "test" / "cat" / "only.png")
    builder = prepared(root, tmp_path / "data")
    assert builder.info.splits["validation"].num_examples == 2
    assert f"note: the validation images are {root / name}\n" in capsys.readouterr().err


def test_every_start_says_that_test_images_are_validated_on(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "val").rename(root / "Test")
    (root / "train").rename(root / "Train")
    add(root / "drafts" / "cat" / "1.png")  # has not the same classes
    for _ in range(2):
        builder = prepared(root, tmp_path / "data")
        assert builder.info.splits["validation"].num_examples == 2
        written = capsys.readouterr().err
        assert written.count("note: ") == 1
        assert f"{root} has no folder of validation images; those in Test are used" in written


@pytest.mark.parametrize("names", [("val", "dev"), ("Valid", "val"), ("test", "holdout")])
def test_asks_which_images_to_validate_on(root: Path, names: tuple[str, str]) -> None:
    (root / "val").rename(root / names[0])
    shutil.copytree(root / names[0], root / names[1])
    message = refusal(root)
    assert f"may hold the validation images: {', '.join(sorted(names))};" in message or (
        f"may hold the validation images: {', '.join(names)};" in message
    )
    assert "name the one that is meant val" in message


def test_asks_which_images_to_train_on(root: Path) -> None:
    shutil.copytree(root / "train", root / "TRAIN")
    assert "may hold the training images: TRAIN, train;" in refusal(root)


def test_says_nothing_of_val(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(root, tmp_path / "data")
    assert "note:" not in capsys.readouterr().err


def test_labels_are_those_of_training_where_validation_lacks_a_class(root: Path) -> None:
    (root / "val" / "cat" / "1.png").unlink()
    (root / "val" / "cat").rmdir()
    assert names(list_images(root), "validation") == [("dog/1.png", 1)]


def test_tells_how_to_give_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare("folder", data_dir=str(tmp_path))
    assert "--config.data.manual_dir=FOLDER" in str(caught.value)
    assert "--manual_dir=FOLDER" in str(caught.value)


def test_refuses_a_folder_that_is_not_laid_out(root: Path) -> None:
    assert f"{root}/none does not exist" in refusal(root / "none")
    (root / "train").rename(root / "training")
    assert f"{root} has no folder train;" in refusal(root)
    (root / "val").rename(root / "values")
    assert f"{root} has no folder val (nor valid, validation, dev nor test);" in refusal(root)


@pytest.mark.parametrize("split", SPLITS.values())
def test_refuses_images_without_class_folders(root: Path, split: str) -> None:
    (root / split).rename(root / "away")
    add(root / split / "1.png")
    assert f"folder {root}/{split} has no class folders;" in refusal(root)


@pytest.mark.parametrize("split", SPLITS.values())
def test_names_a_class_without_images(root: Path, split: str) -> None:
    (root / split / "dog" / "1.png").rename(root / split / "dog" / "1.txt")
    assert f"class folder {root}/{split}/dog has no images" in refusal(root)


def test_refuses_a_class_of_validation_only(root: Path) -> None:
    add(root / "val" / "emu" / "1.png")
    told = refusal(root)
    assert f"class folder {root}/val/emu has no counterpart in {root}/train;" in told


@pytest.mark.parametrize("name", ["a\nb", " cat", "cat\t", "c\udcffat"])
def test_refuses_class_names_that_cannot_be_stored(root: Path, name: str) -> None:
    add(root / "train" / name / "1.png")
    told = refusal(root)
    assert f"class folder {name!r} in {root}/train" in told


def test_refuses_file_names_that_cannot_be_stored(root: Path) -> None:
    add(root / "train" / "cat" / "c\udcffat.png")
    assert "has a name that is not UTF-8" in refusal(root)


def test_stores_other_names_as_they_are(root: Path, tmp_path: Path) -> None:
    add(root / "train" / "Große Katze, 大" / "bild 1 (ü).png")
    builder = prepared(root, tmp_path / "data")
    assert builder.info.features["label"].names == ["Große Katze, 大", "cat", "dog"]
    found = [example["file_name"].decode() for example in encoded_examples(builder, "train")]
    assert "Große Katze, 大/bild 1 (ü).png" in found
    assert prepared(root, tmp_path / "data").info.features["label"].names[0] == "Große Katze, 大"


def test_tells_which_image_vanished(root: Path, tmp_path: Path) -> None:
    builder = Folder.create(Inputs(manual_dir=root), str(tmp_path / "data"))
    (root / "val" / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"val/dog/1.png cannot be read \(No such file"):
        builder.download_and_prepare()
    assert not Path(builder.data_dir).exists()


def test_is_prepared_once(root: Path, tmp_path: Path) -> None:
    first = prepared(root, tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    second = prepared(root, tmp_path / "data")
    assert second.data_dir == first.data_dir
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == times


def enlarge(root: Path) -> None:
    path = root / "train" / "cat" / "1.png"
    status = path.stat()
    path.write_bytes(IMAGE + b" ")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rewrite(root: Path) -> None:
    (root / "train" / "cat" / "1.png").write_bytes(IMAGE[:-1] + b" ")


def rename(root: Path) -> None:
    (root / "train" / "cat" / "1.png").rename(root / "train" / "cat" / "2.png")


def move(root: Path) -> None:
    (root / "train" / "cat" / "1.png").rename(root / "train" / "dog" / "2.png")
    add(root / "train" / "cat" / "3.png")


@pytest.mark.parametrize(
    ("change", "same_run"), [(enlarge, True), (rewrite, True), (rename, False), (move, False)]
)
def test_a_changed_folder_is_prepared_again(
    root: Path, tmp_path: Path, change: Any, same_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repaired image belongs to the run that stopped for it; other names or labels do not."""
    before = prepared(root, tmp_path / "data")
    change(root)
    capsys.readouterr()
    after = prepared(root, tmp_path / "data")
    assert before.data_dir != after.data_dir
    assert (after.data_versions[0] == before.data_versions[0]) == same_run
    named = "changed since they were prepared: train/cat/1.png; preparing again"
    assert (named in capsys.readouterr().err) == same_run
    new = {example["file_name"]: example["image"] for example in encoded_examples(after, "train")}
    files = {f"{path.parent.name}/{path.name}": path for path in (root / "train").glob("*/*")}
    assert new == {name.encode(): path.read_bytes() for name, path in files.items()}


def moved_in_time(root: Path) -> Path:
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        os.utime(path, ns=(0, 10**18 + number))
    return root


def copied(root: Path) -> Path:
    return moved_in_time(shutil.copytree(root, root.parent / "copy" / root.name))


def renamed(root: Path) -> Path:
    return root.rename(root.parent / "animals")


def other_case(root: Path) -> Path:
    (root / "val").rename(root / "Validation")
    return root


@pytest.mark.parametrize("change", [moved_in_time, copied, renamed, other_case])
def test_the_same_images_are_found_wherever_they_are(
    root: Path, tmp_path: Path, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared(root, tmp_path / "data")
    now = change(root)
    read: list[Path] = []
    real = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    for hashed in (change in (moved_in_time, copied), False):
        after = prepared(now, tmp_path / "data")
        assert after.data_dir == before.data_dir
        assert after.data_versions[0] == before.data_versions[0]
        # Only what has another time, and once.
        assert (len(list(filter(lambda path: path.suffix == ".png", read))) > 0) == hashed
        read.clear()


def test_a_copy_made_by_an_earlier_version_is_found(root: Path, tmp_path: Path) -> None:
    before = prepared(root, tmp_path / "data")
    (Path(before.data_dir) / RECORD).unlink()  # they had none
    after = prepared(renamed(root), tmp_path / "data")
    assert after.data_dir == before.data_dir
    # What a run of that version has written down.
    assert (
        after.data_versions[1] == f"pets-{list_images(root.parent / 'animals').digest[:12]}/1.0.0"
    )


def test_a_copy_whose_record_is_damaged_is_not_trusted(root: Path, tmp_path: Path) -> None:
    before = prepared(root, tmp_path / "data")
    (Path(before.data_dir) / RECORD).write_bytes(b"PK")
    assert prepared(moved_in_time(root), tmp_path / "data").data_dir != before.data_dir


def test_another_folder_with_the_same_names_is_no_changed_one(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = prepared(root, tmp_path / "data")
    for path in root.rglob("*.png"):
        path.write_bytes(IMAGE + b"other")
    capsys.readouterr()
    assert prepared(root, tmp_path / "data").data_dir != before.data_dir
    assert "changed" not in capsys.readouterr().err


def test_folders_of_one_name_do_not_collide(tmp_path: Path) -> None:
    folders = [tmp_path / parent / "My Pets!" for parent in ("a", "b")]
    for number, folder in enumerate(folders, start=1):
        write_folder(folder, per_class=number)
    builders = [prepared(folder, tmp_path / "data") for folder in folders]
    sizes = [builder.info.splits["train"].num_examples for builder in builders]
    assert sizes == [2, 4]
    for builder, folder in zip(builders, folders, strict=True):
        digest = list_images(folder).digest
        assert builder.builder_config.name == f"my_pets-{digest[:12]}"
        assert builder.data_dir == f"{tmp_path}/data/folder/my_pets-{digest[:12]}/1.0.0"


def test_a_data_source_can_be_sent_to_another_process(root: Path, tmp_path: Path) -> None:
    source = prepared(root, tmp_path / "data").as_data_source("train")
    # Without the names of the files, of which there may be millions.
    assert b"1.png" not in pickle.dumps(source)
    again = pickle.loads(pickle.dumps(source))
    assert [example["file_name"] for example in again] == [
        example["file_name"] for example in source
    ]
