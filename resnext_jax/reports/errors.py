"""The error class of reports, and writing their files."""

from pathlib import Path

from resnext_jax.errors import UserError
from resnext_jax.files import replacing


class ReportError(UserError):
    """A report that cannot be generated from the given runs, or cannot be written."""


def write_report(path: Path, content: str | bytes) -> None:
    """Write a file atomically, creating its folder if needed.

    Raises:
      ReportError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ReportError(
            f"{path} cannot be written ({error.strerror}); name another file with --out=FILE."
        ) from error
