"""Fine-tuning: freezing parts of a network.

Stages are numbered as in the paper's Table 1: conv1 is the stem, followed by conv2, conv3, ...
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from resnext_jax.models.variables import Arrays
from resnext_jax.optim.optimizers import is_norm

# Name prefixes of the arrays before the classifier, or before a detector's heads.
_BACKBONE = ("stem.", "stages.", "norm.")


@dataclasses.dataclass(frozen=True)
class Freezing:
    """Which arrays, by dotted name, training leaves unchanged (bitwise).

    Attributes:
      stages: freeze conv1 to conv`stages`, including running statistics; 0: none.
      norms: freeze every batch norm: scale, shift and running statistics (a detector's batches
        are too small for batch statistics; He et al. 2016, appendix A).
    """

    stages: int = 0
    norms: bool = False

    def __call__(self, name: str) -> bool:
        """Whether the array with this dotted name is frozen."""
        if self.norms and is_norm(name):
            return True
        prefixes = ["stem.", *(f"stages.conv{stage}." for stage in range(2, self.stages + 1))]
        return self.stages > 0 and name.startswith(tuple(prefixes))

    def stop_gradients(self, params: Arrays) -> Arrays:
        """Apply `stop_gradient` to frozen parameters: their gradients are zero and cost nothing."""
        return {
            name: jax.lax.stop_gradient(value) if self(name) else value
            for name, value in params.items()
        }

    def set_modes(self, model: Any) -> None:
        """Set training mode, except that frozen batch norms use their running statistics."""
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
    """Whether the array with this dotted name belongs to the backbone, before the heads."""
    return name.startswith(_BACKBONE)


def layers_above(name: str, blocks: Sequence[int]) -> int:
    """Count the layers after an array's own: 0 for the classifier, 1 for the last block.

    A block is a layer, and so is the stem (timm's `param_groups_layer_decay` counts alike); the
    batch norm after a pre-activation network's last block is part of that block.

    Args:
      name: dotted name of the array.
      blocks: number of blocks in each stage.
    """
    if not is_backbone(name) or name.startswith("norm."):
        return int(is_backbone(name))
    place = 0  # of the stem
    if name.startswith("stages."):
        _, stage, block, _ = name.split(".", 3)
        place = 1 + sum(blocks[: int(stage.removeprefix("conv")) - 2]) + int(block)
    return 1 + sum(blocks) - place
