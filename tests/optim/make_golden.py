"""Store trajectories of PyTorch's and timm's optimisers, for test_optimizers.

Needs PyTorch and timm, which the tests do not: python -m tests.optim.make_golden
Written with torch 2.13.0 and the timm that golden.npz names.
"""

from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden.npz"
STEPS = 20
SHAPES = {"stem.conv.kernel": (3, 4), "stem.norm.scale": (4,), "fc.kernel": (4, 2), "fc.bias": (2,)}
# Parameters with weight decay: no batch norm, no bias.
DECAY = {"stem.conv.kernel": 0.05, "fc.kernel": 0.05}

# By case: the optimiser and its options, under PyTorch's and timm's names.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"momentum": 0.9, "nesterov": True}),
    "adamw": ("adamw", {"betas": (0.9, 0.98), "eps": 1e-8}),
    "lamb": ("lamb", {"betas": (0.9, 0.999), "eps": 1e-6, "max_grad_norm": None}),
    "lamb_clipped": ("lamb", {"betas": (0.9, 0.999), "eps": 1e-6, "max_grad_norm": 1.0}),
    "lars": ("lars", {"momentum": 0.9, "trust_coeff": 0.01}),
    "lars_nesterov": ("lars", {"momentum": 0.9, "trust_coeff": 0.01, "nesterov": True}),
}


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Return the initial parameters (seed 0), or the gradients of a step (1, 2, ...)."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def rate(step: Any) -> Any:
    """Return the learning rate of a step, which falls linearly."""
    return 0.1 * (1 - step / STEPS)


def trajectory(name: str, options: dict[str, Any]) -> np.ndarray:
    """Return all parameters after each step, float64 `[STEPS, count]`."""
    import torch
    from timm.optim import Lamb, Lars

    params = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in arrays(0).items()}
    groups = [{"params": [p], "weight_decay": DECAY.get(key, 0.0)} for key, p in params.items()]
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "lamb": Lamb, "lars": Lars}
    optimizer = kinds[name](groups, lr=rate(0), **options)
    rows = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for key, gradient in arrays(step + 1).items():
            params[key].grad = torch.tensor(gradient)
        optimizer.step()
        rows.append(np.concatenate([p.detach().numpy().ravel() for p in params.values()]))
    return np.stack(rows)


# Binary cross-entropy, by case: label smoothing and target threshold.
BCE_CASES: dict[str, tuple[float, float | None]] = {
    "bce": (0.0, None),
    "bce_smoothed": (0.1, None),
    "bce_thresholded": (0.1, 0.2),
}
CLASSES = 4


def classified() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs float64 `[12, 5]` and labels `[12]`."""
    rng = np.random.default_rng(7)
    return rng.normal(size=(12, 5)), rng.integers(CLASSES, size=12)


def bce_trajectory(smoothing: float, threshold: float | None) -> np.ndarray:
    """Return a linear classifier after each step at rate 1, float64 `[STEPS, 5, CLASSES]`."""
    import torch
    from timm.loss import BinaryCrossEntropy

    images, labels = map(torch.tensor, classified())
    weight = torch.nn.Parameter(torch.zeros(images.shape[1], CLASSES, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    loss = BinaryCrossEntropy(smoothing, threshold)
    rows = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(images @ weight, labels).backward()
        optimizer.step()
        rows.append(weight.detach().numpy().copy())
    return np.stack(rows)


def main() -> None:
    """Write the file."""
    import timm
    import torch

    stored: dict[str, Any] = {case: trajectory(*settings) for case, settings in CASES.items()}
    stored |= {case: bce_trajectory(*settings) for case, settings in BCE_CASES.items()}
    np.savez_compressed(GOLDEN, versions=[torch.__version__, timm.__version__], **stored)


if __name__ == "__main__":
    main()
