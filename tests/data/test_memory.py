"""Reading for a long time takes no more memory than reading for a short time."""

import contextlib
import shutil
import statistics
import sys
import time
from pathlib import Path

import pytest

from resnext_jax.data.pipeline import host_positions, to_devices, train_batches
from resnext_jax.data.sources import open_source
from resnext_jax.data.transforms import TrainTransform
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from tests.data.images import write_photographs

MINUTES, SAMPLES, BATCH = 10, 60, 64


def private_megabytes() -> float:
    """Memory of this process and all that it has started, what forks share counted once (Linux)."""
    total, waiting = 0, [Path("/proc/self")]
    while waiting:
        process = waiting.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Without files: how much of a library a process counts depends on which other
            # programs happen to use it.
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
            sizes = dict(line.split(":", 1) for line in lines)
            total += int(sizes["Pss_Anon"].split()[0])
            for task in (process / "task").iterdir():
                children = (task / "children").read_text().split()
                waiting += [Path("/proc") / child for child in children]
    return total / 1024


def shared_megabytes() -> float:
    """Memory in which worker processes hand over batches; those that wait are no process's."""
    return shutil.disk_usage("/dev/shm").used / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_memory_stays_flat(num_workers: int, tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs", per_class=100)
    source = open_source("folder", "train", str(tmp_path), str(tmp_path / "photographs"))
    sharding = batch_sharding(make_mesh(BATCH, None))
    batches = to_devices(
        train_batches(
            source,
            TrainTransform(224, "random_sized", flip=True),
            seed=0,
            batch_size=BATCH,
            positions=host_positions(sharding, BATCH),
            start_step=0,
            num_steps=10**6,
            num_workers=num_workers,
        ),
        sharding,
        BATCH,
    )
    steps, others = 0, shared_megabytes()
    used: list[float] = []
    with contextlib.closing(batches):
        begin = time.monotonic()
        for batch in batches:
            batch["image"].block_until_ready()
            steps += 1
            if time.monotonic() - begin > len(used) * 60 * MINUTES / SAMPLES:
                used.append(private_megabytes() + shared_megabytes() - others)
            if len(used) == SAMPLES:
                break
    quarter = SAMPLES // 4
    # The first quarter is warming up.
    early, late = used[quarter : 2 * quarter], used[-quarter:]
    print(
        f"{num_workers} workers, {steps} batches of {BATCH}: {statistics.median(early):.0f} MB in "
        f"the second quarter, {statistics.median(late):.0f} MB in the last, at most {max(used):.0f}"
    )
    assert statistics.median(late) < 1.03 * statistics.median(early) + 10
