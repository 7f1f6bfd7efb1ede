"""Makers of ImageNet's archives in small: tiny images, true names and structure."""

import io
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from resnext_jax.data.builders.synsets import imagenet1k

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"


def jpeg(name: str) -> bytes:
    """An 8x8 JPEG file, another one for every name."""
    pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (8, 8, 3))
    return cv2.imencode(".jpg", pixels.astype(np.uint8))[1].tobytes()


def cmyk_jpeg() -> bytes:
    """An 8x8 JPEG file of four inks, as a few of ImageNet's are."""
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (10, 200, 30, 40)).save(file, "JPEG")
    return file.getvalue()


def png() -> bytes:
    """An 8x8 PNG file, which one of ImageNet's files named JPEG is."""
    return cv2.imencode(".png", np.full((8, 8, 3), 77, np.uint8))[1].tobytes()


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar archive of files, as bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, members)
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar archive of files."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, members)


def _add(tar: tarfile.TarFile, members: Iterable[tuple[str, bytes]]) -> None:
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def write_ilsvrc(
    folder: Path,
    synsets: Iterable[str] | None = None,
    per_synset: int = 1,
    val_images: int = 10,
    special: Mapping[str, bytes] | None = None,
) -> dict[str, dict[str, bytes]]:
    """Write ImageNet-1K's two archives.

    Args:
      folder: where to.
      synsets: of the training images; None means all 1,000, which a whole archive has.
      per_synset: training images of each synset.
      val_images: the first so many of the 50,000 validation images.
      special: contents of images, of both, that are not to be `jpeg(name)`, by file name.

    Returns:
      The images of "train" and "validation" by file name.
    """
    special = special or {}
    train: dict[str, dict[str, bytes]] = {}
    for synset in imagenet1k() if synsets is None else synsets:
        names = [f"{synset}_{number}.JPEG" for number in range(1, per_synset + 1)]
        train[synset] = {name: special.get(name) or jpeg(name) for name in names}
    write_tar(
        folder / TRAIN,
        ((f"{synset}.tar", tar_bytes(images.items())) for synset, images in train.items()),
    )
    validation = write_validation(folder, range(1, val_images + 1), special)
    return {
        "train": {name: data for images in train.values() for name, data in images.items()},
        "validation": validation,
    }


def write_validation(
    folder: Path, numbers: Iterable[int], special: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """Write ImageNet-1K's validation archive.

    Args:
      folder: where to.
      numbers: of the images, from 1.
      special: contents of images that are not to be `jpeg(name)`, by file name.

    Returns:
      The images by file name.
    """
    special = special or {}
    names = [f"ILSVRC2012_val_{number:08}.JPEG" for number in numbers]
    images = {name: special.get(name) or jpeg(name) for name in names}
    write_tar(folder / VALIDATION, images.items())
    return images


def write_imagenet22k_folder(folder: Path, counts: Mapping[str, int]) -> None:
    """Write an archive per synset with so many images, all of them alike."""
    for synset, data in _synset_archives(counts):
        (folder / f"{synset}.tar").write_bytes(data)


def write_imagenet22k_whole(path: Path, counts: Mapping[str, int], prefix: str = "") -> None:
    """Write one archive that holds the archives of the synsets, in a folder `prefix` if given."""
    write_tar(path, ((f"{prefix}{synset}.tar", data) for synset, data in _synset_archives(counts)))


def _synset_archives(counts: Mapping[str, int]) -> Iterable[tuple[str, bytes]]:
    image = jpeg("of the full ImageNet")
    for synset, count in counts.items():
        members = ((f"{synset}_{number}.JPEG", image) for number in range(1, count + 1))
        yield synset, tar_bytes(members)


def imagenet22k_counts(others: Mapping[str, int] | int = 4000) -> dict[str, int]:
    """Numbers of images: one of each ImageNet-1K synset, and of others.

    Args:
      others: numbers of images of synsets that ImageNet-1K has not, or how many
        such synsets to make up, with one image each.
    """
    if isinstance(others, int):
        others = {f"n9{number:07}": 1 for number in range(others)}
    return dict.fromkeys(imagenet1k(), 1) | dict(others)
