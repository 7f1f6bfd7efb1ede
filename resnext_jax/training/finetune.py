"""Fine-tuning: which stages stay as they are, and how fast the others move.

Stages are counted as the paper counts them (Table 1): conv1 is the stem, conv2, conv3, ... follow.
"""

from typing import Any

import jax

from resnext_jax.models.variables import Arrays

# The classifier's arrays.
_HEAD = "fc."


def is_frozen(name: str, frozen_stages: int) -> bool:
    """Tell whether an array, by its dotted name, is in conv1 to conv`frozen_stages`."""
    prefixes = ["stem.", *(f"stages.conv{stage}." for stage in range(2, frozen_stages + 1))]
    return frozen_stages > 0 and name.startswith(tuple(prefixes))


def is_backbone(name: str) -> bool:
    """Tell whether an array, by its dotted name, is in front of the classifier."""
    return not name.startswith(_HEAD)


def stop_gradients(params: Arrays, frozen_stages: int) -> Arrays:
    """Take frozen parameters as constants: then nothing is computed for their gradients, zeros."""
    return {
        name: jax.lax.stop_gradient(value) if is_frozen(name, frozen_stages) else value
        for name, value in params.items()
    }


def keep_frozen(new: Arrays, old: Arrays, frozen_stages: int) -> Arrays:
    """Return `new`, but frozen arrays as of `old`: averaging equal numbers may round them."""
    return {
        name: old[name] if is_frozen(name, frozen_stages) else value for name, value in new.items()
    }


def freeze(model: Any, frozen_stages: int) -> None:
    """Let frozen stages of a network normalise as in testing, and keep their statistics."""
    if frozen_stages:
        model.stem.eval()
    for stage in range(2, frozen_stages + 1):
        for block in model.stages[f"conv{stage}"]:
            block.eval()
