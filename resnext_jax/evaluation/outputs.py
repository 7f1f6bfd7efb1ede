"""Files that an evaluation writes: whole, and known beforehand to be writable."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from resnext_jax.errors import UserError
from resnext_jax.files import replacing


def check_writable(path: Path, flag: str) -> None:
    """Check that a file can be written, before hours of work.

    Args:
      path: of the file.
      flag: of the command line, which names another.

    Raises:
      UserError: its folder is missing or cannot be written, or a folder is in its place.
    """
    folder = path.parent
    if not folder.is_dir():
        reason = f"there is no folder {folder}"
    elif path.is_dir():
        reason = "it is a folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"folder {folder} cannot be written"
    else:
        return
    raise UserError(f"{path} cannot be written: {reason}; name another file with {flag}=FILE.")


def write_output(path: Path, content: str | bytes, flag: str) -> None:
    """Write a file, whole or not at all; raises UserError as `check_writable` does."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; name another file with "
            f"{flag}=FILE."
        ) from error


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other evaluations from changing a file of a folder between reading and writing it."""
    with contextlib.ExitStack() as closing:
        with contextlib.suppress(OSError):  # a file system without locks, or no right to read
            handle = os.open(folder, os.O_RDONLY)
            closing.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
