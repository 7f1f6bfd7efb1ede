"""The training loop: data to step, and what happens between steps."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.augment import SKIPPED, Batch
from resnext_jax.data.pipeline import host_positions, to_devices, train_batches
from resnext_jax.data.sources import Source, check_available, open_splits
from resnext_jax.errors import DataError
from resnext_jax.evaluation.run import Evaluation
from resnext_jax.reports.curves import draw_training_curve
from resnext_jax.training import setup
from resnext_jax.training.checkpoint import Checkpoints
from resnext_jax.training.interrupt import StopRequest
from resnext_jax.training.logging import RunLog, mean_metrics, read_metrics
from resnext_jax.training.mesh import batch_sharding, make_mesh
from resnext_jax.training.optimizer import first_step_at
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import Metrics, make_train_step
from resnext_jax.training.validation import validate
from resnext_jax.training.workdir import (
    check_same_data,
    check_same_run,
    open_workdir,
    write_config,
    write_data_set,
)


class InterruptedRunError(Exception):
    """The run was asked to stop by a signal, and has saved its state."""

    def __init__(self, step: int, signal_number: int):
        """Note where the run stopped and why."""
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}")
        self.exit_status = 128 + signal_number


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> TrainState:
    """Train as `config` says, resuming where `workdir` has a checkpoint.

    Args:
      config: from `configs/`.
      workdir: folder for config, metrics, checkpoints, TensorBoard and plots.

    Returns:
      The final state.

    Raises:
      UserError: config, data, workdir or checkpoint are unusable.
      InterruptedRunError: SIGINT or SIGTERM came; the state is saved.
    """
    validate(config)
    mesh = make_mesh(config.batch_size, config.bn_group_size)
    check_available(config.data.name, config.data.data_dir)
    folder = open_workdir(workdir)
    source, test_source = open_splits(config)

    epoch_steps = setup.steps_per_epoch(config, len(source))
    num_steps = setup.num_steps(config, len(source))
    schedule = setup.build_schedule(config, len(source))
    optimizer = setup.build_optimizer(config, schedule)
    graphdef, state = setup.build_state(config, source.num_classes, optimizer, mesh)
    train_step = make_train_step(
        graphdef,
        optimizer,
        setup.device_transform(config).train,
        mesh,
        label_smoothing=config.optimizer.label_smoothing,
    )
    evaluation = Evaluation(config, test_source, graphdef, mesh)

    checkpoints = Checkpoints(folder, keep=config.keep_checkpoints)
    resuming = checkpoints.latest_step() is not None
    if resuming:
        check_same_run(config, folder)
        check_same_data(source, folder, same_images=True)
        state = checkpoints.restore(state)
    first_host = jax.process_index() == 0
    if first_host:
        write_config(config, folder)
        write_data_set(source, folder)

    start_step = int(state.step)
    batches = _train_batches(config, source, mesh, start_step, num_steps)
    eval_steps = _steps_every(config.eval_every_epochs, epoch_steps, num_steps)
    save_steps = _steps_every(config.checkpoint_every_epochs, epoch_steps, num_steps)
    log_steps = set(range(0, num_steps, config.log_every_steps)) | eval_steps | save_steps

    with (
        RunLog(folder, start_step=start_step, num_steps=num_steps, active=first_host) as log,
        StopRequest() as stop,
        contextlib.closing(checkpoints),
        contextlib.closing(batches),
    ):
        for line in _introduction(config, state, start_step, num_steps, resuming):
            log.say(line)
        window = _Window(config.batch_size)

        def place(step: int) -> dict[str, Any]:
            return {"step": step, "epoch": step / epoch_steps}

        def record_training(step: int) -> None:
            rate = {"learning_rate": float(schedule(step - 1))}
            log.record(place(step) | {"split": "train"} | window.close() | rate)

        def evaluate(step: int) -> None:
            tested = evaluation.run(state.params, state.batch_stats).as_record()
            log.record(place(step) | {"split": "test", "weights": "raw"} | tested)

        try:
            if start_step in eval_steps and not _is_tested(folder, start_step):
                evaluate(start_step)  # a bad test image had stopped the run here
            for step in range(start_step + 1, num_steps + 1):
                with window.waiting_for_data():
                    batch = next(batches)
                state, metrics = train_step(state, batch)
                window.add(metrics)
                log.advance()
                stop_signal = stop.signal_number  # once: a signal may come at any moment
                if step in log_steps or stop_signal:
                    record_training(step)
                if step in eval_steps:
                    evaluate(step)
                # Saved after it is logged: what a crash between the two leaves in
                # the log is dropped and made again when the run resumes.
                if step in save_steps or stop_signal:
                    checkpoints.save(state)
                if stop_signal:
                    raise InterruptedRunError(step, stop_signal)
                if step in eval_steps or step in save_steps:
                    window.restart_clock()
        except DataError:
            # What was trained is not lost: once the data is mended, the run resumes.
            if window.steps:
                record_training(int(state.step))
            if state.step > 0:
                checkpoints.save(state)
            raise
        if first_host:
            _conclude(config, folder, log)
    return state


def _is_tested(workdir: Path, step: int) -> bool:
    return any(r["split"] == "test" and r["step"] == step for r in read_metrics(workdir))


def _train_batches(
    config: ConfigDict, source: Source, mesh: Mesh, start_step: int, num_steps: int
) -> Generator[Batch, None, None]:
    sharding = batch_sharding(mesh)
    host_batches = train_batches(
        source,
        setup.train_transform(config),
        seed=config.seed,
        batch_size=config.batch_size,
        positions=host_positions(sharding, config.batch_size),
        start_step=start_step,
        num_steps=num_steps,
        num_workers=config.data.num_workers,
        on_error=config.data.on_error,
    )
    return to_devices(host_batches, sharding, config.batch_size)


def _steps_every(epochs: float, epoch_steps: float, num_steps: int) -> set[int]:
    """Steps that end each period of `epochs`, and the last step."""
    if epochs * epoch_steps <= 1:
        return set(range(1, num_steps + 1))
    periods = math.floor(num_steps / (epochs * epoch_steps))
    ends = {first_step_at(period * epochs, epoch_steps) for period in range(1, periods + 1)}
    return {step for step in ends if step <= num_steps} | {num_steps}


def _introduction(
    config: ConfigDict, state: TrainState, start_step: int, num_steps: int, resuming: bool
) -> Iterator[str]:
    parameters = sum(array.size for array in state.params.values())
    group = config.bn_group_size or config.batch_size
    yield (
        f"{config.model.name} on {config.data.name}: {parameters:,} parameters, "
        f"{jax.device_count()} {jax.default_backend()} device(s), "
        f"batch {config.batch_size} in batch-norm groups of {group}"
    )
    yield (
        f"learning rate {setup.learning_rate(config):g} ({config.optimizer.learning_rate:g} for "
        f"a batch of {config.optimizer.base_batch_size}, scaled linearly), {num_steps} steps"
    )
    if resuming and start_step >= num_steps:
        yield (
            f"this run is already finished at step {start_step}; nothing is trained "
            "(another --workdir starts over)"
        )
    elif resuming:
        yield f"resuming after step {start_step} (another --workdir starts over)"
    else:
        yield "starting; the first step compiles"


def _conclude(config: ConfigDict, folder: Path, log: RunLog) -> None:
    records = read_metrics(folder)
    tests = [record for record in records if record["split"] == "test"]
    skipped = sum(r.get("skipped_images", 0) for r in records if r["split"] == "train")
    test_skipped = tests[-1].get("skipped_images", 0) if tests else 0
    if skipped or test_skipped:
        log.say(
            f"images that could not be decoded, and were left out: {skipped} in training, "
            f"{test_skipped} in the last test"
        )
    if tests:
        log.say(
            f"final test error: top-1 {tests[-1]['top1_error']:.2f} %, "
            f"top-5 {tests[-1]['top5_error']:.2f} %"
        )
    picture = draw_training_curve(folder, f"{config.model.name} on {config.data.name}")
    log.say(f"training curve: {picture}")


class _Window:
    """Metrics and timing of the steps since the last record."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._metrics: list[Metrics] = []
        self._compiled = False
        self.restart_clock()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    @property
    def steps(self) -> int:
        """Steps since the last record."""
        return len(self._metrics)

    def add(self, metrics: Metrics) -> None:
        """Note a step that has been sent off."""
        self._metrics.append(metrics)
        self._timed_steps += 1
        if not self._compiled:
            # The first step's time is compilation: a speed should not hold it.
            jax.block_until_ready(metrics)
            self._compiled = True
            self.restart_clock()
        elif len(self._metrics) > 2:
            # Python may run ahead of the devices by two steps, no more: every
            # step that waits keeps its images on the device.
            jax.block_until_ready(self._metrics[-3])

    def close(self) -> dict[str, Any]:
        """Return the window's averages and speed, and begin the next window."""
        averages = mean_metrics(jax.device_get(self._metrics))
        if SKIPPED in averages:
            images = len(self._metrics) * self._batch_size
            averages["skipped_images"] = round(averages.pop(SKIPPED) * images)
        seconds = time.perf_counter() - self._begin
        timed = self._timed_steps > 0
        speed = {
            "images_per_second": self._timed_steps * self._batch_size / seconds if timed else None,
            "data_wait_fraction": self._waited / seconds if timed else None,
        }
        self._metrics = []
        self.restart_clock()
        return averages | speed

    def restart_clock(self) -> None:
        """Leave what happened since the last step out of the speed."""
        self._timed_steps = 0
        self._waited = 0.0
        self._begin = time.perf_counter()
