"""Optimisers and schedules by name; the paper uses SGD with a step schedule (Sec. 4)."""

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
# From the step, a float32 scalar, to the rate without warm-up.
Rate = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ScheduleSpec:
    """A learning-rate schedule in epochs.

    Attributes:
      kind: a key of `SCHEDULES`.
      peak: the rate after warm-up, before any decay.
      num_epochs: length of the run.
      boundaries: epochs at which the step schedule divides the rate.
      factor: divisor of the rate at each boundary.
      warmup_epochs: epochs of linear warm-up from zero to `peak`.
    """

    kind: str
    peak: float
    num_epochs: float
    boundaries: tuple[float, ...] = ()
    factor: float = 10.0
    warmup_epochs: float = 0.0


def make_schedule(spec: ScheduleSpec, steps_per_epoch: float) -> Schedule:
    """Return the schedule as a function of the step (0 for the first).

    An epoch need not be a whole number of steps: with 1,281,167 images and batch size 256 it has
    5,004.6, and a boundary takes effect at the first step that starts at or after it.
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
    """Step schedule: divide the rate by a factor at each boundary."""
    boundaries = [first_step_at(epoch, steps_per_epoch) for epoch in spec.boundaries]

    def rate(step: jax.Array) -> jax.Array:
        passed = sum((step >= boundary).astype(jnp.float32) for boundary in boundaries)
        return spec.peak * spec.factor ** (-jnp.asarray(passed, jnp.float32))

    return rate


def _linear(spec: ScheduleSpec, steps_per_epoch: float) -> Rate:
    """Linear decay from the end of the warm-up to zero at the end of the run."""
    warmup_steps = spec.warmup_epochs * steps_per_epoch
    total_steps = spec.num_epochs * steps_per_epoch

    def rate(step: jax.Array) -> jax.Array:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return spec.peak * (1 - jnp.clip(progress, 0.0, 1.0))

    return rate


def _cosine(spec: ScheduleSpec, steps_per_epoch: float) -> Rate:
    """Cosine decay from the end of the warm-up to zero at the end of the run."""
    warmup_steps = spec.warmup_epochs * steps_per_epoch
    total_steps = spec.num_epochs * steps_per_epoch

    def rate(step: jax.Array) -> jax.Array:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return spec.peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))

    return rate


# Keys: `config.schedule.name`. Each entry returns a function from the step (a float32 scalar) to
# the rate without warm-up.
SCHEDULES: dict[str, Callable[[ScheduleSpec, float], Rate]] = {
    "step": _step,
    "cosine": _cosine,
    "linear": _linear,
}


def first_step_at(epoch: float, steps_per_epoch: float) -> int:
    """Return the first step that starts at or after `epoch` (0 at the start, may be a fraction)."""
    # Rounded first: 30 epochs of 50,000 / 96 steps are exactly 15,625 in spite of float error.
    return math.ceil(round(epoch * steps_per_epoch, 6))


Parts = Sequence[optax.GradientTransformation]


def optimizer(
    parts: Parts,
    *,
    clip_norm: float | None = None,
    rate_factor: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """Chain gradient clipping and an optimiser's parts, for parameters keyed by dotted name.

    Args:
      parts: the transformations after clipping; the last one applies the learning rate.
      clip_norm: clip the gradient's global L2 norm to this first; None: no clipping.
      rate_factor: maps a parameter's name to its learning-rate multiplier; None: 1 for all.
    """
    # Both have the same (empty) state, so that a run can resume with another clip_norm.
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
    """Return SGD with momentum and coupled L2 weight decay, for parameters keyed by dotted name.

    The decay is added to the gradient before momentum, as in Torch's SGD. By default it also
    applies to batch-norm parameters and biases (the paper makes no exception).

    Args:
      schedule: the learning rate, a function of the step.
      momentum: momentum coefficient.
      nesterov: whether to use Nesterov momentum.
      weight_decay: weight-decay coefficient.
      decays: whether the parameter with a given name decays; None: all do.
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


def _named_adamw(options: Any, schedule: Schedule, decays: Callable[[str], bool]) -> Parts:
    """AdamW (Loshchilov and Hutter 2019): the decay is scaled by the rate, not by the gradient."""
    return (
        optax.scale_by_adam(*options.betas, eps=options.eps),
        optax.add_decayed_weights(options.weight_decay, mask=by_name(decays)),
        optax.scale_by_learning_rate(schedule),
    )


def _named_lamb(options: Any, schedule: Schedule, decays: Callable[[str], bool]) -> Parts:
    """LAMB (You et al. 2020), as in timm: parameters exempt from decay have no trust ratio."""
    adam, decay, rate = _named_adamw(options, schedule, decays)
    return adam, decay, optax.masked(optax.scale_by_trust_ratio(), by_name(decays)), rate


def _named_lars(options: Any, schedule: Schedule, decays: Callable[[str], bool]) -> Parts:
    """LARS (You et al. 2017), as in timm: parameters exempt from decay have no trust ratio."""
    decay = options.weight_decay

    def adapt(gradient: jax.Array, param: jax.Array) -> jax.Array:
        # The norms of gradient and decay are added up, as in the paper; optax.lars has the norm
        # of the sum.
        size, slope = jnp.linalg.norm(param), jnp.linalg.norm(gradient)
        ratio = options.trust_coefficient * size / (slope + decay * size + 1e-8)
        ratio = jnp.where((size > 0) & (slope > 0), ratio, 1.0)
        return ratio * (gradient + decay * param)

    def update(gradients: Arrays, params: Arrays | None) -> Arrays:
        assert params is not None  # as for every optimiser here
        return {
            name: adapt(gradient, params[name]) if decays(name) else gradient
            for name, gradient in gradients.items()
        }

    momentum = optax.sgd(schedule, momentum=options.momentum, nesterov=options.nesterov)
    return optax.stateless(update), momentum


# Keys: `config.optimizer.name`. Each entry maps the config section `optimizer`, the schedule and a
# function that says whether a named parameter decays to the optimiser's parts.
OPTIMIZERS: dict[str, Callable[[Any, Schedule, Callable[[str], bool]], Parts]] = {
    "sgd": _named_sgd,
    "adamw": _named_adamw,
    "lamb": _named_lamb,
    "lars": _named_lars,
}


def by_name(rule: Callable[[str], T]) -> Callable[[Arrays], dict[str, T]]:
    """Return a function of the parameters from one of their names, as optax expects for masks."""
    return lambda params: {name: rule(name) for name in params}


def is_norm(name: str) -> bool:
    """Whether the parameter with this dotted name is the scale or shift of a batch norm."""
    *_, layer, _ = ("", *name.split("."))
    return layer.startswith("norm")


def is_bias(name: str) -> bool:
    """Whether the parameter with this dotted name is a layer's bias; not a batch norm's shift."""
    return name.endswith(".bias") and not is_norm(name)
