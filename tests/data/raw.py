"""Makers of tiny raw data: archives and folders laid out as the real ones."""

import dataclasses
import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resnext_jax.data.builders.cifar import Cifar10, Cifar100
from tests.data.images import encoded

CIFAR = {"cifar10": Cifar10, "cifar100": Cifar100}


@dataclasses.dataclass(frozen=True)
class RawSplit:
    """What a split of a CIFAR archive holds: images uint8 `[N, 32, 32, 3]`, RGB, and labels."""

    images: np.ndarray
    labels: dict[str, np.ndarray]

    def records(self) -> bytes:
        """The split in the archive's format: label bytes, then red, green and blue planes."""
        labels = np.stack([values.astype(np.uint8) for values in self.labels.values()], axis=1)
        planes = self.images.transpose(0, 3, 1, 2).reshape(len(self.images), 3072)
        return np.concatenate([labels, planes], axis=1).tobytes()

    def part(self, start: int, stop: int) -> "RawSplit":
        """Images `start` to `stop`."""
        labels = {name: values[start:stop] for name, values in self.labels.items()}
        return RawSplit(self.images[start:stop], labels)


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a tar archive of files, in their order; compressed if its name says so."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def class_names(number: int) -> list[str]:
    """Names that are not in alphabetical order, as CIFAR-10's are not in that of the labels."""
    return [f"kind_{(7 * index) % number}" for index in range(number)]


def write_cifar_archive(
    path: Path,
    name: str,
    train: int = 12,
    test: int = 4,
    change: Callable[[dict[str, bytes]], object] | None = None,
) -> dict[str, RawSplit]:
    """Write an archive like the official one of binary records.

    Args:
      path: of the archive, ending in .gz.
      name: "cifar10" or "cifar100".
      train: number of training images, random ones, spread unevenly over the files.
      test: number of test images.
      change: is given the archive's files by path, to change them.

    Returns:
      What was written, by split.
    """
    random = np.random.default_rng(seed=len(name))
    builder = CIFAR[name]
    archive = builder.ARCHIVE
    splits = {
        split: RawSplit(
            random.integers(0, 256, (number, 32, 32, 3), np.uint8),
            {label: random.integers(0, builder.CLASSES[label], number) for label in archive.names},
        )
        for split, number in (("train", train), ("test", test))
    }
    files = {"readme.html": b"<html></html>"}
    for label, file in archive.names.items():
        # The official list of CIFAR-10 ends with an empty line.
        files[file] = ("\n".join(class_names(builder.CLASSES[label])) + "\n\n").encode()
    for split, names in archive.splits.items():
        number = len(splits[split].images)
        # In the archive, the files of records are not in order either.
        for place, file in reversed(list(enumerate(names))):
            ends = [number * index**2 // len(names) ** 2 for index in (place, place + 1)]
            files[file] = splits[split].part(*ends).records()
    paths = {f"{archive.folder}/{file}": data for file, data in files.items()}
    if change:
        change(paths)
    write_tar(path, paths)
    return splits


def write_folder(
    root: Path, classes: Sequence[str] = ("cat", "dog"), per_class: int = 3
) -> dict[str, dict[str, bytes]]:
    """Write `train/CLASS/` and `val/CLASS/` with random images, JPEG and PNG in turn.

    Returns:
      The files' bytes by path from the split's folder, for "train" and "val".
    """
    random = np.random.default_rng(seed=per_class)
    written: dict[str, dict[str, bytes]] = {"train": {}, "val": {}}
    for split, files in written.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(per_class):
                extension, kind = ((".jpg", "JPEG"), (".png", "PNG"))[index % 2]
                image = Image.fromarray(random.integers(0, 256, (9 + index, 12, 3), np.uint8))
                files[f"{name}/{split}{index}{extension}"] = encoded(image, kind)
        for path, data in files.items():
            (root / split / path).write_bytes(data)
    return written
