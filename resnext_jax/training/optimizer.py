"""Stochastic gradient descent and its schedule, as the paper trains (Sec. 4)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


@dataclasses.dataclass(frozen=True)
class ScheduleSpec:
    """A learning-rate schedule in epochs.

    Attributes:
      kind: "step" (divide at each boundary) or "cosine" (to zero at the end).
      peak: the rate before any decay, after warm-up.
      num_epochs: length of the run.
      boundaries: epochs at which the step schedule divides the rate.
      factor: what it divides by.
      warmup_epochs: linear rise from zero to `peak` at the start.
    """

    kind: Literal["step", "cosine"]
    peak: float
    num_epochs: float
    boundaries: tuple[float, ...] = ()
    factor: float = 10.0
    warmup_epochs: float = 0.0


def make_schedule(spec: ScheduleSpec, steps_per_epoch: float) -> Schedule:
    """Turn the schedule into a function of the step (0 for the first).

    Epochs are fractions: with 1,281,167 images and batch 256 an epoch is
    5,004.6 steps, and a boundary takes effect at the first step that begins at
    or after it.
    """
    boundaries = [first_step_at(epoch, steps_per_epoch) for epoch in spec.boundaries]
    warmup_steps = spec.warmup_epochs * steps_per_epoch
    total_steps = spec.num_epochs * steps_per_epoch

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        if spec.kind == "step":
            passed = sum((step >= boundary).astype(jnp.float32) for boundary in boundaries)
            rate = spec.peak * spec.factor ** (-jnp.asarray(passed, jnp.float32))
        else:
            progress = (step - warmup_steps) / (total_steps - warmup_steps)
            rate = spec.peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
        if warmup_steps:
            rate = rate * jnp.minimum(1.0, (step + 1) / warmup_steps)
        return rate

    return schedule


def first_step_at(epoch: float, steps_per_epoch: float) -> int:
    """Return the first step that begins at or after an epoch (a fraction, 0 at the start)."""
    # Rounded first: 30 epochs of 50,000 / 96 steps are 15,625, not a hair more.
    return math.ceil(round(epoch * steps_per_epoch, 6))


def sgd(
    schedule: Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """Build SGD with momentum and coupled L2 decay on every parameter.

    The decay is added to the gradient before momentum, as Torch's SGD does,
    for batch-norm parameters and biases too (the paper makes no exception).
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
