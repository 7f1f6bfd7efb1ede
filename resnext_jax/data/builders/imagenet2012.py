"""ImageNet-1K (ILSVRC 2012) from its two archives, and what ImageNet-5K shares with it."""

import contextlib
import functools
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from resnext_jax.data.builders import archives
from resnext_jax.data.builders.base import Builder
from resnext_jax.data.builders.synset_archives import SynsetArchive, index
from resnext_jax.data.builders.synsets import few, imagenet1k
from resnext_jax.errors import DataError

CITATION = """
@article{russakovsky2015imagenet,
  title={{ImageNet} Large Scale Visual Recognition Challenge},
  author={Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and
    Satheesh, Sanjeev and Ma, Sean and Huang, Zhiheng and Karpathy, Andrej and
    Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and Fei-Fei, Li},
  journal={International Journal of Computer Vision},
  volume={115},
  number={3},
  pages={211--252},
  year={2015},
  doi={10.1007/s11263-015-0816-y}
}
"""

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VALIDATION_ARCHIVE = "ILSVRC2012_img_val.tar"
# As published: sizes in bytes of the archives, and numbers of images.
ARCHIVE_BYTES = {TRAIN_ARCHIVE: 147_897_477_120, VALIDATION_ARCHIVE: 6_744_924_160}
TRAIN_IMAGES = 1_281_167
VALIDATION_IMAGES = 50_000

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")

# Key and features of an image.
Example = tuple[str, dict[str, Any]]


class ImagenetBuilder(Builder):
    """What ImageNet-1K and ImageNet-5K share: features, and the validation split."""

    @property
    def folder(self) -> Path:
        """The folder of the archives.

        Raises:
          DataError: none is given, or it is not a folder that can be read.
        """
        folder = self.inputs.manual_dir
        if folder is None:
            raise DataError(
                f"{self.TITLE} is prepared from archives that one downloads from "
                "https://image-net.org/download-images after registering there; "
                "name their folder with --manual_dir=FOLDER."
            )
        if not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)):
            raise DataError(
                f"{folder}, where the archives of {self.TITLE} should be, is not a folder that can "
                "be read; check --manual_dir."
            )
        return folder

    def _check_archives(self, names: Sequence[str]) -> int:
        """Check that archives are there and as large as published; return their bytes."""
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise DataError(
                f"{self.TITLE} needs {' and '.join(missing)}, not found in {self.folder}; download "
                "from https://image-net.org/download-images after registering there."
            )
        total = 0
        for name in names:
            size, published = (self.folder / name).stat().st_size, ARCHIVE_BYTES[name]
            if size != published and not self.inputs.trust_archives:
                raise DataError(
                    f"archive {self.folder / name} has {size:,} bytes where the published one has "
                    f"{published:,}; download it again, or pass --trust_archives if it is meant."
                )
            total += size
        return total

    def _check_validation(self) -> None:
        """Read the first validation image."""
        with contextlib.closing(self._validation()) as examples:
            next(examples)

    def _features(self, label: tfds.features.ClassLabel) -> tfds.features.FeaturesDict:
        return tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": label,
                "file_name": tfds.features.Text(),
            }
        )

    def _generate_examples(self, synset_archives: Mapping[str, SynsetArchive]) -> Iterator[Example]:
        """Yield the images of synsets, given in label order."""
        for label, archive in enumerate(synset_archives.values()):
            empty = True
            for name, image in archive.images():
                empty = False
                yield name, {"image": image, "label": label, "file_name": name}
            if empty:
                raise no_images(archive)

    def _validation(self) -> Generator[Example, None, None]:
        """Yield ImageNet-1K's validation images, labels 0 to 999."""
        path = self.folder / VALIDATION_ARCHIVE
        labels = validation_labels()
        seen = set()
        with archives.open_tar(path) as tar:
            for member in archives.files(tar, path, archives.MAX_IMAGE_BYTES):
                name = Path(member.name).name
                match = _VALIDATION_NAME.fullmatch(name)
                number = int(match[1]) if match else 0
                if not 1 <= number <= len(labels) or number in seen:
                    raise DataError(
                        f"archive {path} is refused: member {member.name!r} is not one of the "
                        "images ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG, or "
                        "is there twice."
                    )
                seen.add(number)
                image = archives.read(tar, member)
                yield name, {"image": image, "label": labels[number - 1], "file_name": name}
        self._check_number(path, len(seen), VALIDATION_IMAGES)

    def _check_number(self, path: Path, images: int, published: int) -> None:
        if images != published and not (images and self.inputs.trust_archives):
            raise DataError(
                f"archive {path} has {images:,} images where the published one has {published:,}; "
                "download it again."
            )


class Imagenet2012(ImagenetBuilder):
    """ImageNet-1K: 1,281,167 training and 50,000 validation images of 1,000 classes.

    Name, version, features, keys (so the order on disk) and labels are those of
    tfds's own builder, except that no image is converted: tfds's own stores the
    22 CMYK JPEG files as RGB and the one PNG file named JPEG as a JPEG file,
    here the bytes are those of the archives, which our decoder reads as they are.
    The test split, whose labels are not public, is left out.

    Reads `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar` in
    `inputs.manual_dir`, without unpacking them.
    """

    TITLE = "ImageNet-1K"
    VERSION = tfds.core.Version("5.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "5.1.0": "The version of tfds's own builder that this one replaces."
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Photographs of 1,000 kinds of things, one label each: the classification "
                "data of the ImageNet Large Scale Visual Recognition Challenge 2012."
            ),
            features=self._features(tfds.features.ClassLabel(names=imagenet1k())),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
            citation=CITATION,
        )

    def check_inputs(self) -> int:
        """Check both archives: there, as large as published, of the expected contents.

        Returns:
          Bytes of the archives; the prepared data set takes as many.

        Raises:
          DataError: an archive is missing, has another size than the published
            one and is not to be trusted, lacks a synset, or holds something else.
        """
        total = self._check_archives([TRAIN_ARCHIVE, VALIDATION_ARCHIVE])
        first = next(iter(self._synset_archives.values()))
        if first.is_empty():
            raise no_images(first)
        self._check_validation()
        return total

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        # Validation first, because it is found in minutes, not hours, to be damaged.
        return {"validation": self._validation(), "train": self._train()}

    def _train(self) -> Iterator[Example]:
        images = 0
        for example in self._generate_examples(self._synset_archives):
            images += 1
            yield example
        self._check_number(self.folder / TRAIN_ARCHIVE, images, TRAIN_IMAGES)

    @functools.cached_property
    def _synset_archives(self) -> dict[str, SynsetArchive]:
        """The archives in the training archive, in label order."""
        path = self.folder / TRAIN_ARCHIVE
        found = index(path)
        unknown = sorted(found.keys() - set(imagenet1k()))
        if unknown:
            raise DataError(
                f"archive {path} is refused: {few(unknown)} are not among ImageNet-1K's synsets."
            )
        missing = [synset for synset in imagenet1k() if synset not in found]
        if missing:
            raise DataError(
                f"archive {path} lacks the images of {len(missing):,} of the 1,000 synsets "
                f"({few(missing)}); download it again."
            )
        return {synset: found[synset] for synset in imagenet1k()}


def no_images(archive: SynsetArchive) -> DataError:
    """Make the error for a class without training images."""
    return DataError(
        f"archive {archive.where} has no images of synset {archive.synset}; "
        "replace it, because every class needs training images."
    )


@functools.cache
def validation_labels() -> tuple[int, ...]:
    """Return the labels (0 to 999) of the 50,000 validation images, by number in their names."""
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    labels = {synset: label for label, synset in enumerate(imagenet1k())}
    return tuple(labels[synset] for synset in path.read_text().split())
