"""What the hosts of a run request of each other, sent with the images of a step.

A host must not stop, save or abort on its own: the others would wait for it in the next step for
ever. So each host's wishes travel with its part of a batch, the step combines them, and every host
reads the same answer among the same step's metrics.
"""

import enum
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from resnext_jax.data.augment import Batch
from resnext_jax.parallel.mesh import batch_sharding

# In a batch, bool `[devices, len(Request)]`; among a step's metrics, bool `[len(Request)]`.
REQUESTS = "requests"


class Request(enum.IntEnum):
    """A wish, by its column."""

    STOP = 0  # a signal came: save and leave
    SAVE = 1  # it is time for a checkpoint
    HALT = 2  # this host has no images for the step: change nothing, save and leave


def attach_requests(
    batch: Batch, asked: Collection[Request], mesh: Mesh, accumulate_steps: int = 1
) -> Batch:
    """Send this host's wishes with a global batch.

    Args:
      batch: on the devices.
      asked: what this host wishes.
      mesh: of the devices.
      accumulate_steps: micro-batches of the batch.
    """
    row = np.zeros((1, len(Request)), bool)
    row[0, list(asked)] = True
    rows = np.repeat(row, len(mesh.local_devices), axis=0)
    if accumulate_steps > 1:
        rows = rows[None]  # read once, not in each micro-batch
    sharding = batch_sharding(mesh, accumulate_steps)
    return batch | {REQUESTS: jax.make_array_from_process_local_data(sharding, rows)}


def agreed_requests(requests: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Combine what the hosts ask, inside `shard_map`, to bool `[len(Request)]`."""
    asked = requests.reshape(-1, len(Request)).any(axis=0)
    return lax.psum(asked.astype(jnp.int32), axes) > 0
