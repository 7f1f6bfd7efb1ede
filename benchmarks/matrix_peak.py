"""The devices' matrix peak: what a big square product reaches, in the same run and dtype.

Data sheets promise more than any product reaches, and clocks differ by cooling
and by the neighbours. A step's share of what was measured beside it is the
better figure.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure

# Height and width of the matrices: on accelerators large enough to fill them,
# on the CPU small enough to take milliseconds.
_SIDE = {"cpu": 1024}
_ACCELERATORS_SIDE = 8192


def matrix_peak(dtype: str, *, rounds: int, limit: float) -> float:
    """Measure floating-point operations a second of all devices together, at best.

    At JAX's default precision, as the convolutions run: on recent NVIDIA GPUs
    float32 means TF32.
    """
    platform = jax.default_backend()
    side = _SIDE.get(platform, _ACCELERATORS_SIDE)
    rng = np.random.default_rng(0)
    left, right = (
        jnp.asarray(rng.standard_normal((side, side), np.float32), dtype) for _ in range(2)
    )
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    timing = measure.interleave(
        {"product": lambda: product(left, right)}, rounds=rounds, limit=limit
    )["product"]
    # One device was measured. Virtual devices of a CPU share its cores.
    devices = 1 if platform == "cpu" else jax.device_count()
    return devices * 2 * side**3 / min(timing.seconds)
