"""Optimisers and schedules by name; the paper trains with SGD and steps (Sec. 4)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from resnext_jax.models.variables import Arrays

T = TypeVar("T")
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
# Of the step as a float32 scalar, before warm-up.
Rate = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ScheduleSpec:
    """A learning-rate schedule in epochs.

    Attributes:
      kind: a name in `SCHEDULES`.
      peak: the rate before any decay, after warm-up.
      num_epochs: length of the run.
      boundaries: epochs at which the step schedule divides the rate.
      factor: what it divides by.
      warmup_epochs: linear rise from zero to `peak` at the start.
    """

    kind: str
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
    warmup_steps = spec.warmup_epochs * steps_per_epoch
    rate_without_warmup = SCHEDULES[spec.kind](spec, steps_per_epoch)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rate = rate_without_warmup(step)
        if warmup_steps:
            rate = rate * jnp.minimum(1.0, (step + 1) / warmup_steps)
        return rate

    return schedule


def _step(spec: ScheduleSpec, steps_per_epoch: float) -> Rate:
    """Divide the rate at each boundary."""
    boundaries = [first_step_at(epoch, steps_per_epoch) for epoch in spec.boundaries]

    def rate(step: jax.Array) -> jax.Array:
        passed = sum((step >= boundary).astype(jnp.float32) for boundary in boundaries)
        return spec.peak * spec.factor ** (-jnp.asarray(passed, jnp.float32))

    return rate


def _cosine(spec: ScheduleSpec, steps_per_epoch: float) -> Rate:
    """Fall to zero at the end, as half a cosine from the end of the warm-up."""
    warmup_steps = spec.warmup_epochs * steps_per_epoch
    total_steps = spec.num_epochs * steps_per_epoch

    def rate(step: jax.Array) -> jax.Array:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return spec.peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))

    return rate


# By `config.schedule.name`. A schedule is a function of the step, a float32 scalar, that gives the
# rate before warm-up.
SCHEDULES: dict[str, Callable[[ScheduleSpec, float], Rate]] = {
    "step": _step,
    "cosine": _cosine,
}


def first_step_at(epoch: float, steps_per_epoch: float) -> int:
    """Return the first step that begins at or after an epoch (a fraction, 0 at the start)."""
    # Rounded first: 30 epochs of 50,000 / 96 steps are 15,625, not a hair more.
    return math.ceil(round(epoch * steps_per_epoch, 6))


Parts = Sequence[optax.GradientTransformation]


def optimizer(
    parts: Parts,
    *,
    clip_norm: float | None = None,
    rate_factor: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """Chain an optimiser's parts, for parameters by dotted name.

    Args:
      parts: what follows clipping; the last applies the rate.
      clip_norm: a gradient whose L2 norm over all parameters is larger is scaled
        down to it first; None: never.
      rate_factor: of each parameter, multiplies its rate; None: 1 for all.
    """
    # Of equal structure, so that a run can resume with another limit.
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    chained = [clip, *parts]
    if rate_factor is not None:
        factors = by_name(rate_factor)
        chained.append(
            optax.stateless(
                lambda updates, params: jax.tree.map(
                    lambda update, factor: update * factor, updates, factors(updates)
                )
            )
        )
    return optax.chain(*chained)


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
      clip_norm: see `optimizer`.
      rate_factor: see `optimizer`.
    """
    parts = _sgd(schedule, momentum, nesterov, weight_decay, decays)
    return optimizer(parts, clip_norm=clip_norm, rate_factor=rate_factor)


def _sgd(
    schedule: Schedule,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decays: Callable[[str], bool] | None,
) -> Parts:
    return (
        optax.add_decayed_weights(weight_decay, mask=by_name(decays) if decays else None),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def _named_sgd(options: Any, schedule: Schedule, decays: Callable[[str], bool]) -> Parts:
    return _sgd(schedule, options.momentum, options.nesterov, options.weight_decay, decays)


# By `config.optimizer.name`: from the config's section `optimizer`, the schedule, and whether a
# parameter decays, by its name, to the optimiser's parts.
OPTIMIZERS: dict[str, Callable[[Any, Schedule, Callable[[str], bool]], Parts]] = {"sgd": _named_sgd}


def by_name(rule: Callable[[str], T]) -> Callable[[Arrays], dict[str, T]]:
    """Make a function of the parameters from one of their names, as optax's masks are."""
    return lambda params: {name: rule(name) for name in params}


def is_norm(name: str) -> bool:
    """Tell whether a parameter, by its dotted name, is a scale or a shift of a batch norm."""
    *_, layer, _ = ("", *name.split("."))
    return layer.startswith("norm")


def is_bias(name: str) -> bool:
    """Tell whether a parameter is a bias that is added to a layer's result, norms left out."""
    return name.endswith(".bias") and not is_norm(name)
