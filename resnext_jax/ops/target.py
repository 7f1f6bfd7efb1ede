"""The platform that a program is compiled for, which selects lowerings and sums.

It need not be that of the current machine: a step can be lowered for a TPU topology, or exported
for other platforms, on a CPU.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)

# Platform names in `jax.export` and `lax.platform_dependent`, and those of their devices.
_DEVICES_OF = {"cuda": "gpu", "rocm": "gpu"}


def target_platform() -> str:
    """Return the platform that is currently traced for, as devices name it: "cpu", "gpu" or "tpu".

    It is that of `compiling_for`; else, inside `shard_map`, that of the mesh's devices; else JAX's
    default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    found: str = _chosen.get() or (device.platform if device else jax.default_backend())
    return _DEVICES_OF.get(found, found)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Trace for a platform, named as by devices or exports: "cpu", "gpu", "cuda", "tpu".

    Use it inside a jitted function. Around the call of one it has no effect if JAX has traced that
    function before.
    """
    token = _chosen.set(platform)
    try:
        yield
    finally:
        _chosen.reset(token)
