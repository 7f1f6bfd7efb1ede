"""Decoded images by index, and marks on those that cannot be decoded."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from resnext_jax.data import reading
from resnext_jax.data.reading import DecodedExamples
from tests.data.deep_files import png
from tests.data.images import noise, noise_file, noise_source


def test_an_image_is_decoded() -> None:
    example = DecodedExamples(noise_source(3))[1]
    np.testing.assert_array_equal(example["image"], noise(4, 4, seed=1))
    kinds = {name: np.asarray(value).dtype.name for name, value in example.items()}
    marks = {"bad_index": "int64", "replaced": "bool", "dim_index": "int64"}
    assert kinds == {"image": "uint8", "label": "int32"} | marks
    assert (example["label"], example["bad_index"], example["replaced"]) == (1, -1, False)


def test_a_bad_image_is_marked() -> None:
    example = DecodedExamples(noise_source(3, bad={1: b"?"}))[1]
    assert (example["bad_index"], example["replaced"]) == (1, False)
    assert not example["image"].any()


def test_a_bad_image_is_replaced() -> None:
    example = DecodedExamples(noise_source(3, bad={1: b"?", 2: b""}), replace=True)[1]
    assert (example["label"], example["bad_index"], example["replaced"]) == (0, 1, True)
    np.testing.assert_array_equal(example["image"], noise(4, 4, seed=0))


def test_a_dim_image_is_marked_also_where_it_replaces_another() -> None:
    dim = png(np.full((4, 4), 4095, np.uint16))
    examples = DecodedExamples(noise_source(3, bad={1: b"?", 2: dim}), replace=True)
    assert [examples[index]["dim_index"] for index in range(3)] == [-1, 2, 2]
    assert examples[1]["label"] == 2


def test_the_search_for_another_image_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LARGEST_GAP", 2)
    examples = DecodedExamples(noise_source(6, bad=dict.fromkeys((1, 2, 3), b"")), replace=True)
    assert examples[2]["label"] == 4
    assert (examples[1]["bad_index"], examples[1]["replaced"]) == (1, False)


@pytest.mark.parametrize(("height", "width"), [(1, 51), (510, 10)])
def test_an_image_too_long_and_thin_is_bad(height: int, width: int) -> None:
    """Its short side made 256, it would fill the memory."""
    thin = {1: noise_file(height, width)}
    examples = DecodedExamples(noise_source(3, bad=thin))
    assert examples[1]["bad_index"] == 1
    assert f"is {width}x{height} pixels, too long and thin" in examples.explain(1)
    assert DecodedExamples(noise_source(3, bad={1: noise_file(1, 50)}))[1]["bad_index"] == -1


class Unreadable:
    """Examples on a disk that fails, for a while."""

    def __init__(self, source: Any, failures: int) -> None:
        self._examples, self._failures = source.examples, failures

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._failures:
            self._failures -= 1
            raise OSError(5, "Input/output error")
        return self._examples[index]


def test_what_cannot_be_read_is_told_with_its_place() -> None:
    source = noise_source(3)
    broken = dataclasses.replace(source, examples=Unreadable(source, 2))
    examples = DecodedExamples(broken)
    assert examples[1]["bad_index"] == 1
    message = examples.explain(1)
    assert message.startswith("image 1 of 'noise', split 'train', cannot be read")
    assert "Input/output error" in message
    # Where it can be read again, that is what is said.
    assert "can be now" in examples.explain(1)
