"""Archives with the images of one synset each: loose, or together in one large archive."""

import contextlib
import dataclasses
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from resnext_jax.data.builders import archives
from resnext_jax.errors import DataError

# The largest synsets have some 3,000 images, hundreds of megabytes.
MAX_SYNSET_BYTES = 4 * 2**30

_ARCHIVE_NAME = re.compile(r"(n\d{8})\.tar")


@dataclasses.dataclass(frozen=True)
class SynsetArchive:
    """A tar archive nXXXXXXXX.tar of JPEG files nXXXXXXXX_NNN.JPEG.

    Attributes:
      synset: the nXXXXXXXX.
      path: the archive, or the large archive that it is in.
      member: its place in the large archive; None where it is a file of its own.
    """

    synset: str
    path: Path
    member: tarfile.TarInfo | None = None

    @property
    def where(self) -> Path:
        """What the archive is called in errors."""
        return self.path if self.member is None else self.path / self.member.name

    def size(self) -> int:
        """Return the bytes of the archive."""
        return self.path.stat().st_size if self.member is None else self.member.size

    def count(self) -> int:
        """Count the images; their contents are not read.

        Raises:
          DataError: the archive is damaged, or holds something else.
        """
        with self._open() as tar:
            return sum(1 for _ in self._members(tar))

    def is_empty(self) -> bool:
        """Return whether there is no image; reads the first header only.

        Raises:
          DataError: the archive cannot be read, or holds something else.
        """
        with self._open() as tar:
            return next(self._members(tar), None) is None

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Yield file name and bytes of each image, as they are in the archive.

        Raises:
          DataError: the archive is damaged, or holds something else.
        """
        with self._open() as tar:
            for name, member in self._members(tar):
                yield name, archives.read(tar, member)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        with archives.open_tar(self.path) as tar:
            if self.member is None:
                yield tar
                return
            with archives.open_tar(self.where, tar.extractfile(self.member)) as inner:
                yield inner

    def _members(self, tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
        expected = re.compile(rf"{self.synset}_\d+\.JPEG")
        seen = set()
        for member in archives.files(tar, self.where, archives.MAX_IMAGE_BYTES):
            name = PurePosixPath(member.name).name
            if not expected.fullmatch(name):
                raise DataError(
                    f"archive {self.where} is refused: member {member.name!r} is not an image of "
                    f"its synset, which are named {self.synset}_NUMBER.JPEG."
                )
            # File names are the keys of the examples. As they begin with the synset, only those
            # of one archive can be alike.
            if name in seen:
                raise DataError(f"archive {self.where} is refused: it has two files {name}.")
            seen.add(name)
            yield name, member


def index(path: Path) -> dict[str, SynsetArchive]:
    """Find the synsets' archives in one large archive, by synset, in its order.

    Raises:
      DataError: it is damaged, holds something else, or one synset twice.
    """
    found: dict[str, SynsetArchive] = {}
    with archives.open_tar(path) as tar:
        for member in archives.files(tar, path, MAX_SYNSET_BYTES):
            match = _ARCHIVE_NAME.fullmatch(PurePosixPath(member.name).name)
            if not match:
                raise DataError(
                    f"archive {path} is refused: member {member.name!r} is not "
                    "an archive of a synset, which are named nXXXXXXXX.tar."
                )
            synset = match[1]
            if synset in found:
                raise DataError(f"archive {path} is refused: it has synset {synset} twice.")
            found[synset] = SynsetArchive(synset, path, member)
    return found


def loose(folder: Path) -> dict[str, SynsetArchive]:
    """Find the synsets' archives that are files in a folder or its subfolders, by synset.

    Raises:
      DataError: a synset is there twice.
    """
    found: dict[str, SynsetArchive] = {}
    for path in sorted([*folder.glob("n*.tar"), *folder.glob("*/n*.tar")]):
        match = _ARCHIVE_NAME.fullmatch(path.name)
        if not match:
            continue
        synset = match[1]
        if synset in found:
            raise DataError(
                f"synset {synset} is there twice, {found[synset].path} and {path}; "
                "move one of them elsewhere."
            )
        found[synset] = SynsetArchive(synset, path)
    return found
