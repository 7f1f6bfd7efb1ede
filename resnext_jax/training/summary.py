"""What a run says of itself, at its start and at its end."""

import math
from collections.abc import Iterator
from pathlib import Path

import jax

from resnext_jax.config import build
from resnext_jax.ops import cpu
from resnext_jax.runs.curve import draw_training_curve
from resnext_jax.runs.log import read_metrics
from resnext_jax.training.state import TrainState
from resnext_jax.training.task import Task


def introduction(task: Task, state: TrainState, num_steps: int, *, resuming: bool) -> Iterator[str]:
    """Say what is trained, on what, and from where."""
    config = task.config
    start_step = int(state.step)
    parameters = sum(array.size for array in state.params.values())
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    parts = f" in {config.accumulate_steps} parts" if config.accumulate_steps > 1 else ""
    yield (
        f"{task.title}: {parameters:,} parameters, "
        f"{jax.device_count()} {jax.default_backend()} device(s){hosts}, "
        f"batch {config.batch_size}{parts}{task.batch_note}"
    )
    yield (
        f"learning rate {build.learning_rate(config):g} ({config.optimizer.learning_rate:g} for "
        f"a batch of {config.optimizer.base_batch_size}, scaled linearly), {num_steps} steps"
    )
    if task.mesh.devices.flat[0].platform == "cpu":
        yield cpu.describe_convolutions(config.model.dtype)
    late = [epoch for epoch in config.schedule.boundaries if epoch >= config.num_epochs]
    if config.schedule.name == "step" and late:
        epochs = ", ".join(f"{epoch:g}" for epoch in late)
        yield (
            f"note: config.schedule.boundaries={epochs} come after the run's last epoch, "
            f"{config.num_epochs:g}: the rate does not fall there"
        )
    if resuming and start_step >= num_steps:
        yield (
            f"this run is already finished at step {start_step}; nothing is trained "
            "(another --workdir starts over)"
        )
    elif resuming:
        yield f"resuming after step {start_step} (another --workdir starts over)"
    elif config.init_from is not None:
        yield f"starting from the weights in {config.init_from}, but for the last layers"
    else:
        yield "starting; the first step compiles"


def conclusion(task: Task, workdir: Path) -> Iterator[str]:
    """Say what came of it, from `metrics.jsonl`."""
    records = read_metrics(workdir)
    train = [record for record in records if record["split"] == "train"]
    # A number that is null in the file is one that was not finite.
    tests = [
        {name: math.nan if value is None else value for name, value in record.items()}
        for record in records
        if record["split"] == "test"
    ]
    skipped = sum(record.get("skipped_images", 0) for record in train)
    test_skipped = tests[-1].get("skipped_images", 0) if tests else 0
    if skipped or test_skipped:
        yield (
            f"images that could not be decoded, and were left out: {skipped} in training, "
            f"{test_skipped} in the last test"
        )
    skipped_steps = sum(record.get("skipped_steps", 0) for record in train)
    if skipped_steps:
        yield f"steps whose result was left out (config.guard): {skipped_steps}"
    for test in tests:
        if test["step"] == tests[-1]["step"]:
            yield from task.describe_test(test)
    yield f"training curve: {draw_training_curve(workdir, task.title, task.measure)}"
