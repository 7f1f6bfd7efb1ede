"""What training changes, as one pytree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnext_jax.models.variables import Arrays
from resnext_jax.training.guard import GuardState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a run between two steps.

    Attributes:
      step: optimiser steps taken, int32; also the number of global batches
        read, which is all there is to the data position.
      params: parameters by dotted name.
      batch_stats: batch-norm running statistics by dotted name.
      opt_state: optax's state.
      ema: None, or `params` and `batch_stats` averaged over steps (see
        `optim.ema`).
      guard: see `training.guard`.
    """

    step: jax.Array
    params: Arrays
    batch_stats: Arrays
    opt_state: optax.OptState
    ema: dict[str, Arrays] | None
    guard: GuardState

    @classmethod
    def create(
        cls,
        params: Arrays,
        batch_stats: Arrays,
        optimizer: optax.GradientTransformation,
        *,
        ema: bool = False,
    ) -> "TrainState":
        """Start at step 0 with a fresh optimiser state, and with `ema` an average of its own."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            # Copies: the step is given the whole state's memory to reuse, once.
            ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
            if ema
            else None,
            guard=GuardState.create(),
        )

    def as_items(self) -> dict[str, Any]:
        """Return the state as the named trees of a checkpoint, see `runs.checkpoint.ITEMS`."""
        items = {
            "weights": {"params": self.params, "batch_stats": self.batch_stats},
            "training": {"step": self.step, "opt_state": self.opt_state, "guard": self.guard},
        }
        return items if self.ema is None else items | {"ema": self.ema}

    @classmethod
    def from_items(cls, items: Mapping[str, Any]) -> "TrainState":
        """Return the state that `as_items` made these of."""
        return cls(**items["weights"], **items["training"], ema=items.get("ema"))
