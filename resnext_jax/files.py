"""Paths given by the user, atomic replacement of files, and strict JSON."""

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
    """Return a path given by the user, with `~` expanded.

    Every path from a flag, a config field or an environment variable goes through here.

    Args:
      path: the path as given.
      name: name of the flag or field, such as "--workdir", for the error.

    Raises:
      UserError: it is empty, a URL such as gs://bucket/run, or in an unknown user's home.
    """
    text = os.fspath(path)
    if not text.strip():
        raise UserError(f"{name} is empty; give a path, or leave it out.")
    if _SCHEME.match(text):
        raise UserError(
            f"{name}={text} is a URL, and only local paths are supported; mount or copy the "
            "files, and give their local path."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name}={text} is in the home of an unknown user.") from error


def path_argument(text: str) -> Path:
    """Parse a path; the `type` of a command-line argument. See `user_path`."""
    try:
        return user_path(text, "the path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def strict_json(value: Any, indent: int | None = None) -> str:
    """Return a value as strict JSON: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that atomically replaces `path` when the block succeeds.

    After a crash, `path` is the complete old or the complete new file. After an error, the old
    file is unchanged and the temporary file removed. The file's mode follows the umask, whichever
    library writes it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # Some libraries write another file, readable by its owner only, and rename it.
        if temporary.stat().st_mode != mode:
            temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
