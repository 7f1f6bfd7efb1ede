"""The device mesh: how a global batch is sharded.

Axis "group" enumerates batch-norm groups (or sets of them), axis "member" the devices that share
one group. A global batch is split over both axes in order, so that a batch-norm group always
consists of the same consecutive images.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnext_jax.errors import ConfigError

GROUP_AXIS = "group"
MEMBER_AXIS = "member"
DATA_AXES = (GROUP_AXIS, MEMBER_AXIS)

REPLICATED = PartitionSpec()
BATCH = PartitionSpec(DATA_AXES)


def make_mesh(
    batch_size: int,
    bn_group_size: int | None,
    devices: Sequence[jax.Device] | None = None,
    *,
    accumulate_steps: int = 1,
) -> Mesh:
    """Return the mesh for data-parallel training.

    Devices are ordered by slice, host and ID, so that the members of a batch-norm group are
    neighbours: on one host if the sizes allow it. Any number of slices is supported (on GPUs each
    host is a slice).

    Args:
      batch_size: images per global batch.
      bn_group_size: images that share batch-norm statistics; None: the whole global batch.
      devices: the devices to use; by default all devices of all hosts.
      accumulate_steps: micro-batches per batch; each is split over all devices.

    Raises:
      ConfigError: the batch cannot be divided into micro-batches, groups and devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if batch_size % (count * accumulate_steps):
        parts, multiple = f"{count} devices", count * accumulate_steps
        if accumulate_steps > 1:
            parts = f"config.accumulate_steps={accumulate_steps} times {parts}"
        raise ConfigError(
            f"config.batch_size={batch_size} cannot be split evenly over {parts}; "
            f"use a multiple of {multiple}."
        )
    share = batch_size // accumulate_steps // count
    group = batch_size if bn_group_size is None else bn_group_size
    if batch_size % group:
        raise ConfigError(
            f"config.batch_size={batch_size} is not a multiple of config.bn_group_size={group}; "
            "change one of them (--config.bn_group_size=None makes one group of the whole batch)."
        )
    if (batch_size // accumulate_steps) % group:
        raise ConfigError(
            f"config.accumulate_steps={accumulate_steps} makes micro-batches of "
            f"{batch_size // accumulate_steps} images, which do not hold whole batch-norm groups "
            f"of {group}; lower config.accumulate_steps or set config.bn_group_size."
        )
    if share % group and group % share:
        each = "each holds" if accumulate_steps == 1 else "each holds, of a micro-batch,"
        raise ConfigError(
            f"with config.batch_size={batch_size} on {count} devices {each} {share} images, "
            f"which is neither a divisor nor a multiple of config.bn_group_size={group}; "
            "change the batch size, the group size or the number of devices."
        )
    members = max(1, group // share)
    # Not jax.make_mesh: it rejects devices of several slices, and shapes that do not match the
    # physical topology of a TPU slice.
    grid = np.array(sorted(devices, key=_place), object).reshape(count // members, members)
    # Explicitly Auto, for code outside of shard_map.
    return Mesh(grid, DATA_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def _place(device: jax.Device) -> tuple[int, int, int]:
    """Return the sort key of a device: slice (0 on platforms without slices), host, ID."""
    return getattr(device, "slice_index", None) or 0, device.process_index, device.id


def batch_spec(accumulate_steps: int) -> PartitionSpec:
    """Partition spec of a global batch `[N, ...]`, or `[M, N / M, ...]` with M micro-batches."""
    return BATCH if accumulate_steps == 1 else PartitionSpec(None, DATA_AXES)


def batch_sharding(mesh: Mesh, accumulate_steps: int = 1) -> NamedSharding:
    """Sharding of a global batch: the images of each micro-batch are split over all devices."""
    return NamedSharding(mesh, batch_spec(accumulate_steps))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of parameters: a copy on every device."""
    return NamedSharding(mesh, REPLICATED)
