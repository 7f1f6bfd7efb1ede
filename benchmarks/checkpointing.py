"""What saving checkpoints at different intervals costs the demo.

    python benchmarks/checkpointing.py

Trains `configs/digits_resnext29.py` in blocks of steps, in turn with a checkpoint at
their beginning and without one, in one process. A block ends when its checkpoint is
whole, so that the writing, which goes on beside the steps, is paid for in its block.

"overhead" is the median (and the middle half) over the rounds of how much longer the
block with the checkpoint took than the one beside it; likewise of processor time,
which hardly feels what else the machine does. With `--control` neither block has a
checkpoint: what is then measured is chance.

After the table: how long `save` holds up the loop, and how long a checkpoint takes
from `save` until it is whole where nothing else is done meanwhile.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure
from resnext_jax.config import build
from resnext_jax.configs import digits_resnext29
from resnext_jax.data.pipeline import host_positions, to_devices, train_batches
from resnext_jax.data.sources import check_available, open_splits
from resnext_jax.parallel.mesh import batch_sharding
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.training import setup
from resnext_jax.training.step import make_train_step
from resnext_jax.training.window import MetricsWindow

# Checkpoints that are timed alone.
_ALONE = 10


class Demo:
    """The demo's training, to be gone on with step after step."""

    def __init__(self, num_steps: int):
        """Build everything as the training loop does, with batches for all steps."""
        config = digits_resnext29.get_config()
        mesh = build.training_mesh(config)
        check_available(config.data.name, config.data.data_dir)
        source, _ = open_splits(config)
        optimizer = build.build_optimizer(config, build.build_schedule(config, len(source)))
        graphdef, self.state = setup.build_state(config, source.num_classes, optimizer, mesh)
        self._step = make_train_step(
            graphdef,
            optimizer,
            build.device_transform(config).train,
            mesh,
            setup.step_spec(config, len(source)),
        )
        sharding = batch_sharding(mesh)
        host_batches = train_batches(
            source,
            build.train_transform(config),
            seed=config.seed,
            batch_size=config.batch_size,
            positions=host_positions(sharding, config.batch_size),
            start_step=0,
            num_steps=num_steps,
            num_workers=config.data.num_workers,
            on_error=config.data.on_error,
        )
        self.batches = to_devices(host_batches, sharding, config.batch_size)
        self._window = MetricsWindow(config.batch_size)

    def train(self, steps: int) -> None:
        """Take steps as the loop does, and wait for the last."""
        for _ in range(steps):
            self.state, metrics = self._step(self.state, next(self.batches))
            self._window.add(metrics)
        self._window.settle()
        self._window.close()


@dataclasses.dataclass
class Block:
    """What a block of steps took, in seconds of the clock and of the processors."""

    wall: float
    cpu: float


class Measurement:
    """Blocks of the demo's steps, with checkpoints and without."""

    def __init__(self, demo: Demo, checkpoints: Checkpoints, steps: int):
        """Measure nothing yet; set the steps per block."""
        self.demo = demo
        self.steps = steps
        self.blocking: list[float] = []
        self._checkpoints = checkpoints

    def block(self, *, save: bool) -> Block:
        """Take a block of steps."""
        wall, cpu = time.perf_counter(), time.process_time()
        if save:
            self.save()
        self.demo.train(self.steps)
        self._checkpoints.wait()
        return Block(time.perf_counter() - wall, time.process_time() - cpu)

    def save(self) -> None:
        """Begin a checkpoint, with about what the loop notes in one."""
        begin = time.perf_counter()
        rows = [{"loss": 0.1, "top1_error": 1.0, "top5_error": 0.1}] * self.steps
        state = self.demo.state
        self._checkpoints.save(int(state.step), state.as_items(), {"window": rows, "best": None})
        self.blocking.append(time.perf_counter() - begin)

    def save_alone(self) -> Block:
        """Save while nothing else is done, until the checkpoint is whole."""
        self.demo.train(1)
        wall, cpu = time.perf_counter(), time.process_time()
        self.save()
        self._checkpoints.wait()
        return Block(time.perf_counter() - wall, time.process_time() - cpu)


def overheads(without: Sequence[float], with_checkpoint: Sequence[float]) -> list[float]:
    """How much more the second of each pair is, in percent."""
    return [100 * (b / a - 1) for a, b in zip(without, with_checkpoint, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Format the median and the middle half."""
    median = statistics.median(values)
    if len(values) < 4:
        return f"{median:+.2f}"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{median:+.2f} ({low:+.2f} to {high:+.2f})"


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = measure.make_parser(__doc__)
    add = parser.add_argument
    add(
        "--every",
        type=measure.positive_int,
        default=50,
        metavar="STEPS",
        help="steps of a block (default: %(default)s)",
    )
    add(
        "--rounds",
        type=measure.positive_int,
        default=20,
        help="blocks with a checkpoint, and without, in turn (default: %(default)s)",
    )
    add(
        "--keep",
        type=measure.positive_int,
        default=3,
        help="checkpoints kept; deleting older ones takes time too (default: %(default)s)",
    )
    add("--folder", type=Path, help="on the disk to write to (default: that for temporary files)")
    add("--control", action="store_true", help="save nothing, to see what chance does")
    add("--json", type=measure.output_file, metavar="PATH", help="also write a JSON file")
    return parser


def measure_rounds(
    measurement: Measurement, rounds: int, *, control: bool
) -> dict[bool, list[Block]]:
    """Time blocks without a checkpoint (False) and with one (True) in turn."""
    blocks: dict[bool, list[Block]] = {False: [], True: []}
    for index in range(rounds):
        # Each is first in every other round.
        for with_checkpoint in (index % 2 == 1, index % 2 == 0):
            block = measurement.block(save=with_checkpoint and not control)
            blocks[with_checkpoint].append(block)
    return blocks


def row_of(
    name: str, blocks: Sequence[Block], without: Sequence[Block], steps: int
) -> dict[str, Any]:
    """Put a variant's blocks into numbers, and into the table's cells."""
    wall = overheads([block.wall for block in without], [block.wall for block in blocks])
    cpu = overheads([block.cpu for block in without], [block.cpu for block in blocks])
    more = ["", ""] if blocks is without else [spread(wall), spread(cpu)]
    timing = measure.Timing(tuple(block.wall / steps for block in blocks), len(blocks))
    return {
        "checkpoint": name,
        "step": timing.as_record(),
        "cpu_s": statistics.median(block.cpu for block in blocks),
        "overhead_percent": statistics.median(wall),
        "cpu_overhead_percent": statistics.median(cpu),
        "cells": [name, timing.cell(), *more],
    }


def run(args: argparse.Namespace, workdir: Path) -> None:
    """Measure and print."""
    surroundings = measure.environment()
    warm_up = 5
    demo = Demo(warm_up + 2 * args.rounds * args.every + _ALONE)
    with (
        contextlib.closing(demo.batches),
        contextlib.closing(Checkpoints(workdir, keep=args.keep)) as checkpoints,
    ):
        measurement = Measurement(demo, checkpoints, args.every)
        measure.progress("compiling")
        demo.train(warm_up)
        measurement.save()  # what Python and Orbax do once
        checkpoints.wait()
        measurement.blocking.clear()
        measure.progress("timing")
        blocks = measure_rounds(measurement, args.rounds, control=args.control)
        blocking = list(measurement.blocking)
        alone = [measurement.save_alone() for _ in range(_ALONE)]
        arrays = [array.nbytes for array in jax.tree.leaves(demo.state)]
    name = "none (control)" if args.control else f"one in {args.every} steps"
    rows = [
        row_of("none", blocks[False], blocks[False], args.every),
        row_of(name, blocks[True], blocks[False], args.every),
    ]
    measure.print_heading("Checkpoints of the demo while it trains", surroundings)
    measure.print_table(
        ["checkpoint", "step ms", "overhead %", "processor overhead %"],
        [row.pop("cells") for row in rows],
        left=1,
    )
    wall = statistics.median(block.wall for block in alone)
    cpu = statistics.median(block.cpu for block in alone)
    print(
        f"\nA checkpoint of {len(arrays)} arrays, {sum(arrays) / 1e6:.1f} MB, takes "
        f"{measure.milliseconds(wall)} ms until it is whole where nothing else is done, and "
        f"{measure.milliseconds(cpu)} ms of the processors."
    )
    if blocking:
        print(
            f"The loop waits {measure.milliseconds(statistics.median(blocking))} ms for it, "
            f"{measure.milliseconds(max(blocking))} ms at most."
        )
    if args.json:
        more = {
            "arrays": len(arrays),
            "bytes": sum(arrays),
            "alone_ms": 1e3 * wall,
            "alone_cpu_ms": 1e3 * cpu,
            "blocking_ms": 1e3 * statistics.median(blocking) if blocking else None,
        }
        args.folder = str(args.folder) if args.folder else None
        measure.write_json(args.json, "checkpointing", args, surroundings | more, rows)


def main() -> None:
    """Run the benchmark."""
    args = make_parser().parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as workdir:
        run(args, Path(workdir))


if __name__ == "__main__":
    main()
