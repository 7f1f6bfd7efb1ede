"""What training changes, as one pytree."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from resnext_jax.models.variables import Arrays


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
    """

    step: jax.Array
    params: Arrays
    batch_stats: Arrays
    opt_state: optax.OptState

    @classmethod
    def create(
        cls, params: Arrays, batch_stats: Arrays, optimizer: optax.GradientTransformation
    ) -> "TrainState":
        """Start at step 0 with a fresh optimiser state."""
        return cls(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))
