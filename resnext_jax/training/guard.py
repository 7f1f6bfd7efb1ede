"""Whether a step's result may be taken: decided inside the step, alike on all devices.

A loss that is not finite never reaches the state. So the state is always one that can be saved,
however late Python learns of it.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

# Weight of the past in the average loss that spikes are measured against.
_AVERAGE_DECAY = 0.98

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class GuardSpec:
    """What is done about a step whose result should not be taken.

    Attributes:
      skip_nonfinite: leave out a step whose loss or gradient is not finite;
        otherwise such a step halts the run.
      spike_factor: skip a step whose loss exceeds this many times its running
        average; None: never.
      max_skipped: consecutive skipped steps tolerated before the run halts.
    """

    skip_nonfinite: bool = False
    spike_factor: float | None = None
    max_skipped: int = 10


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GuardState:
    """What the guard remembers.

    Attributes:
      halted: once set no step changes anything any more, bool.
      skipped: steps left out just now, in a row, int32.
      average_loss: of the steps taken, over the last 50 or so, float32.
      weight: of the average, which starts empty, float32.
    """

    halted: jax.Array
    skipped: jax.Array
    average_loss: jax.Array
    weight: jax.Array

    @classmethod
    def create(cls) -> "GuardState":
        """Start with nothing seen."""
        zero = jnp.zeros((), jnp.float32)
        return cls(jnp.zeros((), bool), jnp.zeros((), jnp.int32), zero, jnp.copy(zero))

    def released(self) -> "GuardState":
        """Let a run that was halted go on."""
        return dataclasses.replace(
            self, halted=jnp.zeros_like(self.halted), skipped=jnp.zeros_like(self.skipped)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a step is taken.

    Attributes:
      accepted: its result is taken.
      halted: neither it nor a later one counts.
    """

    accepted: jax.Array
    halted: jax.Array

    def choose(self, new: Tree, old: Tree) -> Tree:
        """Return `new` if the step is accepted, otherwise `old`."""
        return jax.tree.map(lambda n, o: jnp.where(self.accepted, n, o), new, old)

    def count(self, new: Tree, chosen: Tree) -> Tree:
        """Return `chosen` with `new`'s steps of the learning-rate schedule, unless halted.

        A step that is left out has passed all the same. Other whole numbers of an optimiser's
        state stay as they were: Adam's count is the number of gradients in its averages.
        """

        def is_schedule(node: object) -> bool:
            return isinstance(node, optax.ScaleByScheduleState)

        def passed(n: Any, c: Any) -> Any:
            return jax.tree.map(lambda n, c: jnp.where(self.halted, c, n), n, c)

        return jax.tree.map(
            lambda n, c: passed(n, c) if is_schedule(n) else c, new, chosen, is_leaf=is_schedule
        )


def judge(
    spec: GuardSpec, guard: GuardState, loss: jax.Array, gradient_norm: jax.Array, halt: jax.Array
) -> tuple[Verdict, GuardState]:
    """Decide about one step.

    Args:
      spec: the rules.
      guard: before the step.
      loss: of the step, equal on all devices.
      gradient_norm: likewise.
      halt: whether to halt whatever the loss, bool.

    Returns:
      The verdict, and the guard after the step.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    accepted = finite
    if spec.spike_factor is not None:
        average = guard.average_loss / jnp.maximum(guard.weight, 1e-9)
        # Not before the average has seen some steps: 10 weigh 0.18.
        settled = guard.weight > 1 - _AVERAGE_DECAY**10
        accepted &= ~(settled & (loss > spec.spike_factor * average))
    skipped = jnp.where(accepted, 0, guard.skipped + 1)
    halted = guard.halted | halt | (skipped > spec.max_skipped)
    if not spec.skip_nonfinite:
        halted |= ~finite
    accepted &= ~halted
    seen = GuardState(
        halted=halted,
        skipped=skipped,
        average_loss=_towards(guard.average_loss, loss.astype(jnp.float32)),
        weight=_towards(guard.weight, jnp.ones((), jnp.float32)),
    )
    verdict = Verdict(accepted, halted)
    taken = verdict.choose(seen, guard)
    # The counters of skipped steps change with them.
    return verdict, dataclasses.replace(
        taken, halted=halted, skipped=jnp.where(halted, guard.skipped, skipped)
    )


def _towards(average: jax.Array, value: jax.Array) -> jax.Array:
    return _AVERAGE_DECAY * average + (1 - _AVERAGE_DECAY) * value
