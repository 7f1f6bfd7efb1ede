"""The device mesh: which images of a global batch meet on which device.

Axis "group" counts batch-norm groups (or bundles of them), axis "member" the
devices that share one group. A global batch is split over both, in order, so
that a batch-norm group is always the same consecutive images.
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
    """Arrange the devices for data-parallel training.

    Devices are in the order of their slices, hosts and numbers, so that the members of a
    batch-norm group are neighbours: on one host wherever groups and hosts divide. Any number of
    slices will do (on GPUs each host is one).

    Args:
      batch_size: images in a global batch.
      bn_group_size: images that share batch-norm statistics; None means the
        whole global batch.
      devices: to use, all of all hosts by default.
      accumulate_steps: micro-batches of a batch; each is split over all devices.

    Raises:
      ConfigError: batch, micro-batches, groups and devices do not divide.
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
    # Not jax.make_mesh: it refuses devices of several slices, and shapes that the wiring of a TPU
    # slice does not divide into, which batches and groups know nothing of.
    grid = np.array(sorted(devices, key=_place), object).reshape(count // members, members)
    # Automatic axis types on purpose, for code outside of shard_map.
    return Mesh(grid, DATA_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def _place(device: jax.Device) -> tuple[int, int, int]:
    """Return what orders the devices: their slice (0 on platforms without slices), host, number."""
    return getattr(device, "slice_index", None) or 0, device.process_index, device.id


def batch_spec(accumulate_steps: int) -> PartitionSpec:
    """How a global batch `[N, ...]`, or with M micro-batches `[M, N / M, ...]`, is split."""
    return BATCH if accumulate_steps == 1 else PartitionSpec(None, DATA_AXES)


def batch_sharding(mesh: Mesh, accumulate_steps: int = 1) -> NamedSharding:
    """Sharding of a global batch: its images, of each micro-batch, over all devices."""
    return NamedSharding(mesh, batch_spec(accumulate_steps))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of parameters: a copy on every device."""
    return NamedSharding(mesh, REPLICATED)
