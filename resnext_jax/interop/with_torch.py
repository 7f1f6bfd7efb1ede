"""What needs PyTorch, and is offered only where it is installed."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from resnext_jax.interop.errors import WeightsError


def write_pth(arrays: Mapping[str, np.ndarray], path: Path) -> None:
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
