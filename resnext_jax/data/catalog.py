"""The data sets that can be read, by name."""

import dataclasses
import importlib
from collections.abc import Container

from resnext_jax.data.builders.base import Builder
from resnext_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a data set is found.

    Attributes:
      builder: its tfds builder, or "MODULE:CLASS", imported only when asked for; "" for a set
        that is prepared elsewhere.
      test_splits: what tfds calls the split that is tested on, the first of these that there is.
      automatic: prepared when it is first read; otherwise a command prepares it,
        because that takes hours and hundreds of gigabytes.
    """

    builder: str | type[Builder]
    test_splits: tuple[str, ...] = ("test",)
    automatic: bool = True

    def builder_class(self) -> type[Builder]:
        """Return the builder, imported if need be."""
        if not isinstance(self.builder, str):
            return self.builder
        module, _, cls = self.builder.partition(":")
        found: type[Builder] = getattr(importlib.import_module(module), cls)
        return found

    def tfds_split(self, split: str, splits: Container[str]) -> str:
        """Map "train" or "test" to what tfds calls it in a set of some splits."""
        if split == "train":
            return split
        return next((name for name in self.test_splits if name in splits), self.test_splits[0])


_PACKAGE = "resnext_jax.data.builders"

CATALOG = {
    "cifar10": Entry(f"{_PACKAGE}.cifar:Cifar10"),
    "cifar100": Entry(f"{_PACKAGE}.cifar:Cifar100"),
    "digits": Entry(f"{_PACKAGE}.digits:Digits"),
    "folder": Entry(f"{_PACKAGE}.folder:Folder", test_splits=("validation",)),
    "imagenet2012": Entry(
        f"{_PACKAGE}.imagenet2012:Imagenet2012", test_splits=("validation",), automatic=False
    ),
    "imagenet5k": Entry(
        f"{_PACKAGE}.imagenet5k:Imagenet5k", test_splits=("validation",), automatic=False
    ),
}


# Before the name of a set that tfds prepared, and that has no entry in the catalog.
TFDS = "tfds:"
# A validation split is for choosing a checkpoint, and the labels of a test split may be secret.
_OTHER = Entry("", test_splits=("validation", "test"), automatic=False)


def find(name: str) -> Entry:
    """Look a data set up.

    Raises:
      DataError: no data set has this name.
    """
    if name.startswith(TFDS):
        return _OTHER
    if name not in CATALOG:
        names = ", ".join(sorted(CATALOG))
        raise DataError(
            f"unknown data set {name!r}; config.data.name must be one of: {names}; or "
            f"{TFDS}NAME for one that tfds prepared as array_record."
        )
    return CATALOG[name]
