"""What became of each image: the guess, and whether it was wrong."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resnext_jax.data.augment import SKIPPED, Batch
from resnext_jax.evaluation.metrics import topk_wrong
from resnext_jax.parallel.mesh import replicated_sharding

# By name: the attributes of `Guesses`, and perhaps `mask`.
Told = dict[str, jax.Array]

# What of a batch is read beside its images.
_LABELS = ("label", "mask", SKIPPED)


@dataclasses.dataclass(frozen=True, eq=False)
class Guesses:
    """What became of each image, in no order that means anything.

    Attributes:
      labels: int32 `[N]`, the true classes.
      predicted: int32 `[N]`, the best-scored classes, the first of equals; -1 where a score is
        not a number.
      top5_wrong: bool `[N]`, whether the true class is missing from the five best-scored.
    """

    labels: np.ndarray
    predicted: np.ndarray
    top5_wrong: np.ndarray


def without_images(batch: Batch) -> Batch:
    """Leave out what is large, and need not be handed to a step that reads labels only."""
    return {name: batch[name] for name in _LABELS if name in batch}


def make_guess_step(mesh: Mesh) -> Callable[[jax.Array, Batch], Told]:
    """Compile what tells of each image of a batch.

    Returns:
      A function of scores `[N, K]` and their batch, to the attributes of `Guesses` and `mask`,
      `[N]` each, all of them on every device.
    """

    @functools.partial(jax.jit, out_shardings=replicated_sharding(mesh))
    def guess(scores: jax.Array, batch: Batch) -> Told:
        return guesses_of(scores, batch["label"]) | {"mask": batch["mask"]}

    return lambda scores, batch: guess(scores, without_images(batch))


def guesses_of(scores: jax.Array, labels: jax.Array) -> Told:
    """Return the attributes of `Guesses` for scores `[N, K]` and labels `[N]`."""
    best = jnp.argmax(scores, axis=1).astype(jnp.int32)
    return {
        "labels": labels,
        "predicted": jnp.where(jnp.isnan(scores).any(axis=1), -1, best),
        "top5_wrong": topk_wrong(scores, labels, 5),
    }


def join_guesses(parts: Sequence[Mapping[str, Any]]) -> Guesses | None:
    """Put together what batches told, without what is not in the mask; None if they told nothing.

    Args:
      parts: of each batch, as a step of `make_guess_step` gives them.
    """
    if not all(parts):
        return None
    fetched = jax.device_get(list(parts))
    return Guesses(
        *(
            np.concatenate([part[name][part["mask"]] for part in fetched])
            for name in ("labels", "predicted", "top5_wrong")
        )
    )
