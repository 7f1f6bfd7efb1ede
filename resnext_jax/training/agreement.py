"""What the hosts of a run must have alike, and what they ask of each other between steps.

Hosts with other data or another config would take other steps, or wait for each other for ever:
what can change a result is compared before anything is computed.

A host must not stop, save or give up by itself: the others would wait for it in the next step for
ever. So each host's wishes travel with its part of a batch, the step combines them, and every host
reads the same answer among the same step's metrics.
"""

import enum
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.augment import Batch
from resnext_jax.errors import UserError
from resnext_jax.training.config import field, field_names
from resnext_jax.training.distributed import gather
from resnext_jax.training.mesh import batch_sharding

# Fields that may differ from host to host: where things are, and how they are read. What is there
# is compared.
PER_HOST = frozenset(
    {"data.data_dir", "data.manual_dir", "data.num_workers", "data.proposals", "init_from"}
)

# Differences that one sentence names.
_NAMED = 3

# In a batch, bool `[devices, len(Request)]`; among a step's metrics, bool `[len(Request)]`.
REQUESTS = "requests"


def config_facts(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that all hosts must have alike, for `check_hosts_agree`."""
    return {f"config.{n}": field(config, n) for n in field_names(config) if n not in PER_HOST}


def check_hosts_agree(find_facts: Callable[[], Mapping[str, Any]]) -> None:
    """Check that all hosts find the same; all must call it, before they compute together.

    Args:
      find_facts: returns values that JSON can hold, by what a sentence calls them. Not called
        where there is one host.

    Raises:
      UserError: on all hosts, the same sentence: which values differ, and who has which.
    """
    if jax.process_count() == 1:
        return
    everyone = [json.loads(text) for text in _gather(json.dumps(dict(find_facts())).encode())]
    differences = []
    for name in dict.fromkeys(name for found in everyone for name in found):
        hosts: dict[str, list[str]] = {}
        for process, found in enumerate(everyone):
            hosts.setdefault(str(found.get(name)), []).append(str(process))
        if len(hosts) > 1:
            values = (f"{value} on {', '.join(where)}" for value, where in hosts.items())
            differences.append(f"{name}: {'; '.join(values)}")
    if differences:
        more = len(differences) - _NAMED
        raise UserError(
            f"the processes of this run do not have the same data or config ("
            f"{'. '.join(differences[:_NAMED])}{f'. And {more} more' if more > 0 else ''}; by the "
            "numbers of the processes); give all of them the same, then start again."
        )


def _gather(sent: bytes) -> list[bytes]:
    """Return what every host sent, by host, on all hosts."""
    lengths = gather(len(sent))
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(sent)] = np.frombuffer(sent, np.uint8)
    received = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return [row[:length].tobytes() for row, length in zip(received, lengths, strict=True)]


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
