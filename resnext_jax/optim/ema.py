"""Exponential moving average (EMA) of the weights."""

import dataclasses

import jax
import jax.numpy as jnp

from resnext_jax.models.variables import Arrays

Weights = dict[str, Arrays]


@dataclasses.dataclass(frozen=True)
class EmaSpec:
    """Settings of the EMA.

    Attributes:
      decay: weight of the old average in each update.
      every_steps: steps between updates.
      start_step: updates up to this step, and the first update in any case, copy the weights:
        initial weights and those during warm-up are far from the final ones.
      warmup: decay by min(decay, (1 + n) / (10 + n)) in the n-th update after these, as
        TensorFlow's average does with `num_updates`: a short run's average then follows it.
    """

    decay: float
    every_steps: int = 1
    start_step: int = 0
    warmup: bool = False


def update(spec: EmaSpec, average: Weights, weights: Weights, step: jax.Array) -> Weights:
    """Update the average.

    Args:
      spec: settings.
      average: current average of parameters and running statistics.
      weights: weights after `step`.
      step: number of steps taken, 1 after the first.
    """
    copied = max(spec.start_step, spec.every_steps)
    started = step > copied
    due = step % spec.every_steps == 0

    decay: float | jax.Array = spec.decay
    if spec.warmup:
        count = jnp.maximum(0, step // spec.every_steps - copied // spec.every_steps)
        decay = jnp.minimum(spec.decay, (1 + count) / (10 + count))

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        # Written as a difference, so that the average of a constant stays exactly constant.
        average = jnp.where(started, old + (1 - decay) * (new - old), new)
        return jnp.where(due, average, old)

    return jax.tree.map(moved, average, weights)
