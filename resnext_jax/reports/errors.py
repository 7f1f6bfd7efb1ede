"""What goes wrong with reports, and how it is written."""

import contextlib
import os
from pathlib import Path

from resnext_jax.errors import UserError


class ReportError(UserError):
    """A report that cannot be made of what was given, or cannot be written."""


def write_report(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all, and make its folder where that is missing.

    Raises:
      ReportError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ReportError(
            f"{path} cannot be written ({error.strerror}); name another file with --out=FILE."
        ) from error
