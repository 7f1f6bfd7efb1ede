"""CIFAR-10 and CIFAR-100 from their archives of binary records."""

import dataclasses
import hashlib
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.resource import get_dl_fname
from tensorflow_datasets.core.download.util import DownloadError

from resnext_jax.data.builders import archives
from resnext_jax.data.builders.base import Builder
from resnext_jax.errors import DataError

_CITATION = """
@techreport{krizhevsky2009learning,
  title={Learning Multiple Layers of Features from Tiny Images},
  author={Krizhevsky, Alex},
  institution={University of Toronto},
  year={2009}
}
"""

_IMAGE_SHAPE = (32, 32, 3)
_PIXEL_BYTES = 32 * 32 * 3

# A PNG file is smaller than its pixels here, even with what is stored around it.
_PREPARED_BYTES = 60_000 * _PIXEL_BYTES

# The largest file in an archive is half as large.
_MAX_FILE_BYTES = 2**28

# Seconds until a server that does not answer is given up.
_TIMEOUT = 20


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published archive, and what to read in it.

    Attributes:
      url: where it is published.
      size: in bytes.
      sha256: checksum, as 64 hexadecimal digits.
      folder: that all files in the archive are in.
      splits: files of records by split, in the order of the examples.
      names: files of class names by label, in the order of the label bytes of a record.
    """

    url: str
    size: int
    sha256: str
    folder: str
    splits: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]

    @property
    def file_name(self) -> str:
        """What the archive is called."""
        return PurePosixPath(self.url).name

    @property
    def files(self) -> frozenset[str]:
        """The files that are read."""
        return frozenset(self.names.values()).union(*self.splits.values())

    @property
    def url_info(self) -> UrlInfo:
        """What tfds checks a download against."""
        size = tfds.core.utils.Size(self.size)
        return UrlInfo(size=size, checksum=self.sha256, filename=self.file_name)


class Cifar10(Builder):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 pixels, 10 classes.

    Name, version, features, keys (so the order on disk), ids and labels are those
    of tfds's own builder; the PNG files have the same pixels, not the same bytes.

    Reads `inputs.archive`, or the archive in `inputs.manual_dir` if it is there,
    and otherwise downloads it.
    """

    TITLE = "CIFAR-10"
    VERSION = tfds.core.Version("3.0.2")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "3.0.2": "The version of tfds's own builder that this one replaces."
    }
    ARCHIVE: ClassVar[Archive] = Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        splits={
            "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        names={"label": "batches.meta.txt"},
    )
    CLASSES: ClassVar[Mapping[str, int]] = {"label": 10}

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            label: tfds.features.ClassLabel(num_classes=number)
            for label, number in self.CLASSES.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                f"{self.TITLE}: tiny colour photographs, 50,000 for training and 10,000 for "
                f"testing, of {' and '.join(str(number) for number in self.CLASSES.values())} "
                "classes."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=_IMAGE_SHAPE),
                    **labels,
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation=_CITATION,
        )

    @property
    def url_infos(self) -> dict[str, UrlInfo]:
        """What tfds checks downloads against, by address."""
        return {self.ARCHIVE.url: self.ARCHIVE.url_info}

    def check_inputs(self) -> int:
        """Check the archive if it is here: its size and checksum.

        Returns:
          Bytes of the prepared data set, and of the archive if it must be downloaded.

        Raises:
          DataError: the archive is missing, cannot be read, or is not the published
            one and not to be trusted.
        """
        path = self._local_archive()
        if path is None:
            return _PREPARED_BYTES + self.ARCHIVE.size
        try:
            self._check_archive(path)
        except OSError as error:
            raise DataError(f"archive {path} cannot be read ({error.strerror}).") from error
        return _PREPARED_BYTES

    def _local_archive(self) -> Path | None:
        if self.inputs.archive:
            return self.inputs.archive
        if self.inputs.manual_dir:
            path = self.inputs.manual_dir / self.ARCHIVE.file_name
            return path if path.exists() else None
        return None

    def _check_archive(self, path: Path) -> None:
        if not path.exists():
            raise DataError(f"archive {path} does not exist; check its name and folder.")
        if not path.is_file():
            raise DataError(f"archive {path} is a folder; name the file {self.ARCHIVE.file_name}.")
        with path.open("rb") as file:
            if self.inputs.trust_archives:
                return
            size = path.stat().st_size
            if size != self.ARCHIVE.size:
                difference = f"it has {size:,} bytes instead of {self.ARCHIVE.size:,}"
            elif hashlib.file_digest(file, "sha256").hexdigest() != self.ARCHIVE.sha256:
                difference = "its checksum is another"
            else:
                return
        raise DataError(
            f"archive {path} is not the published {self.ARCHIVE.file_name} ({difference}); fetch "
            f"it again from {self.ARCHIVE.url}, or pass --trust_archives if it is meant."
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        path = self._local_archive() or self._download(dl_manager)
        files = self._read(path)
        for label, file in self.ARCHIVE.names.items():
            self.info.features[label].names = self._class_names(path, label, file, files[file])
        records = {
            split: [self._records(path, file, files[file]) for file in names]
            for split, names in self.ARCHIVE.splits.items()
        }
        for split, parts in records.items():
            if not any(len(part) for part in parts):
                raise self._refused(path, f"has no images for {split}")
        return {split: self._generate_examples(split, parts) for split, parts in records.items()}

    def _generate_examples(
        self, split: str, parts: Sequence[np.ndarray]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        labels = tuple(self.ARCHIVE.names)
        for index, record in enumerate(record for part in parts for record in part):
            image = record[len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
            # Encoded here, because tfds encodes arrays with TensorFlow. OpenCV has blue first.
            png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
            classes = {label: int(value) for label, value in zip(labels, record, strict=False)}
            yield index, {"id": f"{split}_{index:05d}", "image": png, **classes}

    def _read(self, path: Path) -> dict[str, bytes]:
        """Read the files of the archive, by name."""
        found: dict[str, bytes] = {}
        with archives.open_tar(path) as tar:
            for member in archives.files(tar, path, _MAX_FILE_BYTES):
                name = PurePosixPath(member.name)
                if str(name.parent) != self.ARCHIVE.folder or name.name not in self.ARCHIVE.files:
                    continue
                if name.name in found:
                    raise self._refused(path, f"has two files {name}")
                found[name.name] = archives.read(tar, member)
        missing = sorted(self.ARCHIVE.files - found.keys())
        if missing:
            raise self._refused(path, f"lacks {', '.join(missing)} in {self.ARCHIVE.folder}")
        return found

    def _class_names(self, path: Path, label: str, file: str, text: bytes) -> list[str]:
        lines = text.decode(errors="replace").split("\n")
        names = [line.strip() for line in lines if line.strip()]
        number = self.CLASSES[label]
        if len(set(names)) != number or len(names) != number:
            raise self._refused(path, f"has not {number} different class names in {file}")
        return names

    def _records(self, path: Path, file: str, data: bytes) -> np.ndarray:
        """Return records, uint8 `[N, labels + 3072]`: label bytes, then red, green, blue planes."""
        labels = tuple(self.ARCHIVE.names)
        size = len(labels) + _PIXEL_BYTES
        if len(data) % size:
            raise self._refused(
                path, f"has {len(data):,} bytes in {file}, which is no multiple of {size:,}"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, size)
        for column, label in enumerate(labels):
            wrong = np.flatnonzero(records[:, column] >= self.CLASSES[label])
            if len(wrong):
                raise self._refused(
                    path,
                    f"has {label} {records[wrong[0], column]} in image {wrong[0]} of {file}, "
                    f"outside the classes 0 to {self.CLASSES[label] - 1}",
                )
        return records

    def _refused(self, path: Path, what: str) -> DataError:
        return DataError(
            f"archive {path} is not {self.TITLE}'s: it {what}; fetch it again from "
            f"{self.ARCHIVE.url}"
        )

    def _download(self, dl_manager: Any) -> Path:
        """Download the archive, or find it where tfds has downloaded it before."""
        url = self.ARCHIVE.url
        name = get_dl_fname(url, self.ARCHIVE.sha256)
        folders = (dl_manager.download_dir, dl_manager.download_dir / self.name)
        if not any((folder / name).exists() for folder in folders):
            reason = _why_unreachable(url)
            if reason:
                raise self._unfetched(reason)
        try:
            # In a thread, so that Ctrl-C meets this one waiting: inside tfds it can get lost.
            return Path(ThreadPoolExecutor(1).submit(dl_manager.download, url).result())
        except NonMatchingChecksumError as error:
            raise self._unfetched("its size or checksum is not the published one") from error
        except DownloadError as error:
            raise self._unfetched(str(error)) from error
        except OSError as error:
            if error.errno is not None:
                raise  # the disk's: errors of the network come without a number
            raise self._unfetched(str(error)) from error

    def _unfetched(self, reason: str) -> DataError:
        return DataError(
            f"{self.TITLE} cannot be fetched from {self.ARCHIVE.url} ({' '.join(reason.split())}); "
            f"fetch {self.ARCHIVE.file_name} elsewhere and give it with "
            f"python -m resnext_jax.data.prepare --dataset={self.name} --archive=FILE "
            f"--data_dir={self.data_dir_root}"
        )


class Cifar100(Cifar10):
    """CIFAR-100: like CIFAR-10, of 100 classes, which are grouped into 20 coarse ones."""

    TITLE = "CIFAR-100"
    ARCHIVE = Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        splits={"train": ("train.bin",), "test": ("test.bin",)},
        names={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    )
    CLASSES: ClassVar[Mapping[str, int]] = {"label": 100, "coarse_label": 20}


def _why_unreachable(url: str) -> str | None:
    """Say why a server does not answer, None if it does: tfds would go on trying for minutes."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT):
            return None
    except urllib.error.HTTPError as error:
        return f"the server answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLError):
            return None  # tfds brings certificates of its own
        return str(getattr(reason, "strerror", None) or reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
