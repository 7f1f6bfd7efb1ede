"""ImageNet-5K: the 5,000 classes of the ResNeXt paper, from the full ImageNet (ImageNet-22K)."""

import collections
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
import tqdm

from resnext_jax.data.builders.imagenet2012 import (
    CITATION,
    VALIDATION_ARCHIVE,
    Example,
    ImagenetBuilder,
    no_images,
)
from resnext_jax.data.builders.synset_archives import SynsetArchive, index, loose
from resnext_jax.data.builders.synsets import (
    choose_synsets,
    imagenet1k,
    most,
    read_synsets,
    write_synsets,
)
from resnext_jax.errors import DataError

# Written beside the prepared data: the classes, and how many training images each has.
SYNSETS_FILE = "synsets.txt"

_ARCHIVE_NAME = re.compile(r".+\.(tar|tgz|tbz2?|txz)(\.\w+)?")
# Archives of the challenge, and of single synsets, are not the full ImageNet.
_OTHER_ARCHIVE = re.compile(r"ILSVRC.*|n\d{8}\.tar")
# How gzip, bzip2, xz and zstandard files begin.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Imagenet5k(ImagenetBuilder):
    """ImageNet-5K (ResNeXt paper, Sec. 5.2): 6.8 million training images of 5,000 classes.

    Labels 0 to 999 are ImageNet-1K's, then follow the 4,000 other synsets of the
    full ImageNet with the most images (see `synsets.choose_synsets`), or the
    synsets of `inputs.synsets`. The validation split is ImageNet-1K's. Images
    are stored as they are in the archives.

    Reads from `inputs.manual_dir`, without unpacking: `ILSVRC2012_img_val.tar`,
    and the full ImageNet as one archive of archives (such as `fall11_whole.tar`),
    as archives nXXXXXXXX.tar of single synsets, there or in a subfolder, or as
    both, of which those of single synsets are taken where a synset is in both.
    The classes and their numbers of images are listed in `synsets.txt` beside
    the prepared data.
    """

    TITLE = "ImageNet-5K"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Photographs of 5,000 kinds of things, one label each: the classes of ImageNet-1K "
                "and those others of the full ImageNet that have the most images, with the "
                "validation images of ImageNet-1K."
            ),
            # The classes are known once the archives have been looked through.
            features=self._features(tfds.features.ClassLabel()),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
            citation=CITATION,
        )

    def check_inputs(self) -> int:
        """Check the archives, and choose the classes: counts all images, which takes a while.

        Returns:
          Bytes of the archives of the chosen classes; the prepared data set takes as many.

        Raises:
          DataError: an archive is missing, compressed or damaged, holds something
            else, or a class has none or no images.
        """
        validation = self._check_archives([VALIDATION_ARCHIVE])
        self._check_validation()
        return validation + sum(archive.size() for archive in self._chosen.values())

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        self.info.features["label"].names = list(self._chosen)
        # Validation first, because it is found in minutes, not hours, to be damaged.
        return {"validation": self._validation(), "train": self._train()}

    def _train(self) -> Iterator[Example]:
        images: collections.Counter[int] = collections.Counter()
        for key, example in self._generate_examples(self._chosen):
            images[example["label"]] += 1
            yield key, example
        counted = [(synset, images[label]) for label, synset in enumerate(self._chosen)]
        write_synsets(Path(self.data_path, SYNSETS_FILE), counted)

    @functools.cached_property
    def _chosen(self) -> dict[str, SynsetArchive]:
        """The archives of the classes, in label order; found once, because that takes long."""
        found = find_synset_archives(self.folder)
        if self.inputs.synsets:
            return self._listed(found, self.inputs.synsets)
        # No terminal, no bar.
        counting = tqdm.tqdm(
            found.items(), desc="Counting images", unit=" synsets", leave=False, disable=None
        )
        counts = {synset: archive.count() for synset, archive in counting}
        return {synset: found[synset] for synset, _ in choose_synsets(counts, imagenet1k())}

    def _listed(self, found: dict[str, SynsetArchive], path: Path) -> dict[str, SynsetArchive]:
        synsets = [synset for synset, _ in read_synsets(path)]
        missing = [synset for synset in synsets if synset not in found]
        if missing:
            raise DataError(
                f"{len(missing):,} of the synsets in {path} have no archive in {self.folder} "
                f"({most(missing)}); put their archives nXXXXXXXX.tar there as well "
                "(ILSVRC2012_img_train.tar holds those of ImageNet-1K)."
            )
        for synset in synsets:
            if found[synset].is_empty():
                raise no_images(found[synset])
        return {synset: found[synset] for synset in synsets}


def find_synset_archives(folder: Path) -> dict[str, SynsetArchive]:
    """Find the archives of the full ImageNet's synsets, by synset.

    Raises:
      DataError: there are none, the whole archive is compressed or not the only
        one, or it cannot be read.
    """
    whole = _find_whole(folder)
    found = (index(whole) if whole else {}) | loose(folder)
    if not found:
        raise DataError(
            f"no archives of the full ImageNet are in {folder}; put one such as fall11_whole.tar "
            "there, or archives nXXXXXXXX.tar of single synsets."
        )
    return found


def _find_whole(folder: Path) -> Path | None:
    found: dict[bool, list[Path]] = {False: [], True: []}
    for path in sorted(folder.iterdir()):
        if _ARCHIVE_NAME.fullmatch(path.name) and not _OTHER_ARCHIVE.fullmatch(path.name):
            found[_is_compressed(path)].append(path)
    if len(found[False]) > 1:
        names = " and ".join(path.name for path in found[False])
        raise DataError(
            f"{folder} has several archives that could be the full ImageNet, {names}; "
            "move all but one elsewhere."
        )
    if found[False]:
        return found[False][0]
    if found[True]:
        raise DataError(
            f"archive {found[True][0]} is compressed and would have to be read over and over; "
            "unpack it with gunzip first, or move it elsewhere if it is not the full ImageNet."
        )
    return None


def _is_compressed(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(_COMPRESSED)
    except OSError as error:
        raise DataError(
            f"archive {path} cannot be read ({error.strerror}); check it, or move it elsewhere."
        ) from error
