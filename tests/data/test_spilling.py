"""Splits larger than tfds's memory buffer are shuffled through files, without TensorFlow."""

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from resnext_jax.data.builders import base
from resnext_jax.data.builders.digits import Digits
from resnext_jax.data.builders.spilling import spilling


def prepared(data_dir: Path) -> list[Any]:
    builder = Digits(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(builder.as_data_source("train", decoders=decoders))


def spill_early(monkeypatch: pytest.MonkeyPatch) -> None:
    # A quarter of what the digits take.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 50_000)


def test_spilled_examples_are_the_same_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = prepared(tmp_path / "memory")
    spill_early(monkeypatch)
    spilled = prepared(tmp_path / "spilled")
    assert len(spilled) == 1438
    assert spilled == in_memory
    assert not list(tmp_path.rglob("bucket_*"))
    assert "tensorflow" not in sys.modules


def test_tfds_alone_would_ask_for_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Once tfds does without, spilling() is to be removed.
    spill_early(monkeypatch)
    monkeypatch.setattr(base, "spilling", contextlib.nullcontext)
    with pytest.raises(ImportError, match="tensorflow"):
        prepared(tmp_path)


def test_leaves_tfds_as_it_was() -> None:
    before = shuffle.tf
    with contextlib.suppress(ZeroDivisionError), spilling():
        inside = shuffle.tf
        raise ZeroDivisionError
    assert inside is not before
    assert shuffle.tf is before


@pytest.mark.parametrize("soft", [1024, 4096])
def test_allows_a_file_for_every_bucket(soft: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    try:
        with spilling():
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (max(soft, 1500), limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
