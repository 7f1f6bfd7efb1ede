"""The short training that PyTorch and this package must agree on."""

from collections.abc import Iterator

import numpy as np

# One division of the rate half-way.
STEPS, BOUNDARY, RATE, FACTOR = 20, 10, 1e-3, 10.0
RATES = [RATE if step < BOUNDARY else RATE / FACTOR for step in range(STEPS)]
# In float32: a step, and the loss behind it.
FLOAT32_RATES = [0.1, 0.1]
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4

BATCH_SIZE, SIZE, CLASSES = 8, 64, 5


def batches(steps: int, dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images `[N, H, W, 3]` and labels of each step."""
    for step in range(steps):
        rng = np.random.RandomState(100 + step)
        images = rng.standard_normal((BATCH_SIZE, SIZE, SIZE, 3)).astype(dtype)
        yield images, rng.randint(0, CLASSES, BATCH_SIZE).astype(np.int64)


def changes(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the L2 norm of each array's change."""
    return {
        name: float(np.linalg.norm(after[name] - before[name]))
        for name in before
        if not name.endswith("num_batches_tracked")
    }
