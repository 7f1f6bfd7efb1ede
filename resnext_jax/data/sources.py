"""Data sets by name, read through tfds as random-access sources without TensorFlow."""

import contextlib
import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from resnext_jax.data import catalog
from resnext_jax.data.builders.base import Inputs
from resnext_jax.data.headers import EXIF, orientation, spread_sample
from resnext_jax.data.prepare import data_folder, prepare
from resnext_jax.errors import DataError
from resnext_jax.files import user_path
from resnext_jax.parallel.distributed import is_first_host

# Images of a split that are compared between hosts, and at most whose orientation is looked at.
_SAMPLE, _LOOKED_AT = 16, 256


class Examples(Protocol):
    """Random access to examples as they are stored."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `image` (bytes of an image file), `label` (int), perhaps `file_name` or `id`."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
      name: of the data set.
      split: "train" or "test".
      examples: the images, by index.
      class_names: name of each label, in label order.
      version: which version of the data set; of a folder of images a hash of their names and
        labels.
      former_versions: what runs of earlier versions of this package wrote down instead.
      exif: whether its images are turned as their EXIF orientation says, see `ImageFile`.
    """

    name: str
    split: str
    examples: Examples
    class_names: tuple[str, ...]
    version: str = ""
    former_versions: tuple[str, ...] = ()
    exif: str = EXIF[0]

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.examples)

    def facts(self) -> dict[str, Any]:
        """Return what this split is, by what a sentence calls it: alike for equal copies.

        Of the images a sample is read, spread over the split.
        """
        places = spread_sample(len(self), _SAMPLE)
        sample = [sorted(self.examples[place].items()) for place in places]
        return {
            "the data set": f"{self.name} {self.version}",
            "the classes": f"{self.num_classes} ({short_digest(self.class_names)})",
            f"images of split {self.split}": len(self),
            f"a sample of split {self.split}": short_digest(sample),
        }


def short_digest(value: Any) -> str:
    """Return a hash of a value's text as 8 hexadecimal digits, to distinguish values."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def open_source(
    name: str, split: str, data_dir: str | None = None, manual_dir: str | None = None
) -> Source:
    """Open one split. A small data set is prepared first if it is not there.

    Args:
      name: data set name, one of `catalog.CATALOG`, or "tfds:NAME" or "tfds:NAME/CONFIG" for
        another that tfds prepared, with the features `image` and `label`.
      split: "train" or "test".
      data_dir: tfds folder; None means tfds's default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.
      manual_dir: folder of the raw files, where a data set needs one.

    Raises:
      DataError: unknown data set, one that cannot be prepared or is not prepared, or a folder
        that cannot be written or read.
    """
    return _open(*_locate(name, data_dir, manual_dir), name, split)


def check_available(name: str, data_dir: str | None) -> None:
    """Check quickly that a data set is there, or is prepared when it is first read.

    Raises:
      DataError: unknown data set, or one that must be prepared first and is not.
    """
    if catalog.find(name).automatic or _prepared(name, data_dir) is not None:
        return
    if name.startswith(catalog.TFDS):
        raise DataError(
            f"there is no folder {_tfds_name(name)}/VERSION in {data_folder(data_dir)}; prepare "
            f"the data set with tfds build {_tfds_name(name)} --file_format=array_record, or name "
            "another folder with --config.data.data_dir=..."
        )
    raise DataError(
        f"data set {name!r} is not prepared in {data_folder(data_dir)}; prepare it with "
        f"python -m resnext_jax.data.prepare --dataset={name} --manual_dir=ARCHIVES "
        f"--data_dir={data_folder(data_dir)}, or name another folder with "
        "--config.data.data_dir=..."
    )


def _tfds_name(name: str) -> str:
    return name.removeprefix(catalog.TFDS)


def open_split(config: ConfigDict, split: str) -> Source:
    """Open one split of the data set that a run's config names (see `open_source`).

    Says on stderr how many of its images, or of a sample of them, are not stored upright.
    """
    data = config.data
    return _as_configured(open_source(data.name, split, data.data_dir, data.manual_dir), config)


def open_splits(config: ConfigDict) -> tuple[Source, Source]:
    """Open "train" and "test" of the data set that a run's config names (see `open_split`)."""
    data = config.data
    found = _locate(data.name, data.data_dir, data.manual_dir)
    train, test = (_open(*found, data.name, split) for split in ("train", "test"))
    return _as_configured(train, config), _as_configured(test, config)


def _as_configured(source: Source, config: ConfigDict) -> Source:
    source = dataclasses.replace(source, exif=config.data.exif)
    if is_first_host():
        _note_turned(source)
    return source


def _note_turned(source: Source) -> None:
    places = spread_sample(len(source), _LOOKED_AT)
    turned = 0
    for place in places:
        with contextlib.suppress(
            OSError, RuntimeError, ValueError, IndexError
        ):  # reported when read
            turned += orientation(source.examples[place]["image"]) != 1
    if not turned:
        return
    sampled = f"a sample of {len(places):,}" if len(places) < len(source) else f"{len(places):,}"
    done = "turned" if source.exif == "follow" else "left as they are stored"
    print(
        f"note: {turned:,} of {sampled} images of split {source.split} are not stored upright, and "
        f"are {done} (config.data.exif={source.exif})",
        file=sys.stderr,
    )


def _locate(
    name: str, data_dir: str | None, manual_dir: str | None
) -> tuple[Path, tuple[str, ...]]:
    """Find the folder of a prepared data set, preparing it if need be, and its `data_versions`."""
    check_available(name, data_dir)
    folder = _prepared(name, data_dir)
    versions: tuple[str, ...] = ()
    if folder is None:
        raw = None if manual_dir is None else user_path(manual_dir, "config.data.manual_dir")
        inputs = Inputs(manual_dir=raw)
        builder = prepare(name, inputs, data_dir)
        folder, versions = Path(builder.data_path), builder.data_versions
    # data_dir/NAME/VERSION, or data_dir/NAME/CONFIGURATION/VERSION.
    return folder, versions or (folder.as_posix().rpartition(f"/{_tfds_name(name)}/")[2],)


def _prepared(name: str, data_dir: str | None) -> Path | None:
    """Find a prepared data set: the newest version, ours or one that tfds's own builder made."""
    versions = [
        path.parent
        for path in (data_folder(data_dir) / _tfds_name(name)).glob("*/dataset_info.json")
        if tfds.core.Version.is_valid(path.parent.name)
    ]
    return max(versions, key=lambda path: tfds.core.Version(path.name), default=None)


def _open(folder: Path, versions: tuple[str, ...], name: str, split: str) -> Source:
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # tfds raises whatever the damage makes it stumble over
        raise _damaged(name, folder, error) from error
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise DataError(
            f"data set {name!r} in {folder} is stored as {' and '.join(sorted(formats))}, which "
            "only TensorFlow reads; prepare it in another folder (--config.data.data_dir=...),"
            " or, where TensorFlow is installed, convert it with tfds convert_format "
            f"--dataset_version_dir={folder} --out_file_format=array_record"
        )
    features = dict((builder.info.features or {}).items())
    if not ("image" in features and isinstance(features.get("label"), tfds.features.ClassLabel)):
        raise DataError(
            f"data set {name!r} in {folder} has the features {', '.join(features)}; what is "
            "trained on has an image and a label (a ClassLabel) of those names."
        )
    tfds_split = catalog.find(name).tfds_split(split, builder.info.splits)
    if tfds_split not in builder.info.splits:
        raise DataError(
            f"data set {name!r} in {folder} has no split {tfds_split!r} (it has "
            f"{', '.join(builder.info.splits)}); prepare it again with all of its archives."
        )
    if not builder.info.splits[tfds_split].num_examples:
        raise DataError(
            f"data set {name!r} in {folder} has no images in split {tfds_split!r}; "
            "prepare it again from whole archives."
        )
    try:
        examples = builder.as_data_source(
            split=tfds_split,
            decoders={"image": tfds.decode.SkipDecoding()},
            file_format="array_record",
        )
        examples[0]  # tfds opens the files at the first read
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise _damaged(name, folder, error) from error
    label: tfds.features.ClassLabel = builder.info.features["label"]
    version, *former = versions
    return Source(name, split, examples, tuple(label.names), version, tuple(former))


def _damaged(name: str, folder: object, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(
        f"data set {name!r} in {folder} cannot be read ({reason}); remove that folder and "
        "prepare the data set again."
    )
