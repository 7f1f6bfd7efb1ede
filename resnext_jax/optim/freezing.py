"""Fine-tuning: what of a network stays as it is.

Stages are counted as the paper counts them (Table 1): conv1 is the stem, conv2, conv3, ... follow.
"""

import dataclasses
from typing import Any

import jax

from resnext_jax.models.variables import Arrays
from resnext_jax.optim.optimizers import is_norm

# What all arrays in front of the classifier, or of a detector's heads, begin with.
_BACKBONE = ("stem.", "stages.", "norm.")


@dataclasses.dataclass(frozen=True)
class Freezing:
    """Which arrays, by dotted name, training leaves bit for bit.

    Attributes:
      stages: conv1 to conv`stages`, with their statistics.
      norms: every batch norm: scale, shift and statistics (a detector's images
        are too few for statistics; He et al. 2016, appendix A).
    """

    stages: int = 0
    norms: bool = False

    def __call__(self, name: str) -> bool:
        """Tell whether an array, by its dotted name, is frozen."""
        if self.norms and is_norm(name):
            return True
        prefixes = ["stem.", *(f"stages.conv{stage}." for stage in range(2, self.stages + 1))]
        return self.stages > 0 and name.startswith(tuple(prefixes))

    def stop_gradients(self, params: Arrays) -> Arrays:
        """Take frozen parameters as constants: nothing is computed for their gradients, zeros."""
        return {
            name: jax.lax.stop_gradient(value) if self(name) else value
            for name, value in params.items()
        }

    def set_modes(self, model: Any) -> None:
        """Put a network into training mode, but what is frozen normalises as in testing."""
        if self.norms:
            model.eval()
            return
        model.train()
        if self.stages:
            model.stem.eval()
        for stage in range(2, self.stages + 1):
            for block in model.stages[f"conv{stage}"]:
                block.eval()


def is_backbone(name: str) -> bool:
    """Tell whether an array, by its dotted name, is in front of the heads."""
    return name.startswith(_BACKBONE)
