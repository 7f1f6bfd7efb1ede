"""Files of weights: `.safetensors`, and the `.pth` of PyTorch."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from resnext_jax.files import replacing, user_path
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.pickles import read_pth

_TORCH_SUFFIXES = (".pth", ".pt")

# Under which names training scripts keep weights, and averages of weights: those of torchvision
# and timm, and of many others. The first that is there is taken.
_WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "weights", "params")
_AVERAGES = ("state_dict_ema", "model_ema", "teacher")

# What AveragedModel has beside the names.
_AVERAGED = "n_averaged"
# What (Distributed)DataParallel and AveragedModel, and torch.compile, put before all names.
_WRAPPERS = ("module", "_orig_mod")
# A first part of names that is no prefix: it belongs to the names of some scheme.
_OWN_PART = re.compile(r"(conv|bn|norm|maxpool|layer|fc|stem|stages?|features|downsample)\d*")

# Entry of a `.safetensors` file's metadata: a JSON list of names, in label order.
_CLASS_NAMES = "class_names"

# Beginnings of files.
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_TAR = slice(257, 262), b"ustar"
_ENOUGH = 512


def source(path: str | os.PathLike[str]) -> str:
    """Return what errors call a file."""
    return f"weights file {path}"


def read_state_dict(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, np.ndarray]:
    """Read a file's arrays by their names, without "module." in front.

    The format, `.safetensors` or that of `torch.save`, is recognised by the first
    bytes. PyTorch is not needed. Pickles that want to run anything are refused.

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
            f"{source(path)} is damaged, or not a .safetensors file "
            f"({' '.join(str(error).split())}); fetch it again."
        ) from error


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Read the names of a file's classes, in label order, that `write_state_dict` put there.

    None where there are none, as in `.pth` and in files of other programs.
    """
    try:
        with safetensors.safe_open(user_path(path, "weights"), "numpy") as file:
            names = json.loads((file.metadata() or {}).get(_CLASS_NAMES, "null"))
    except (OSError, SafetensorError, ValueError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def write_state_dict(
    state_dict: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
) -> None:
    """Write arrays to a file, which is there whole or not at all.

    Args:
      state_dict: by PyTorch's name.
      path: ends in `.safetensors`, or in `.pth` or `.pt`, for which PyTorch is needed.
      class_names: of the network's classes, in label order; a `.pth` has no place for them.

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
                _write_pth(arrays, temporary)
            else:
                # The mark by which PyTorch's programs know their own.
                metadata = {"format": "pt"}
                if class_names is not None:
                    metadata[_CLASS_NAMES] = json.dumps(list(class_names))
                safetensors.numpy.save_file(arrays, temporary, metadata=metadata)
    # PyTorch has errors of its own for what the system refuses.
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise WeightsError(
            f"{source(path)} cannot be written: {reason}; give another path."
        ) from error


def unwrap(saved: Any, *, ema: bool = False, source: str = "the state dict") -> Mapping[str, Any]:
    """Return the state dict itself, without prefixes that all names have, such as "module.".

    A prefix of DataParallel, of torch.compile ("_orig_mod.") or of a module around the network is
    taken off, and one line on stderr says so.

    Args:
      saved: a state dict; or a dictionary that has one under one of the names that trainings give
        it, perhaps within another, and perhaps an average beside it.
      ema: take the average. Otherwise it is taken only where there is nothing else.
      source: its name in error messages.

    Raises:
      WeightsError: there is no state dict, or no average.
    """
    found = _find_state_dict(saved, ema, source)
    inner = [name for name, value in found.items() if isinstance(value, Mapping)]
    if inner or not found or not all(isinstance(name, str) for name in found):
        entries = ", ".join(map(repr, list(found)[:10])) or "nothing"
        raise WeightsError(
            f"{source} is no state dict, it holds {entries}; save the weights alone, with "
            "torch.save(model.state_dict(), FILE)."
        )
    names = [name for name in found if name != _AVERAGED]
    prefix = _common_prefix(names)
    if not prefix:
        return found
    print(f"note: {source}: {prefix!r} is taken off all names", file=sys.stderr)
    return {name.removeprefix(prefix): found[name] for name in names}


def _find_state_dict(saved: Any, ema: bool, source: str) -> Mapping[str, Any]:
    found, averaged = saved, False
    for _ in range(2):  # as in {"model": {"state_dict": ...}}
        if not isinstance(found, Mapping):
            raise WeightsError(f"{source} is no state dict but a {type(found).__name__}.")
        wanted = _AVERAGES if ema and not averaged else (*_WEIGHTS, *_AVERAGES)
        part = next((name for name in wanted if isinstance(found.get(name), Mapping)), None)
        if part is None:
            break
        found, averaged = found[part], averaged or part in _AVERAGES
    if ema and not averaged:
        raise WeightsError(
            f"{source} has no averaged weights ({' or '.join(_AVERAGES)}); "
            "take the weights themselves."
        )
    return found


def _common_prefix(names: Sequence[str]) -> str:
    """Return the first parts, with their dots, that all names have before a part of their own."""
    layers = [name.split(".")[:-1] for name in names]
    innermost = min(map(len, layers), default=0) - 1
    shared = ""
    for at, parts in enumerate(zip(*layers, strict=False)):
        if len({*parts}) > 1 or _OWN_PART.fullmatch(parts[0]):
            break
        # A layer's own name is no prefix, unless it is a wrapper's.
        if at == innermost and parts[0] not in _WRAPPERS:
            break
        shared += f"{parts[0]}."
    return shared


def _write_pth(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Save arrays as tensors with `torch.save`.

    Raises:
      WeightsError: PyTorch is not installed.
      OSError, RuntimeError: the file cannot be written.
    """
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            "writing .pth files needs PyTorch, which is not installed; write .safetensors, which "
            "PyTorch's users can read as well."
        ) from error
    tensors = {}
    for name, array in arrays.items():
        own = np.array(array)  # PyTorch wants to be able to write to it
        if array.dtype == jnp.bfloat16:  # of which PyTorch's bridge to NumPy does not know
            tensors[name] = torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(own)
    torch.save(tensors, path)
