"""Prepared copies of a folder of images: which of them still hold what the folder holds.

A copy keeps the size, time and hash of every file it was made of. A file whose size and time are
as they were is not read; one with another time (after `cp -r`, say) is compared by its hash.
"""

import contextlib
import dataclasses
import hashlib
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnext_jax.files import replacing

# In the folder of a copy. `np.savez`: of all splits, their files in the order of the listing.
RECORD = "files.npz"
_HASH_BYTES = 16
# Names of changed files in a note.
_NAMED = 5


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


def content_hash(data: bytes) -> bytes:
    """Return a hash of a file's content, 16 bytes."""
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The files that a copy was made of, in the order of the listing.

    Attributes:
      identity: of the listing: names and labels.
      sizes: int64 `[n]`, in bytes.
      times: int64 `[n]`, nanoseconds, when they were last written.
      hashes: uint8 `[n, 16]`, of their content.
    """

    identity: str
    sizes: np.ndarray
    times: np.ndarray
    hashes: np.ndarray

    @classmethod
    def of(cls, identity: str, images: Sequence[Image], hashes: bytes) -> "Record":
        """Describe a copy that has just been made.

        Args:
          identity: of the listing.
          images: in the order of the listing.
          hashes: `content_hash` of each image, one after the other.
        """
        as_rows = np.frombuffer(hashes, np.uint8).reshape(-1, _HASH_BYTES)
        return cls(identity, *_sizes_and_times(images), as_rows)

    @classmethod
    def read(cls, copy: Path, identity: str) -> "Record | None":
        """Read the record of a copy; None where there is none, or one of other names or labels."""
        try:
            with np.load(copy / RECORD) as stored:
                if str(stored["identity"]) == identity:
                    return cls(identity, stored["sizes"], stored["times"], stored["hashes"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # copies made by earlier versions have none; a damaged one proves nothing
        return None

    def write(self, copy: Path) -> None:
        """Put the record into the folder of a copy, whole or not at all."""
        with replacing(copy / RECORD) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                identity=self.identity,
                sizes=self.sizes,
                times=self.times,
                hashes=self.hashes,
            )

    def changed(self, folder: Path, images: Sequence[Image]) -> list[str]:
        """Return the names of the files whose content is no longer that of the copy."""
        sizes, times = _sizes_and_times(images)
        changed = sizes != self.sizes
        for place in np.flatnonzero(~changed & (times != self.times)).tolist():
            try:
                data = (folder / images[place].name).read_bytes()
            except OSError:  # preparing says what is wrong with it
                changed[place] = True
            else:
                changed[place] = content_hash(data) != self.hashes[place].tobytes()
        return [images[place].name for place in np.flatnonzero(changed).tolist()]


def _sizes_and_times(images: Sequence[Image]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array([(image.size, image.mtime_ns) for image in images], np.int64)
    return numbers[:, 0], numbers[:, 1]


def find_copy(
    copies: Sequence[Path], folder: Path, identity: str, images: Sequence[Image]
) -> Path | None:
    """Find a copy that holds what is in the folder now.

    Says on stderr which files changed where one differs from it in a few, and takes note in a copy
    that its files have other times now.

    Args:
      copies: folders of prepared copies.
      folder: of the images.
      identity: of the listing.
      images: their names are paths from `folder`.
    """
    fewest: list[str] | None = None
    for copy in copies:
        record = Record.read(copy, identity)
        if record is None:
            continue
        changed = record.changed(folder, images)
        if not changed:
            _, times = _sizes_and_times(images)
            if (times != record.times).any():
                with contextlib.suppress(OSError):  # a folder that is only read: compared again
                    dataclasses.replace(record, times=times).write(copy)
            return copy
        if fewest is None or len(changed) < len(fewest):
            fewest = changed
    # Where most differ, it is another folder whose files happen to have the same names.
    if fewest and 2 * len(fewest) <= len(images):
        more = f" and {len(fewest) - _NAMED} more" if len(fewest) > _NAMED else ""
        print(
            f"note: files in {folder} changed since they were prepared: "
            f"{', '.join(fewest[:_NAMED])}{more}; preparing again, and a run that resumes goes on "
            "with them as they are now",
            file=sys.stderr,
        )
    return None
