"""Images in folders, one per class, as PyTorch's ImageFolder has them."""

import dataclasses
import functools
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from resnext_jax.data.builders.base import Builder, Inputs
from resnext_jax.data.builders.copies import Image, Record, content_hash, find_copy
from resnext_jax.data.file_names import SUFFIXES, is_hidden, is_image, note_ignored
from resnext_jax.errors import DataError

# Names, in any case, of the folders of the training and of the validation images. Test images are
# validated on where there are no others.
_TRAIN, _VALIDATION, _TEST = "train", ("val", "valid", "validation", "dev"), "test"

_VERSION = "1.0.0"

# What an example takes beside its image: names, label, framing, its part of an index.
_EXAMPLE_BYTES = 300


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images in a folder.

    Attributes:
      folder: that holds the splits' folders.
      classes: their names, in label order.
      folders: name of the folder of each split.
      images: of each split.
      ignored: names of files in the splits' folders that are no images.
      outside: number of images there that are in no class's folder.
    """

    folder: Path
    classes: tuple[str, ...]
    folders: dict[str, str]
    images: dict[str, list[Image]]
    ignored: tuple[str, ...] = ()
    outside: int = 0

    @property
    def files(self) -> list[Image]:
        """All images, named by their paths from `folder`."""
        return [
            image._replace(name=f"{self.folders[split]}/{image.name}")
            for split, images in self.images.items()
            for image in images
        ]

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the paths, sizes and times of all images, as 64 hexadecimal digits.

        Names a prepared copy.
        """
        return _digest((image.name, image.size, image.mtime_ns) for image in self.files)

    @functools.cached_property
    def identity(self) -> str:
        """Hash of what is trained on: the classes, and the name and label of each image.

        Neither where the folder is nor when its files were written is part of it, so that a run
        goes on after `cp -r`, or after a damaged image has been replaced. As 16 hexadecimal digits.
        """
        images = (
            (split, image.name, self.classes[image.label])
            for split, images in self.images.items()
            for image in images
        )
        return _digest([("", "", name) for name in self.classes] + list(images))[:16]


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """Which folder it is, in tfds's terms.

    Attributes:
      classes: names of the classes, in label order.
    """

    classes: tuple[str, ...] = ()


class Folder(Builder):
    """Images in `train/CLASS/` and `val/CLASS/` of `inputs.manual_dir`, stored as they are.

    Labels are the places of the classes among the sorted names of the folders in
    `train`. A folder whose images changed is prepared again.
    """

    TITLE = "the folder of images"
    VERSION = tfds.core.Version(_VERSION)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}

    listing: Listing

    @classmethod
    def create(cls, inputs: Inputs, data_dir: str | None) -> "Folder":
        """Make the builder for the images that are in the folder now (see `Builder.create`).

        Raises:
          DataError: no folder is given, or it is not laid out as it must be.
        """
        listing = list_images(inputs.manual_dir)
        if listing.folders["validation"].lower() == _TEST:
            print(
                f"note: {listing.folder} has no folder of validation images; those in "
                f"{listing.folders['validation']} are used, so that the best checkpoint is chosen "
                "on the test images",
                file=sys.stderr,
            )
        _note_classes(listing)
        note_ignored(listing.folder, listing.ignored, listing.outside)
        slug = re.sub(r"[^a-z0-9]+", "_", listing.folder.resolve().name.lower()).strip("_")
        config = FolderConfig(
            name=_prepared_copy(listing, data_dir) or _copy_name(slug or "images", listing),
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
        if used.lower() not in (_VALIDATION[0], _TEST):  # of the latter every start says so
            print(f"note: the validation images are {self.listing.folder / used}", file=sys.stderr)
        images = [image for split in self.listing.images.values() for image in split]
        return sum(image.size + len(image.name) + _EXAMPLE_BYTES for image in images)

    @property
    def data_versions(self) -> tuple[str, ...]:
        """See `Builder`. Runs of earlier versions have written the name of the copy."""
        return self.listing.identity, f"{self.builder_config.name}/{self.VERSION}"

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        self._hashes = {split: bytearray() for split in self.listing.images}
        return {split: self._generate_examples(split) for split in self.listing.images}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        place = self.listing.folders[split]
        for image in self.listing.images[split]:
            path = self.listing.folder / place / image.name
            try:
                data = path.read_bytes()
            except OSError as error:
                raise _unreadable(path, error) from error
            self._hashes[split] += content_hash(data)
            yield image.name, {"image": data, "label": image.label, "file_name": image.name}
        if all(self._hashes.values()):  # this was the last split
            hashes = b"".join(self._hashes.values())
            record = Record.of(self.listing.identity, self.listing.files, hashes)
            record.write(Path(self.data_path))


def _note_classes(listing: Listing) -> None:
    """Say on stderr what may be wrong with the classes."""
    if len(listing.classes) == 1:
        train = listing.folder / listing.folders["train"]
        print(
            f"note: {train} has only one class, {listing.classes[0]!r}, so there is nothing to "
            "distinguish; if the classes are the folders in it, move them up into "
            f"{train}",
            file=sys.stderr,
        )
    pairs = zip(listing.classes, _by_number(listing.classes), strict=True)
    label, (here, there) = next(
        ((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1]), (0, ("", ""))
    )
    if here != there:
        print(
            f"note: the classes of {listing.folder} are numbers, and labels follow their order "
            f"as text: label {label} is class {here}; weights that were trained elsewhere in "
            f"the order of numbers have class {there} there and are scored wrongly",
            file=sys.stderr,
        )


def _by_number(names: tuple[str, ...]) -> tuple[str, ...]:
    """Put names that are all numbers into the order of these."""
    if not all(name.isascii() and name.isdecimal() for name in names):
        return names
    return tuple(sorted(names, key=int))


def _copy_name(slug: str, listing: Listing) -> str:
    return f"{slug}-{listing.digest[:12]}"


def _prepared_copy(listing: Listing, data_dir: str | None) -> str | None:
    """Return the name of the prepared copy that holds what is in a folder now."""
    if data_dir is None:
        return None
    copies = [
        path.parent for path in Path(data_dir, "folder").glob(f"*/{_VERSION}/dataset_info.json")
    ]
    for copy in copies:
        if copy.parent.name.endswith(_copy_name("", listing)):
            return copy.parent.name
    found = find_copy(copies, listing.folder, listing.identity, listing.files)
    return None if found is None else found.parent.name


def _digest(rows: Iterable[tuple[Any, ...]]) -> str:
    hashed = hashlib.sha256()
    for row in sorted(rows):
        hashed.update(repr(row).encode())
    return hashed.hexdigest()


def list_images(folder: Path | None) -> Listing:
    """Find the images in `train/CLASS/` and `val/CLASS/` of a folder, and in folders in these.

    Instead of `val` it may be `valid`, `validation` or `dev`, in any case, and without
    these, `test`. Hidden files and folders, those of systems, and files that are no images by their
    extension are ignored; the last are listed.

    Raises:
      DataError: the folder, `train`, `val`, classes or a class's images are missing, several
        folders may be that of the validation images, a class is in `val` only, or something
        cannot be read.
    """
    if folder is None:
        raise DataError(
            "the folder of images is not given; name the folder that holds train/ and val/ with "
            "--config.data.manual_dir=FOLDER, or in resnext_jax.data.prepare with "
            "--manual_dir=FOLDER."
        )
    if not folder.is_dir():
        raise DataError(f"folder of images {folder} does not exist; check its name.")
    folders = _split_folders(folder)
    names = {split: _class_folders(folder / name) for split, name in folders.items()}
    labels = {name: label for label, name in enumerate(names["train"])}
    unknown = [name for name in names["validation"] if name not in labels]
    if unknown:
        raise DataError(
            f"class folder {folder / folders['validation'] / unknown[0]} has no counterpart in "
            f"{folder / folders['train']}; remove it, or add training images of that class."
        )
    ignored: list[str] = []
    images = {
        split: [
            image
            for name in names[split]
            for image in _images_of_class(folder / folders[split], name, labels[name], ignored)
        ]
        for split in folders
    }
    loose = [name for split in folders.values() for name in _files_in(folder / split)]
    ignored += [name for name in loose if not is_image(name)]
    outside = sum(map(is_image, loose))
    return Listing(folder, tuple(names["train"]), folders, images, tuple(ignored), outside)


def _split_folders(folder: Path) -> dict[str, str]:
    """Return the folders of the training and of the validation images."""
    names = _folders_in(folder)
    train = [name for name in names if name.lower() == _TRAIN]
    validation = [name for name in names if name.lower() in _VALIDATION]
    test = [name for name in names if name.lower() == _TEST]
    if not validation and test:
        # Any other folder with the same classes may be meant as well.
        classes = set(_folders_in(folder / test[0]))
        others = set(names) - {*train, *test}
        validation = test + sorted(n for n in others if set(_folders_in(folder / n)) == classes)
    for found, name, wanted in (
        (validation, "val", f"val (nor {', '.join(_VALIDATION[1:])} nor test)"),
        (train, "train", "train"),
    ):
        what = "validation" if name == "val" else "training"
        if not found:
            raise DataError(
                f"folder of images {folder} has no folder {wanted}; put the {what} images into "
                f"{name}/CLASS/, a folder for each class."
            )
        if len(found) > 1:
            raise DataError(
                f"folder of images {folder} has several folders that may hold the {what} images: "
                f"{', '.join(found)}; name the one that is meant {name}, and move the others away."
            )
    return {"train": train[0], "validation": validation[0]}


def _folders_in(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if stat.S_ISDIR(_status(entry).st_mode)]


def _files_in(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if stat.S_ISREG(_status(entry).st_mode)]


def _class_folders(folder: Path) -> list[str]:
    names = _folders_in(folder)
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


def _images_of_class(folder: Path, name: str, label: int, ignored: list[str]) -> list[Image]:
    """List the images of a class; the names of other files are added to `ignored`."""
    images = []
    for path, status in _walk(folder, name, ()):
        if is_image(path):
            stored = _stored_name(folder, path)
            images.append(Image(stored, label, status.st_size, status.st_mtime_ns))
        else:
            ignored.append(path)
    if not images:
        raise DataError(
            f"class folder {folder / name} has no images ({', '.join(SUFFIXES)}); "
            "put some there, or remove it."
        )
    return images


def _walk(
    folder: Path, name: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files in `folder/name` and in folders there, by their paths from `folder`."""
    for entry in _visible(folder / name):
        status = _status(entry)
        path = f"{name}/{entry.name}"
        if stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                raise DataError(f"folder {entry.path} contains itself by a link; remove the link.")
            yield from _walk(folder, path, (*above, identity))
        elif stat.S_ISREG(status.st_mode):
            yield path, status


def _stored_name(folder: Path, path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"image {str(folder / path)!r} has a name that is not UTF-8; rename it."
        ) from None
    return path


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """List what is in a folder and not hidden, by name."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(found, key=lambda entry: entry.name)


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of a file or folder, or of what a link points to."""
    try:
        return entry.stat()
    except OSError as error:
        if entry.is_symlink():
            raise DataError(f"{entry.path} is a broken link; repair or remove it.") from error
        raise _unreadable(Path(entry.path), error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({error.strerror}); check its permissions.")
