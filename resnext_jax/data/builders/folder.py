"""Images in folders, one per class, as PyTorch's ImageFolder has them."""

import dataclasses
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from resnext_jax.data.builders.base import Builder, Inputs
from resnext_jax.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Folders that hold the validation images, the first that is there.
_VALIDATION_FOLDERS = ("val", "validation", "test")

# What an example takes beside its image: names, label, framing, its part of an index.
_EXAMPLE_BYTES = 300


class Image(NamedTuple):
    """An image file.

    Attributes:
      name: its path from the split's folder, with "/".
      label: its class.
      size: in bytes.
      mtime_ns: when it was last written.
    """

    name: str
    label: int
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images in a folder.

    Attributes:
      folder: that holds the splits' folders.
      classes: their names, in label order.
      folders: name of the folder of each split.
      images: of each split.
    """

    folder: Path
    classes: tuple[str, ...]
    folders: dict[str, str]
    images: dict[str, list[Image]]

    @property
    def digest(self) -> str:
        """Hash of the paths, sizes and times of all images, as 64 hexadecimal digits."""
        hashed = hashlib.sha256()
        files = [
            (f"{self.folders[split]}/{image.name}", image.size, image.mtime_ns)
            for split, images in self.images.items()
            for image in images
        ]
        for file in sorted(files):
            hashed.update(repr(file).encode())
        return hashed.hexdigest()


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """Which folder it is, in tfds's terms.

    Attributes:
      classes: names of the classes, in label order.
    """

    classes: tuple[str, ...] = ()


class Folder(Builder, skip_registration=True):  # type: ignore[call-arg]
    """Images in `train/CLASS/` and `val/CLASS/` of `inputs.manual_dir`, stored as they are.

    Labels are the places of the classes among the sorted names of the folders in
    `train`. A folder whose images changed is another data set, prepared anew.
    """

    TITLE = "the folder of images"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}

    listing: Listing

    @classmethod
    def create(cls, inputs: Inputs, data_dir: str | None) -> "Folder":
        """Make the builder for the images that are in the folder now (see `Builder.create`).

        Raises:
          DataError: no folder is given, or it is not laid out as it must be.
        """
        listing = list_images(inputs.manual_dir)
        slug = re.sub(r"[^a-z0-9]+", "_", listing.folder.resolve().name.lower()).strip("_")
        config = FolderConfig(
            name=f"{slug or 'images'}-{listing.digest[:12]}",
            description=(
                f"Training images of {listing.folder / listing.folders['train']}, "
                f"validation images of {listing.folder / listing.folders['validation']}."
            ),
            classes=listing.classes,
        )
        builder = cls(data_dir=data_dir, config=config, file_format="array_record")
        builder.inputs = inputs
        # Not in the configuration, which goes along when a data source is sent to a process.
        builder.listing = listing
        return builder

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images in folders, one per class.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=self.builder_config.classes),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def check_inputs(self) -> int:
        """Return the bytes that the prepared data set takes, about; `create` has checked.

        Says so on stderr if the validation images are taken from another folder than `val`.
        """
        used = self.listing.folders["validation"]
        if used != _VALIDATION_FOLDERS[0]:
            where = self.listing.folder / used
            print(f"note: there is no val, the validation images are {where}", file=sys.stderr)
        images = [image for split in self.listing.images.values() for image in split]
        return sum(image.size + len(image.name) + _EXAMPLE_BYTES for image in images)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in self.listing.images}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        folder = self.listing.folder / self.listing.folders[split]
        for image in self.listing.images[split]:
            try:
                data = (folder / image.name).read_bytes()
            except OSError as error:
                raise _unreadable(folder / image.name, error) from error
            yield image.name, {"image": data, "label": image.label, "file_name": image.name}


def list_images(folder: Path | None) -> Listing:
    """Find the images in `train/CLASS/` and `val/CLASS/` of a folder, and in folders in these.

    Instead of `val` it may be `validation` or `test`. Hidden files and folders,
    and files that are no images by their extension, are passed over.

    Raises:
      DataError: the folder, `train`, `val`, classes or a class's images are missing,
        a class is in `val` only, or something cannot be read.
    """
    if folder is None:
        raise DataError(
            "the folder of images is not given; name the folder that holds train/ and val/ with "
            "--config.data.manual_dir=FOLDER, or in resnext_jax.data.prepare with "
            "--manual_dir=FOLDER."
        )
    if not folder.is_dir():
        raise DataError(f"folder of images {folder} does not exist; check its name.")
    folders = {"train": "train", "validation": _validation_folder(folder)}
    if not (folder / "train").is_dir():
        raise DataError(
            f"folder of images {folder} has no folder train; put the training images into "
            "train/CLASS/, a folder for each class."
        )
    names = {split: _class_folders(folder / name) for split, name in folders.items()}
    labels = {name: label for label, name in enumerate(names["train"])}
    unknown = [name for name in names["validation"] if name not in labels]
    if unknown:
        raise DataError(
            f"class folder {folder / folders['validation'] / unknown[0]} has no counterpart in "
            f"{folder / 'train'}; remove it, or add training images of that class."
        )
    images = {
        split: [
            image
            for name in names[split]
            for image in _images_of_class(folder / folders[split], name, labels[name])
        ]
        for split in folders
    }
    return Listing(folder, tuple(names["train"]), folders, images)


def _validation_folder(folder: Path) -> str:
    for name in _VALIDATION_FOLDERS:
        if (folder / name).is_dir():
            return name
    raise DataError(
        f"folder of images {folder} has no folder val (nor validation nor test); put the "
        "validation images into val/CLASS/, a folder for each class."
    )


def _class_folders(folder: Path) -> list[str]:
    names = [entry.name for entry in _visible(folder) if stat.S_ISDIR(_status(entry).st_mode)]
    if not names:
        raise DataError(
            f"folder {folder} has no class folders; put the images of each class into a folder "
            "of its own there."
        )
    for name in names:
        # tfds stores the names line by line, in UTF-8.
        if not name.isprintable() or name != name.strip():
            raise DataError(
                f"class folder {name!r} in {folder} has a name that cannot be stored; rename it "
                "without blanks at the ends and without special characters."
            )
    return names


def _images_of_class(folder: Path, name: str, label: int) -> list[Image]:
    images = [
        Image(path, label, status.st_size, status.st_mtime_ns)
        for path, status in _walk(folder, name, ())
    ]
    if not images:
        raise DataError(
            f"class folder {folder / name} has no images ({', '.join(EXTENSIONS)}); "
            "put some there, or remove it."
        )
    return images


def _walk(
    folder: Path, name: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the images in `folder/name` and in folders there, by their paths from `folder`."""
    for entry in _visible(folder / name):
        status = _status(entry)
        path = f"{name}/{entry.name}"
        if stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                raise DataError(f"folder {entry.path} contains itself by a link; remove the link.")
            yield from _walk(folder, path, (*above, identity))
        elif stat.S_ISREG(status.st_mode) and entry.name.lower().endswith(EXTENSIONS):
            try:
                path.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"image {entry.path!r} has a name that is not UTF-8; rename it."
                ) from None
            yield path, status


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """List what is in a folder and not hidden, by name."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(found, key=lambda entry: entry.name)


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of a file or folder, or of what a link points to."""
    try:
        return entry.stat()
    except OSError as error:
        if entry.is_symlink():
            raise DataError(f"{entry.path} is a broken link; mend or remove it.") from error
        raise _unreadable(Path(entry.path), error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({error.strerror}); check its permissions.")
