"""ImageNet-5K prepared from small archives of the full ImageNet."""

import collections
import dataclasses
import gzip
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from resnext_jax.data.builders import imagenet2012
from resnext_jax.data.builders.base import Inputs
from resnext_jax.data.builders.imagenet5k import Imagenet5k, find_synset_archives
from resnext_jax.data.builders.synset_archives import SynsetArchive
from resnext_jax.data.builders.synsets import (
    imagenet1k,
    read_synsets,
    synsets_hash,
    write_synsets,
)
from resnext_jax.errors import DataError
from tests.data.raw_imagenet import (
    VALIDATION,
    imagenet22k_counts,
    jpeg,
    tar_bytes,
    write_imagenet22k_folder,
    write_imagenet22k_whole,
    write_tar,
    write_validation,
)

# 4,003 other synsets, three too many: the last of those with one image are not chosen.
OTHERS = {f"n9{number:07}": 1 for number in range(4003)} | {"n90004002": 3, "n90004001": 2}
CHOSEN_OTHERS = ["n90004002", "n90004001", *(f"n9{number:07}" for number in range(3998))]
# Synsets of ImageNet-1K that the large archive lacks, and one of which it has other images.
LACKING, REPLACED = ("n01440764", "n15075141"), "n01443537"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """ImageNet-5K prepared, and the bytes that it was said to take."""

    folder: Path
    estimate: int

    def builder(self) -> Any:
        """Open it without our builder."""
        return tfds.builder_from_directory(self.folder)

    def examples(self, split: str) -> list[dict[str, Any]]:
        """Read a split in its order on disk."""
        decoders = {"image": tfds.decode.SkipDecoding()}
        return list(self.builder().as_data_source(split, decoders=decoders))


def create(raw: Path | None, data_dir: Path, synsets: Path | None = None) -> Any:
    inputs = Inputs(manual_dir=raw, synsets=synsets, trust_archives=True)
    return Imagenet5k.create(inputs, str(data_dir))


def prepare(raw: Path, data_dir: Path, synsets: Path | None = None) -> Prepared:
    builder = create(raw, data_dir, synsets)
    estimate = builder.check_inputs()
    with pytest.MonkeyPatch.context() as patch:
        # Fourteen million headers are to be read once only.
        patch.setattr(SynsetArchive, "count", None)
        builder.download_and_prepare()
    return Prepared(data_dir / "imagenet5k" / "1.0.0", estimate)


@pytest.fixture(scope="module")
def raw_loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("loose")
    (raw / "fall11").mkdir()
    write_imagenet22k_folder(raw / "fall11", imagenet22k_counts(OTHERS))
    write_validation(raw, range(1, 11))
    return raw


@pytest.fixture(scope="module")
def raw_whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("whole")
    counts = imagenet22k_counts(OTHERS)
    loose = {synset: counts.pop(synset) for synset in LACKING} | {REPLACED: 4}
    write_imagenet22k_whole(raw / "winter21_whole.tar", counts, prefix="winter21_whole/")
    write_imagenet22k_folder(raw, loose)
    write_validation(raw, range(1, 11))
    # Those of the challenge may lie beside it.
    write_tar(raw / "ILSVRC2012_img_train.tar", [("no images, as yet", b"")])
    (raw / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(b"tools"))
    return raw


@pytest.fixture(scope="module")
def from_loose(raw_loose: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(raw_loose, tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def from_whole(raw_whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(raw_whole, tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "synsets.txt"
    others = ["n90004000", "n90004002"]  # by number of images, the first would not be chosen
    path.write_text("\n".join(["# 1,002 synsets", *imagenet1k(), *others]))
    return path


@pytest.fixture(scope="module")
def from_list(raw_whole: Path, listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(raw_whole, tmp_path_factory.mktemp("tfds"), listed)


@pytest.mark.parametrize("prepared", ["from_loose", "from_whole"])
def test_classes_are_imagenet1k_and_those_with_most_images(
    prepared: str, request: pytest.FixtureRequest
) -> None:
    builder = request.getfixturevalue(prepared).builder()
    label = builder.info.features["label"]
    assert label.num_classes == 5000
    assert label.names == [*imagenet1k(), *CHOSEN_OTHERS]


def test_training_images_are_all_of_the_chosen_synsets(from_loose: Prepared) -> None:
    examples = from_loose.examples("train")
    names = [*imagenet1k(), *CHOSEN_OTHERS]
    counts = collections.Counter(example["label"] for example in examples)
    assert counts == dict.fromkeys(range(5000), 1) | {1000: 3, 1001: 2}
    for example in examples:
        assert example["file_name"].startswith(f"{names[example['label']]}_".encode())
        assert example["image"] == jpeg("of the full ImageNet")


def test_loose_archives_fill_in_and_replace(from_whole: Prepared) -> None:
    counts = collections.Counter(example["label"] for example in from_whole.examples("train"))
    labels = {synset: label for label, synset in enumerate(imagenet1k())}
    assert [counts[labels[synset]] for synset in (*LACKING, REPLACED)] == [1, 1, 4]
    assert sum(counts.values()) == 5003 + 3


@pytest.mark.parametrize("prepared", ["from_loose", "from_whole", "from_list"])
def test_validation_is_imagenet1ks(prepared: str, request: pytest.FixtureRequest) -> None:
    examples = request.getfixturevalue(prepared).examples("validation")
    labels = imagenet2012.validation_labels()
    assert sorted(example["file_name"][-7:-5] for example in examples) == [
        f"{number:02}".encode() for number in range(1, 11)
    ]
    for example in examples:
        assert example["label"] == labels[int(example["file_name"][-13:-5]) - 1]
        assert example["image"] == jpeg(example["file_name"].decode())


def test_list_of_classes_is_beside_the_data(from_whole: Prepared) -> None:
    path = from_whole.folder / "synsets.txt"
    ones = [(synset, 4 if synset == REPLACED else 1) for synset in imagenet1k()]
    others = [(synset, OTHERS[synset]) for synset in CHOSEN_OTHERS]
    assert read_synsets(path) == ones + others
    assert synsets_hash([*imagenet1k(), *CHOSEN_OTHERS]) in path.read_text()
    assert "# images: 5006\n" in path.read_text()


def test_features_are_imagenet1ks_but_for_the_classes(from_loose: Prepared, tmp_path: Path) -> None:
    ours = from_loose.builder().info
    stock = tfds.builder("imagenet2012", data_dir=str(tmp_path)).info
    assert ours.features.keys() == stock.features.keys()
    for name in ("image", "file_name"):
        assert ours.features[name].to_json() == stock.features[name].to_json()
    assert (ours.name, str(ours.version)) == ("imagenet5k", "1.0.0")
    assert "tensorflow" not in sys.modules


def test_given_list_decides_the_classes(from_list: Prepared) -> None:
    label = from_list.builder().info.features["label"]
    assert label.num_classes == 1002
    assert label.names == [*imagenet1k(), "n90004000", "n90004002"]
    counts = collections.Counter(example["label"] for example in from_list.examples("train"))
    assert (len(counts), counts[1000], counts[1001]) == (1002, 1, 3)
    assert read_synsets(from_list.folder / "synsets.txt")[1000:] == [
        ("n90004000", 1),
        ("n90004002", 3),
    ]


def test_list_beside_the_data_gives_the_same_data_again(
    from_list: Prepared, raw_whole: Path, tmp_path: Path
) -> None:
    again = prepare(raw_whole, tmp_path, from_list.folder / "synsets.txt")
    assert again.examples("train") == from_list.examples("train")
    files = [(prepared.folder / "synsets.txt").read_bytes() for prepared in (again, from_list)]
    assert files[0] == files[1]


def test_own_builder_reads_what_is_prepared(from_list: Prepared) -> None:
    builder = create(None, from_list.folder.parent.parent)
    builder.download_and_prepare()  # nothing to do, so it needs no archives
    assert builder.info.features["label"].num_classes == 1002
    assert len(builder.as_data_source("train")) == 1002 + 2 + 3


def test_needs_as_much_room_as_the_chosen_archives(
    from_loose: Prepared, from_list: Prepared, raw_loose: Path
) -> None:
    validation = (raw_loose / VALIDATION).stat().st_size
    archive = len(tar_bytes([("x", b"")]))  # tar files are padded to the same size
    assert from_loose.estimate == validation + 5000 * archive
    assert from_list.estimate == validation + 1002 * archive


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        """Claim to be one."""
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_counting_shows_progress_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    write_small(tmp_path)
    monkeypatch.setattr(sys, "stderr", stream)
    check_fails(tmp_path, tmp_path, "lacks images")
    assert ("Counting images" in stream.getvalue()) == stream.isatty()


def write_small(folder: Path) -> None:
    """Write too little: three synsets of ImageNet-1K, one other, one validation image."""
    counts = {"n01440764": 1, "n01443537": 0, "n01484850": 1, "n90000000": 2}
    write_imagenet22k_folder(folder, counts)
    write_validation(folder, [1])


def write_list(path: Path, *others: str) -> Path:
    write_synsets(path, [(synset, 1) for synset in (*imagenet1k(), *others)])
    return path


def check_fails(
    raw: Path | None, tmp_path: Path, sentence: str, synsets: Path | None = None
) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        create(raw, tmp_path / "tfds", synsets).check_inputs()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tfds").exists()


def test_folder_of_archives_is_missing(tmp_path: Path) -> None:
    check_fails(None, tmp_path, "ImageNet-5K is prepared from archives")
    check_fails(tmp_path, tmp_path, f"ImageNet-5K needs {VALIDATION}, not found in")


def test_validation_archive_of_another_size(tmp_path: Path) -> None:
    write_small(tmp_path)
    builder = Imagenet5k.create(Inputs(manual_dir=tmp_path), str(tmp_path / "tfds"))
    with pytest.raises(DataError, match="where the published one has 6,744,924,160"):
        builder.check_inputs()


def test_validation_archive_of_other_images(tmp_path: Path) -> None:
    write_small(tmp_path)
    write_tar(tmp_path / VALIDATION, [("ILSVRC2012_test_00000001.JPEG", b"")])
    check_fails(tmp_path, tmp_path, "'ILSVRC2012_test_00000001.JPEG' is not one of the images")


def test_imagenet1k_synsets_without_images(tmp_path: Path) -> None:
    write_small(tmp_path)
    missing = [name for name in imagenet1k() if name not in ("n01440764", "n01484850")]
    names = f"{', '.join(missing[:50])} and 948 more"
    check_fails(tmp_path, tmp_path, rf"998 of the 1,000 ImageNet-1K synsets \({names}\)")


def test_the_few_imagenet1k_synsets_that_a_release_lacks_are_all_named(tmp_path: Path) -> None:
    counts = imagenet22k_counts(4000)
    lacking = [imagenet1k()[label] for label in (1, 5, 400, 401, 999)]
    for synset in lacking:
        del counts[synset]
    write_imagenet22k_whole(tmp_path / "winter21_whole.tar", counts)
    write_validation(tmp_path, [1])
    sentence = rf"lacks images of 5 of .* \({', '.join(lacking)}\); put their archives"
    check_fails(tmp_path, tmp_path, sentence)


def test_too_few_other_synsets(tmp_path: Path) -> None:
    write_imagenet22k_whole(tmp_path / "fall11_whole.tar", imagenet22k_counts(7))
    write_validation(tmp_path, [1])
    check_fails(tmp_path, tmp_path, "has 7 synsets with images .* 4,000 are to be chosen")


def test_listed_synsets_without_archive(tmp_path: Path) -> None:
    write_imagenet22k_whole(tmp_path / "fall11_whole.tar", imagenet22k_counts(2))
    write_validation(tmp_path, [1])
    lacking = ["n90000005", "n90000003", "n90000002", "n90000004"]
    synsets = write_list(tmp_path / "list", "n90000001", *lacking)
    names = ", ".join(lacking)
    sentence = rf"4 of the synsets in .*list have no archive in .* \({names}\); put"
    check_fails(tmp_path, tmp_path, sentence, synsets)


def test_listed_synset_without_images(tmp_path: Path) -> None:
    counts = imagenet22k_counts({"n90000000": 0})
    write_imagenet22k_whole(tmp_path / "fall11_whole.tar", counts)
    write_validation(tmp_path, [1])
    synsets = write_list(tmp_path / "list", "n90000000")
    check_fails(tmp_path, tmp_path, "n90000000.tar has no images of synset n90000000", synsets)


def test_list_that_is_not_one(tmp_path: Path) -> None:
    write_small(tmp_path)
    check_fails(tmp_path, tmp_path, "cannot be read", tmp_path / "none")


def test_truncated_archive_of_a_synset(tmp_path: Path) -> None:
    write_small(tmp_path)
    path = tmp_path / "n01484850.tar"
    path.write_bytes(path.read_bytes()[:800])
    check_fails(tmp_path, tmp_path, r"n01484850\.tar is not a whole tar archive")


def test_no_archives_of_the_full_imagenet(tmp_path: Path) -> None:
    write_validation(tmp_path, [1])
    (tmp_path / "notes.txt").touch()
    check_fails(tmp_path, tmp_path, "no archives of the full ImageNet are in")


def test_two_whole_archives(tmp_path: Path) -> None:
    for name in ("fall11_whole.tar", "winter21_whole.tar"):
        write_imagenet22k_whole(tmp_path / name, {"n90000000": 1})
    with pytest.raises(DataError, match=r"fall11_whole\.tar and winter21_whole\.tar; move all but"):
        find_synset_archives(tmp_path)


@pytest.mark.parametrize("name", ["winter21_whole.tar.gz", "whole.tgz", "fall11_whole.tar"])
def test_compressed_whole_archive(tmp_path: Path, name: str) -> None:
    write_imagenet22k_folder(tmp_path, {"n90000000": 1})
    (tmp_path / name).write_bytes(gzip.compress(tar_bytes([])))
    with pytest.raises(DataError, match=f"{name} is compressed .* gunzip"):
        find_synset_archives(tmp_path)
    # What was unpacked beside it is taken.
    write_imagenet22k_whole(tmp_path / "unpacked.tar", {"n90000001": 1})
    assert find_synset_archives(tmp_path).keys() == {"n90000000", "n90000001"}
