"""An exponential moving average of the weights, to be evaluated beside them."""

import dataclasses

import jax
import jax.numpy as jnp

from resnext_jax.models.variables import Arrays

Weights = dict[str, Arrays]


@dataclasses.dataclass(frozen=True)
class EmaSpec:
    """How weights are averaged.

    Attributes:
      decay: weight of the old average, at each update.
      every_steps: an update is made at every so many steps.
      start_step: an update until then, and the first one in any case, makes the
        average the weights themselves: those that a run starts from, and those
        of a rate that still warms up, are far from where they will be.
    """

    decay: float
    every_steps: int = 1
    start_step: int = 0


def update(spec: EmaSpec, average: Weights, weights: Weights, step: jax.Array) -> Weights:
    """Move the average towards the weights.

    Args:
      spec: how.
      average: so far, of parameters and of running statistics.
      weights: after `step`.
      step: steps taken, 1 after the first.
    """
    started = step > max(spec.start_step, spec.every_steps)
    due = step % spec.every_steps == 0

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        # By the difference, so that what does not change has an average that does not either.
        average = jnp.where(started, old + (1 - spec.decay) * (new - old), new)
        return jnp.where(due, average, old)

    return jax.tree.map(moved, average, weights)
