"""Files of weights: `.safetensors`, and the `.pth` of PyTorch."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from resnext_jax.files import replacing, user_path
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.pickles import read_pth
from resnext_jax.interop.with_torch import write_pth
from resnext_jax.interop.wrappers import unwrap

_TORCH_SUFFIXES = (".pth", ".pt")

# Beginnings of files.
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_TAR = slice(257, 262), b"ustar"
_ENOUGH = 512


def source(path: str | os.PathLike[str]) -> str:
    """Return what errors call a file."""
    return f"weights file {path}"


def read_state_dict(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, np.ndarray]:
    """Read a file's arrays by their names, without "module." in front.

    Its beginning tells the format, `.safetensors` or what `torch.save` writes. PyTorch is not
    needed. Pickles that want to run anything are refused.

    Args:
      path: of the file.
      ema: read the average that a training saved beside the weights.

    Returns:
      Arrays as they are stored.

    Raises:
      WeightsError: the file is missing, unreadable, damaged, foreign, or refused.
    """
    path = user_path(path, "weights")
    named = source(path)
    try:
        with path.open("rb") as file:
            start = file.read(_ENOUGH)
        if start[8:9] == b"{" or path.suffix == ".safetensors":
            return dict(unwrap(_read_safetensors(path), ema=ema, source=named))
        if start.startswith((_ZIP, _PICKLE)):
            return read_pth(path, lambda saved: unwrap(saved, ema=ema, source=named), named)
    except OSError as error:
        raise WeightsError(
            f"{named} cannot be read: {error.strerror or error}; check the path."
        ) from error
    place, word = _TAR
    if start[place] == word:
        raise WeightsError(
            f"{named} is a tar archive, as the first versions of PyTorch wrote; load it in PyTorch "
            "and save it again."
        )
    raise WeightsError(
        f"{named} is neither .safetensors nor a file of torch.save"
        f"{', it is empty' if not start else ''}; check what it is, or fetch it again."
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (SafetensorError, TypeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{source(path)} is damaged, or no .safetensors ({' '.join(str(error).split())}); "
            "fetch it again."
        ) from error


def write_state_dict(state_dict: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Write arrays to a file, which is there whole or not at all.

    Args:
      state_dict: by PyTorch's name.
      path: ends in `.safetensors`, or in `.pth` or `.pt`, for which PyTorch is needed.

    Raises:
      WeightsError: another ending, no PyTorch, or the file cannot be written.
    """
    path = user_path(path, "weights")
    if path.suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise WeightsError(
            f"{source(path)} must end in .safetensors, or in .pth where PyTorch is installed."
        )
    arrays = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    try:
        with replacing(path) as temporary:
            if path.suffix in _TORCH_SUFFIXES:
                write_pth(arrays, temporary)
            else:
                # The mark by which PyTorch's programs know their own.
                safetensors.numpy.save_file(arrays, temporary, metadata={"format": "pt"})
    # PyTorch has errors of its own for what the system refuses.
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise WeightsError(
            f"{source(path)} cannot be written: {reason}; give another path."
        ) from error
