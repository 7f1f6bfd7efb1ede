"""The data sets that can be read, by name."""

import dataclasses
import importlib

from resnext_jax.data.builders.base import Builder
from resnext_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a data set is found.

    Attributes:
      builder: module and class of its tfds builder; imported only when asked for.
      test_split: what tfds calls the split that is tested on.
      automatic: prepared when it is first read; otherwise a command prepares it,
        because that takes hours and hundreds of gigabytes.
    """

    builder: str
    test_split: str = "test"
    automatic: bool = True

    def builder_class(self) -> type[Builder]:
        """Import the builder."""
        module, _, cls = self.builder.partition(":")
        found: type[Builder] = getattr(importlib.import_module(module), cls)
        return found

    def tfds_split(self, split: str) -> str:
        """Map "train" or "test" to what tfds calls it."""
        return self.test_split if split == "test" else split


_PACKAGE = "resnext_jax.data.builders"

CATALOG = {
    "cifar10": Entry(f"{_PACKAGE}.cifar:Cifar10"),
    "cifar100": Entry(f"{_PACKAGE}.cifar:Cifar100"),
    "digits": Entry(f"{_PACKAGE}.digits:Digits"),
    "folder": Entry(f"{_PACKAGE}.folder:Folder", test_split="validation"),
    "imagenet2012": Entry(
        f"{_PACKAGE}.imagenet2012:Imagenet2012", test_split="validation", automatic=False
    ),
    "imagenet5k": Entry(
        f"{_PACKAGE}.imagenet5k:Imagenet5k", test_split="validation", automatic=False
    ),
}


def find(name: str) -> Entry:
    """Look a data set up.

    Raises:
      DataError: there is none of this name.
    """
    if name not in CATALOG:
        names = ", ".join(sorted(CATALOG))
        raise DataError(f"unknown data set {name!r}; config.data.name must be one of: {names}.")
    return CATALOG[name]
