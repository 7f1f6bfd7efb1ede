"""Which devices share a batch-norm group, and which sizes do not fit."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from resnext_jax.errors import ConfigError
from resnext_jax.parallel.mesh import batch_sharding, make_mesh, replicated_sharding


@pytest.mark.parametrize(
    ("batch", "group", "devices", "groups_and_members"),
    [
        # A device alone.
        (64, 64, 1, (1, 1)),
        (64, 4, 1, (1, 1)),
        (64, None, 1, (1, 1)),
        # Several groups inside a device.
        (64, 4, 8, (8, 1)),
        (64, 16, 2, (2, 1)),
        (24, 1, 8, (8, 1)),
        # A group a device.
        (256, 32, 8, (8, 1)),
        (64, 32, 2, (2, 1)),
        # Several devices to a group.
        (64, 16, 8, (4, 2)),
        (64, 32, 8, (2, 4)),
        (64, 64, 8, (1, 8)),
        (24, 6, 8, (4, 2)),
        (18, 9, 6, (2, 3)),
        (8, 2, 8, (4, 2)),
        # One group of everything.
        (64, None, 8, (1, 8)),
        (64, None, 2, (1, 2)),
        (8, None, 8, (1, 8)),
    ],
)
def test_shape(
    batch: int, group: int | None, devices: int, groups_and_members: tuple[int, int]
) -> None:
    mesh = make_mesh(batch, group, jax.devices()[:devices])
    assert mesh.axis_names == ("group", "member")
    assert mesh.devices.shape == groups_and_members
    assert mesh.size == devices
    assert set(mesh.devices.flat) == set(jax.devices()[:devices])
    # Written for automatic sharding outside of shard_map.
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


def test_takes_all_devices_by_default() -> None:
    assert set(make_mesh(64, 8).devices.flat) == set(jax.devices())


@pytest.mark.parametrize("group", [2, 8, 16, 32, None])
def test_a_group_is_consecutive_images_on_the_devices_of_one_row(group: int | None) -> None:
    mesh = make_mesh(64, group)
    images = jax.device_put(np.arange(64), batch_sharding(mesh))
    held = {shard.device: np.asarray(shard.data) for shard in images.addressable_shards}
    for row in mesh.devices:
        together = np.concatenate([held[device] for device in row])
        np.testing.assert_array_equal(together, together[0] + np.arange(len(together)))
        # The row starts at a group's first image and ends at a group's last.
        size = group or 64
        assert together[0] % size == 0
        assert len(together) % size == 0


def test_parameters_are_whole_on_every_device() -> None:
    mesh = make_mesh(64, 8)
    copies = jax.device_put(np.arange(5), replicated_sharding(mesh)).addressable_shards
    assert len(copies) == 8
    assert all(np.array_equal(copy.data, np.arange(5)) for copy in copies)


@pytest.mark.parametrize(
    ("batch", "group", "devices", "parts"),
    [
        (12, None, 8, ["config.batch_size=12", "evenly over 8 devices", "a multiple of 8"]),
        (4, 4, 8, ["config.batch_size=4", "evenly over 8 devices", "a multiple of 8"]),
        (9, 3, 2, ["config.batch_size=9", "evenly over 2 devices", "a multiple of 2"]),
        (64, 48, 8, ["config.batch_size=64", "not a multiple", "config.bn_group_size=48"]),
        (64, 128, 8, ["config.batch_size=64", "not a multiple", "config.bn_group_size=128"]),
        (32, 5, 1, ["config.batch_size=32", "not a multiple", "config.bn_group_size=5"]),
        (48, 4, 8, ["config.batch_size=48", "8 devices each holds 6", "config.bn_group_size=4"]),
        (120, 40, 8, ["config.batch_size=120", "each holds 15", "config.bn_group_size=40"]),
    ],
)
def test_sizes_that_do_not_fit(
    batch: int, group: int | None, devices: int, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        make_mesh(batch, group, jax.devices()[:devices])
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("group", "accumulate_steps", "parts"),
    [
        (8, 3, ["config.batch_size=64", "config.accumulate_steps=3 times 8 devices", "of 24"]),
        (8, 16, ["config.accumulate_steps=16 times 8 devices", "a multiple of 128"]),
        (32, 4, ["config.accumulate_steps=4 makes micro-batches of 16", "groups of 32"]),
        (None, 2, ["config.accumulate_steps=2 makes micro-batches of 32", "groups of 64"]),
    ],
)
def test_micro_batches_hold_whole_groups(
    group: int | None, accumulate_steps: int, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        make_mesh(64, group, accumulate_steps=accumulate_steps)
    for part in parts:
        assert part in str(error.value)


def test_micro_batches_are_split_over_all_devices() -> None:
    mesh = make_mesh(64, 8, accumulate_steps=2)
    assert dict(mesh.shape) == {"group": 4, "member": 2}
    places = jax.device_put(np.arange(64).reshape(2, 32), batch_sharding(mesh, 2))
    held = {shard.device: np.asarray(shard.data) for shard in places.addressable_shards}
    assert [held[device].tolist() for device in mesh.devices.flat][:2] == [
        [[0, 1, 2, 3], [32, 33, 34, 35]],
        [[4, 5, 6, 7], [36, 37, 38, 39]],
    ]


@dataclasses.dataclass(frozen=True)
class StandIn:
    """A device of some slice and host, as far as arranging devices needs one."""

    id: int
    process_index: int
    slice_index: int | None
    platform: str = "tpu"


def cluster(slices: int | None, hosts: int, devices: int) -> list[StandIn]:
    """Make the devices of all hosts, in no order; `slices` None has none, as CPUs."""
    count = hosts * devices
    made = [
        StandIn(
            id=number,
            process_index=number // devices,
            slice_index=None if slices is None else number * slices // count,
        )
        for number in range(count)
    ]
    return [made[place] for place in np.random.default_rng(0).permutation(count)]


@pytest.mark.parametrize(
    ("slices", "hosts", "devices"),
    [
        (2, 2, 8),  # GPUs: each host is a slice
        (8, 8, 8),
        (2, 2, 4),  # two slices of v5e:2x2
        (2, 8, 4),
        (1, 4, 4),  # v6e:4x4
        (None, 2, 4),
    ],
)
@pytest.mark.parametrize("group", [4, 8, 16, 32, 64, None])
def test_members_of_a_group_are_neighbours_on_one_host_where_they_fit(
    slices: int | None, hosts: int, devices: int, group: int | None
) -> None:
    mesh = make_mesh(256, group, cluster(slices, hosts, devices))
    members = max(1, (group or 256) // (256 // (hosts * devices)))
    assert mesh.devices.shape == (hosts * devices // members, members)
    assert len(set(mesh.devices.flat)) == hosts * devices
    for row in mesh.devices:
        assert len({device.process_index for device in row}) == -(-members // devices)
        assert len({device.slice_index for device in row}) == max(
            1, members // (hosts * devices // (slices or 1))
        )


def test_each_host_holds_consecutive_images() -> None:
    """Also where the numbers of the devices go from host to host, as on a TPU's torus."""
    scattered = [StandIn(id=n, process_index=n // 2 % 2, slice_index=0) for n in range(8)]
    mesh = make_mesh(64, 16, scattered)
    assert [device.process_index for device in mesh.devices.flat] == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("topology", "slices", "batch", "group"),
    [
        ("v5e:2x2", 1, 256, 32),
        ("v5e:2x4", 1, 256, 64),
        ("v5e:4x4", 1, 256, 32),
        ("v5e:2x2", 2, 256, 64),
        ("v6e:4x4", 1, 256, 32),
        ("v6e:4x8", 1, 256, 32),
        ("v5p:4x4x4", 1, 256, 32),
    ],
)
def test_tpu_slices(
    topology: str, slices: int, batch: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices as libtpu describes them, which needs no TPU."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another test process may have it
    several = {"num_slices": slices} if slices > 1 else {}
    described: Any = topologies.get_topology_desc(topology, "tpu", **several)
    devices = list(described.devices)
    mesh = make_mesh(batch, group, devices)
    members = max(1, group * len(devices) // batch)
    assert mesh.devices.shape == (len(devices) // members, members)
    local = len(devices) // len({device.process_index for device in devices})
    for row in mesh.devices:
        assert len({device.process_index for device in row}) == -(-members // local)
