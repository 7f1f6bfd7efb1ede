"""Whether PyTorch can be compared with here, and how it is set and waited for.

PyTorch is imported only when asked for: the benchmarks work without it.
"""

import os
from typing import Any

import jax


def share_gpu() -> None:
    """Have JAX take GPU memory as it needs it, and not most of it at once.

    Only before JAX makes its first array, and only where nobody decided otherwise.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def why_not() -> str | None:
    """Say why PyTorch cannot be compared with here; None where it can."""
    try:
        import torch
    except (ImportError, OSError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        return "it is not installed" if absent else f"it cannot be imported ({error})"
    ours = jax.default_backend()
    theirs = "gpu" if torch.cuda.is_available() else "cpu"
    if ours != theirs:
        return f"JAX computes on the {ours} and PyTorch on the {theirs}"
    if jax.device_count() > 1:
        return f"JAX computes on {jax.device_count()} devices and PyTorch would on one"
    return None


def set_up(*, wanted: bool) -> dict[str, Any]:
    """Set PyTorch up for speed, where it is wanted and can be compared with.

    On a GPU, float32 products and convolutions may use TF32, as JAX's do by default.

    Returns:
      What the JSON file says: whether it is `used`, and its settings or the `reason`.
    """
    reason = why_not() if wanted else "not asked for"
    if reason:
        if wanted:
            print(f"PyTorch is left out: {reason}.\n")
        return {"used": False, "reason": reason}
    import torch

    settings = {"used": True, "memory_format": "channels_last"}
    if not torch.cuda.is_available():
        return {**settings, "device": "cpu", "threads": torch.get_num_threads()}
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    return {
        **settings,
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": True,
        "tf32": True,
    }


def device() -> Any:
    """Return the device that PyTorch computes on."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(_: object) -> None:
    """Wait for all that PyTorch has queued; on the CPU its calls return when they are done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget() -> None:
    """Drop compiled code, and give cached memory back for JAX to use."""
    import torch

    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
