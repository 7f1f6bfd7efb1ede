"""The embedded digits: every image and label as scikit-learn has them, and a fixed split."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from resnext_jax.data.builders.digits import test_indices as split_off_test
from resnext_jax.data.decode import decode_rgb
from resnext_jax.data.sources import Source, open_source

# sha256 of the test indices as little-endian int64: the split of version 1.0.0, for ever.
GOLDEN_SPLIT = "5a4f02c1bbd43dc3f194f0fb8516ddd513121fa3066a8b31771bd1fe3d2fe0c4"


def originals() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's images `[1797, 8, 8]`, grey values 0..16, and labels."""
    data = sklearn.datasets.load_digits()
    return data.images, data.target


def as_sortable(image: np.ndarray, label: int) -> tuple[int, bytes]:
    return int(label), np.asarray(image, np.uint8).reshape(8, 8).tobytes()


def contents(source: Source) -> list[tuple[int, bytes]]:
    examples = [source.examples[index] for index in range(len(source))]
    return [
        as_sortable(decode_rgb(example["image"])[..., 0], example["label"]) for example in examples
    ]


def test_has_all_images_in_two_splits(data_dir: Path) -> None:
    train = open_source("digits", "train", str(data_dir))
    test = open_source("digits", "test", str(data_dir))
    assert (len(train), len(test)) == (1438, 359)
    assert len(train) + len(test) == len(originals()[0]) == 1797


def test_is_prepared_as_array_record(data_dir: Path) -> None:
    open_source("digits", "test", str(data_dir))
    folder = data_dir / "digits" / "1.0.0"
    assert sorted(path.name for path in folder.glob("digits-*")) == [
        "digits-test.array_record-00000-of-00001",
        "digits-train.array_record-00000-of-00001",
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_the_originals(data_dir: Path, split: str) -> None:
    images, labels = originals()
    test = set(split_off_test(labels).tolist())
    # 16 grey levels above 0, spread over 0..255; halves do not occur but 127.5 (grey 8).
    scaled = np.rint(images * 255 / 16).astype(np.uint8)
    assert (int(np.min(scaled)), int(np.max(scaled)), len(np.unique(scaled))) == (0, 255, 17)
    expected = [
        as_sortable(scaled[index], labels[index])
        for index in range(len(images))
        if (index in test) == (split == "test")
    ]
    assert sorted(contents(open_source("digits", split, str(data_dir)))) == sorted(expected)


def test_images_are_grey_and_classes_in_order(data_dir: Path) -> None:
    source = open_source("digits", "test", str(data_dir))
    assert source.class_names == tuple("0123456789")
    assert source.num_classes == 10
    example = source.examples[0]
    assert example.keys() == {"image", "label"}
    image = decode_rgb(example["image"])
    assert (image.shape, image.dtype.name) == ((8, 8, 3), "uint8")
    assert (image == image[..., :1]).all()


def test_split_is_golden() -> None:
    indices = split_off_test(originals()[1])
    assert hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest() == GOLDEN_SPLIT


def test_split_is_stratified_and_without_repeats() -> None:
    labels = originals()[1]
    indices = split_off_test(labels)
    assert (np.diff(indices) > 0).all()  # sorted, none twice
    assert indices[0] >= 0
    assert indices[-1] < len(labels)
    for label, members in enumerate(np.bincount(labels)):
        # The whole number nearest to a fifth.
        assert abs((labels[indices] == label).sum() - members / 5) <= 0.5


def test_split_does_not_depend_on_the_label_values() -> None:
    labels = np.asarray([3, 3, 3, 3, 3, 8, 8, 8, 8, 8])
    indices = split_off_test(labels)
    assert labels[indices].tolist() == [3, 8]
    np.testing.assert_array_equal(split_off_test(labels + 90), indices)


def test_opening_again_reads_what_is_prepared(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = contents(open_source("digits", "train", str(data_dir)))
    files = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}

    def refuse() -> None:
        raise AssertionError("prepared a second time")

    monkeypatch.setattr(sklearn.datasets, "load_digits", refuse)
    assert contents(open_source("digits", "train", str(data_dir))) == first
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == files


def test_order_is_the_same_when_prepared_elsewhere(data_dir: Path, tmp_path: Path) -> None:
    here = open_source("digits", "train", str(data_dir))
    elsewhere = open_source("digits", "train", str(tmp_path))
    assert contents(here) == contents(elsewhere)


def test_preparing_leaves_stdout_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_source("digits", "test", str(tmp_path))
    assert capfd.readouterr().out == ""
