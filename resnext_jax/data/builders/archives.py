"""Reading tar archives that come from elsewhere: nothing is unpacked, nothing odd is accepted."""

import contextlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from resnext_jax.errors import DataError

# No photograph of any of the data sets is larger; what claims to be is refused unread.
MAX_IMAGE_BYTES = 256 * 2**20


@contextlib.contextmanager
def open_tar(path: Path, file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Open an archive for reading: plain, or compressed if it is a file of its own.

    Args:
      path: of the archive, or what to call it in errors.
      file: an archive inside another, opened; it must not be compressed.

    Raises:
      DataError: missing, unreadable, not a tar archive, or damaged (also while it is open).
    """
    try:
        with tarfile.open(path) if file is None else tarfile.open(fileobj=file, mode="r:") as tar:
            yield tar
    except FileNotFoundError:
        raise DataError(f"archive {path} does not exist; check its name and folder.") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise DataError(
            f"archive {path} is not a whole tar archive ({reason}); fetch it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"archive {path} cannot be read ({error.strerror or error}); "
            "check it, or fetch it again."
        ) from error


def files(tar: tarfile.TarFile, path: Path, max_bytes: int) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an archive, in its order; folders are passed over.

    Args:
      tar: the archive.
      path: what to call it in errors.
      max_bytes: no file may be larger.

    Raises:
      DataError: a path that leaves the archive's folder, a link, a device, or a
        file of absurd size: such an archive is not what it claims to be.
    """
    while (member := tar.next()) is not None:
        # tarfile remembers every member; of fourteen million that would be gigabytes.
        tar.members = []  # type: ignore[attr-defined]
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise DataError(
                f"archive {path} is refused: member {member.name!r} has an unsafe path."
            )
        if member.isdir():
            continue
        if not member.isfile():
            raise DataError(
                f"archive {path} is refused: member {member.name!r} is a link or a device."
            )
        if member.size > max_bytes:
            raise DataError(
                f"archive {path} is refused: member {member.name!r} claims {member.size:,} bytes, "
                f"more than the {max_bytes:,} that are plausible."
            )
        yield member
    # A last block of zeros marks the end. tarfile does without, and takes a damaged header for
    # the end: it would see neither of them, nor that an archive was cut between two members.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without an end mark")
    if any(end):
        raise tarfile.ReadError(f"its header at byte {tar.offset:,} is damaged")
    # The checksum of a compressed archive comes last.
    while tar.fileobj.read(2**20):
        pass


def read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a regular file of an archive."""
    file = tar.extractfile(member)
    assert file is not None  # a regular file always has contents
    return file.read()
