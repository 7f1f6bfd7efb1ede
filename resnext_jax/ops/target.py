"""Which platform a program is compiled for, where lowerings and sums are chosen by it.

The machine that compiles need not have that platform: a step can be lowered for the TPUs of a
topology, or exported for other platforms, on a CPU.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)

# JAX's names of CUDA and ROCm, in `jax.export` and `lax.platform_dependent`, and of their devices.
_DEVICES_OF = {"cuda": "gpu", "rocm": "gpu"}


def target_platform() -> str:
    """Return the platform of what is traced now, as devices name it: "cpu", "gpu" or "tpu".

    That of `compiling_for`; without it that of the mesh's devices, inside `shard_map`; without a
    mesh JAX's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    found: str = _chosen.get() or (device.platform if device else jax.default_backend())
    return _DEVICES_OF.get(found, found)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Trace for a platform, by a device's or an export's name: "cpu", "gpu", "cuda", "tpu".

    For inside a function that is compiled. Around the call of one it has no effect where JAX has
    traced the function before.
    """
    token = _chosen.set(platform)
    try:
        yield
    finally:
        _chosen.reset(token)
