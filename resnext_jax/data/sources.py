"""Data sets by name, read through tfds as random-access sources without TensorFlow."""

import contextlib
import dataclasses
import importlib
import sys
from typing import Any, Protocol

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from resnext_jax.errors import DataError

# tfds builder classes by data set name. Imported only when asked for.
_BUILDERS = {"digits": "resnext_jax.data.builders.digits:Digits"}

# Data sets that the configs name and that have no reader here yet.
_PLANNED = ("cifar10", "cifar100", "imagenet2012", "imagenet5k")


class Examples(Protocol):
    """Random access to decoded examples."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `image` (uint8 `[H, W, C]`) and `label` (int)."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
      name: of the data set.
      split: "train" or "test".
      examples: the images, by index.
      class_names: name of each label, in label order.
    """

    name: str
    split: str
    examples: Examples
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.examples)


def check_readable(name: str) -> None:
    """Raise DataError, in one sentence, if the data set `name` cannot be read by this version."""
    if name in _BUILDERS:
        return
    readable = ", ".join(sorted(_BUILDERS))
    if name in _PLANNED:
        raise DataError(
            f"data set {name!r} cannot be read by this version yet (readable: {readable}); "
            "the config is complete but for its data."
        )
    raise DataError(f"unknown data set {name!r}; config.data.name must be one of: {readable}.")


def open_source(name: str, split: str, data_dir: str | None = None) -> Source:
    """Open one split, preparing the data set first if it is not there.

    Args:
      name: data set name, such as "digits".
      split: "train" or "test".
      data_dir: tfds folder; None means tfds's default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Raises:
      DataError: unknown data set, or the folder cannot be written or read.
    """
    check_readable(name)
    module, _, cls = _BUILDERS[name].partition(":")
    builder_cls = getattr(importlib.import_module(module), cls)
    try:
        builder = builder_cls(data_dir=data_dir, file_format="array_record")
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        # tfds prints what it does; stdout is kept for results.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
        examples = builder.as_data_source(split=split)
        examples[0]  # tfds opens the files at the first read
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"data set {name!r} cannot be prepared or read in {data_dir or 'the tfds folder'} "
            f"({reason}); choose a writable folder with --config.data.data_dir=..., or remove a "
            f"damaged {name} folder there to have it prepared again."
        ) from error
    label: tfds.features.ClassLabel = builder.info.features["label"]
    return Source(name, split, examples, tuple(label.names))


def open_split(config: ConfigDict, split: str) -> Source:
    """Open one split of the data set that a run's config names (see `open_source`)."""
    return open_source(config.data.name, split, config.data.data_dir)
