"""Paths that a user gives, files that are replaced as a whole, and strict JSON."""

import argparse
import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnext_jax.errors import UserError

# As in gs://bucket/run, also after `Path` has made one slash of the two.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def user_path(path: str | os.PathLike[str], name: str) -> Path:
    """Return a path as the user means it: `~` is expanded.

    Every path of a flag, a config field or an environment variable goes through here.

    Args:
      path: as it was given.
      name: of the flag or field, such as "--workdir", for the error.

    Raises:
      UserError: it is empty, an address such as gs://bucket/run, or of an unknown user's home.
    """
    text = os.fspath(path)
    if not text.strip():
        raise UserError(f"{name} is empty; give a path, or leave it out.")
    if _SCHEME.match(text):
        raise UserError(
            f"{name}={text} is an address, and only paths of this machine are read and written; "
            "mount or copy what is there, and give its path."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name}={text} starts with the home of an unknown user.") from error


def path_argument(text: str) -> Path:
    """Read a path, the `type` of an argument; see `user_path`."""
    try:
        return user_path(text, "the path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def strict_json(value: Any, indent: int | None = None) -> str:
    """Write a value as JSON that every reader takes: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write to, which takes its place when the block ends well.

    A crash leaves the old file whole, or the new one. After an error the old one stands, and
    nothing is beside it. The file has the mode that the umask says, whoever writes it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # Some libraries write a file of their own, for its owner alone, and rename it.
        if temporary.stat().st_mode != mode:
            temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
