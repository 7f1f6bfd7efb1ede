"""Stochastic gradient descent and its schedule, as the paper trains (Sec. 4)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import optax

from resnext_jax.models.variables import Arrays

T = TypeVar("T")
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
    schedule: Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decays: Callable[[str], bool] | None = None,
    clip_norm: float | None = None,
    rate_factor: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """Build SGD with momentum and coupled L2 decay, for parameters by dotted name.

    The decay is added to the gradient before momentum, as Torch's SGD does, and
    unless `decays` says otherwise for batch-norm parameters and biases too (the
    paper makes no exception).

    Args:
      schedule: the rate, a function of the step.
      momentum: of the velocity.
      nesterov: whether to look ahead.
      weight_decay: coefficient.
      decays: tells which parameters decay; None: all.
      clip_norm: a gradient whose L2 norm over all parameters is larger is scaled
        down to it, before the decay; None: never.
      rate_factor: of each parameter, multiplies its rate; None: 1 for all.
    """
    parts = [
        # Of equal structure, so that a run can resume with another limit.
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        optax.add_decayed_weights(weight_decay, mask=_by_name(decays) if decays else None),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    ]
    if rate_factor is not None:
        factors = _by_name(rate_factor)
        parts.append(
            optax.stateless(
                lambda updates, params: jax.tree.map(
                    lambda update, factor: update * factor, updates, factors(updates)
                )
            )
        )
    return optax.chain(*parts)


def _by_name(rule: Callable[[str], T]) -> Callable[[Arrays], dict[str, T]]:
    return lambda params: {name: rule(name) for name in params}


def is_norm(name: str) -> bool:
    """Tell whether a parameter, by its dotted name, is a scale or a shift of a batch norm."""
    *_, layer, _ = ("", *name.split("."))
    return layer.startswith("norm")


def is_bias(name: str) -> bool:
    """Tell whether a parameter is a bias that is added to a layer's result, norms left out."""
    return name.endswith(".bias") and not is_norm(name)
