"""The training loop: data to step, and what happens between steps."""

import contextlib
import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from resnext_jax.config import build
from resnext_jax.data.augment import Batch
from resnext_jax.errors import DataError, DivergedError
from resnext_jax.models.variables import digest
from resnext_jax.parallel.distributed import (
    broadcast_from_first_host,
    check_hosts_agree,
    gather,
    is_first_host,
)
from resnext_jax.runs.best import Best, best_of, write_best
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.runs.curve import draw_training_curve
from resnext_jax.runs.log import RunLog, read_metrics
from resnext_jax.runs.workdir import (
    check_same_config,
    check_same_data,
    check_same_run,
    locked,
    open_workdir,
    write_config,
    write_data_set,
)
from resnext_jax.training.agreement import Request, attach_requests
from resnext_jax.training.calendar import SaveClock, make_calendar
from resnext_jax.training.guard import GuardState
from resnext_jax.training.interrupt import StopRequest
from resnext_jax.training.profiling import Profiler, peak_memory
from resnext_jax.training.state import TrainState
from resnext_jax.training.summary import conclusion, introduction
from resnext_jax.training.task import Task
from resnext_jax.training.warm_start import warm_start
from resnext_jax.training.window import HaltedError, MetricsWindow


class InterruptedRunError(Exception):
    """The run was asked to stop by a signal, and has saved its state."""

    def __init__(self, step: int, signal_number: int):
        """Note where the run stopped and why."""
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}")
        self.exit_status = 128 + signal_number


def run(
    workdir: str | os.PathLike[str],
    prepare: Callable[[], tuple[Task, TrainState]],
    *,
    process_ends: bool = False,
) -> TrainState:
    """Train, resuming where `workdir` has a checkpoint.

    Args:
      workdir: folder for config, metrics, checkpoints, TensorBoard and plots.
      prepare: opens the data and builds the run and its fresh state, once the workdir is locked.
      process_ends: the process ends soon after this: signals that ask for that are
        then ignored from here on. By default their handlers are given back.

    Returns:
      The final state.

    Raises:
      UserError: data, workdir or checkpoint are unusable.
      InterruptedRunError: one of `STOP_SIGNALS` came, on any host; the state is
        saved. The same signal on all hosts: the first of the first host that got one.
    """
    folder = open_workdir(workdir)
    stop = StopRequest(process_ends=process_ends)
    with locked(folder), contextlib.ExitStack() as noting, contextlib.ExitStack() as closing:
        run = _Run(prepare, folder, stop, closing)
        # Not earlier: until the first step there is nothing to lose. And until all is closed:
        # the last checkpoint is written to its end, however many signals come.
        noting.enter_context(stop)
        run.train()
    return run.state


class _Run:
    """A run, from the state of its workdir to its end."""

    def __init__(
        self,
        prepare: Callable[[], tuple[Task, TrainState]],
        folder: Path,
        stop: StopRequest,
        closing: contextlib.ExitStack,
    ):
        """Build everything, and restore what is there; `closing` closes it."""
        self.folder, self.stop = folder, stop
        self.task, state = prepare()
        task, images = self.task, self.task.num_images
        self.config = config = task.config
        self.epoch_steps = build.steps_per_epoch(config, images)
        self.calendar = make_calendar(config, self.epoch_steps, build.num_steps(config, images))

        # First, so that it is closed last: what is being saved is waited for in any case.
        self.checkpoints = Checkpoints(
            folder, keep=config.keep_checkpoints, keep_forever=self.calendar.keep.__contains__
        )
        closing.callback(self.checkpoints.close)
        self.resuming = self.checkpoints.latest_step() is not None
        notes: dict[str, Any] = {}
        if self.resuming:
            check_same_run(config, folder)
            check_same_data(task.data, folder)
            items, notes = self.checkpoints.restore(state.as_items())
            state = TrainState.from_items(items)
            check_same_config(config, notes["config"], folder)  # config.json may be gone
        elif config.init_from is not None:
            state = warm_start(config, state, task.mesh)
            weights = state.params
            check_hosts_agree(lambda: {"the weights in config.init_from": digest(weights)})
        self.state = _clear_halt(state)
        self.step = int(state.step)  # sent off so far
        self.first_host = is_first_host()
        # A finished run keeps the config of its tests: with another nothing was tested.
        if self.first_host and self.step < self.calendar.num_steps:
            write_config(config, folder)
            write_data_set(task.data, folder)

        self.log = RunLog(
            folder,
            start_step=self.step,
            num_steps=self.calendar.num_steps,
            active=self.first_host,
        )
        closing.enter_context(self.log)
        self.window = MetricsWindow(config.batch_size, notes.get("window"))
        self.best = Best(**notes["best"]) if notes.get("best") else None
        self._note_best(read_metrics(folder) if self.first_host else [])
        self.save_clock = SaveClock(config.checkpoint_every_minutes)
        self.profiler = Profiler(folder, config.profile_steps if self.first_host else ())
        closing.callback(self.profiler.close)
        batches = task.batches(self.step, self.calendar.num_steps)
        self.batches = closing.enter_context(contextlib.closing(batches))
        self.batch: Batch = {}  # the last one
        self.data_error: DataError | None = None

    def train(self) -> None:
        """Take the steps that are left, with all that is due between them."""
        for line in introduction(
            self.task, self.state, self.calendar.num_steps, resuming=self.resuming
        ):
            self.log.say(line)
        if self.step in self.calendar.test and not self._is_tested():
            self._test()  # the run had been stopped before or while it tested
        try:
            while self.step < self.calendar.num_steps:
                self._train_one_step()
        except HaltedError as halt:
            raise self._explain(halt) from None
        self.checkpoints.close()  # waits for the last one
        if self.first_host:
            for line in conclusion(self.task, self.folder):
                self.log.say(line)

    def _train_one_step(self) -> None:
        """Take one step, and do what is due after it."""
        requests = self._take_step()
        step, calendar = self.step, self.calendar
        if requests or step in calendar.log or step in calendar.save:
            # Also for the guard: a step that halts the run is not one to record or save.
            requests |= self.window.settle()
        if step in calendar.log:
            self._record_training()
        # Saved after it is logged: what a crash between the two leaves in the log is
        # dropped and made again when the run resumes.
        if step in calendar.save or requests:
            self._save()
        if Request.STOP in requests:
            # Some hosts may have got other signals than this one, or none.
            numbers = gather(self.stop.signal_number or 0)
            raise InterruptedRunError(step, next(filter(None, numbers)))
        if step in calendar.test:
            self._test()
        if step in calendar.save or requests:
            self.window.restart_clock()

    def _take_step(self) -> frozenset[Request]:
        """Send off a step; return what to do after it, the same on all hosts."""
        step = self.step + 1
        self.profiler.before(step)
        with self.window.waiting_for_data():
            try:
                if self.data_error is None:
                    self.batch = next(self.batches)
            except DataError as error:
                if jax.process_count() == 1 or not self.batch:
                    self._save_after_error()
                    raise
                # The others must not wait for this host: the previous batch is passed, unused,
                # until all have heard.
                self.data_error = error
        batch = self.batch
        if jax.process_count() > 1:
            batch = attach_requests(
                batch, self._local_requests(), self.task.mesh, self.config.accumulate_steps
            )
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            self.state, metrics = self.task.train_step(self.state, batch)
        self.step = step
        requests = self.window.add(metrics)
        if jax.process_count() == 1:
            requests = self._local_requests()
        if self.profiler.after(step, metrics):
            self.log.say(f"profile of steps {self.config.profile_steps} written")
            self.window.restart_clock()
        self.log.advance()
        self.checkpoints.check()
        return requests

    def _local_requests(self) -> frozenset[Request]:
        """Return what this host asks for."""
        wishes = {
            Request.STOP: self.stop.signal_number is not None,
            Request.SAVE: self.first_host and self.save_clock.due,
            Request.HALT: self.data_error is not None,
        }
        return frozenset(request for request, wished in wishes.items() if wished)

    def _progress(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.step / self.epoch_steps}

    def _record_training(self) -> None:
        record = self._progress() | {"split": "train"} | self.window.close()
        record["learning_rate"] = float(self.task.schedule(self.step - 1))
        peak = peak_memory()
        if peak is not None:
            record["peak_memory_bytes"] = peak
        self.log.record(record)

    def _save(self) -> None:
        self.log.sync()
        self.checkpoints.save(int(self.state.step), self.state.as_items(), self._notes())
        self.save_clock.restart()

    def _save_after_error(self) -> None:
        """Save what was trained: the run resumes once the cause is fixed."""
        with contextlib.suppress(HaltedError):
            self.window.settle()
        self.state = _clear_halt(self.state)
        if self.state.step > 0:
            self._save()

    def _notes(self) -> dict[str, Any]:
        """Return what of a checkpoint is not arrays."""
        return {
            "window": self.window.rows,
            "best": self.best.as_json() if self.best else None,
            "config": self.config.to_dict(),
        }

    def _test(self) -> None:
        """Score the weights, and their average if there is one."""
        weights = {"raw": (self.state.params, self.state.batch_stats)}
        if self.state.ema is not None:
            weights["ema"] = (self.state.ema["params"], self.state.ema["batch_stats"])
        records = [
            self._progress()
            | {"split": "test", "weights": name}
            | self.task.test(*arrays, self._raise_if_interrupted)
            for name, arrays in weights.items()
        ]
        self.log.record(*records)  # together: a run stopped in between tests both again
        self._note_best(records)
        # After the last test the conclusion draws it.
        if self.first_host and self.step < self.calendar.num_steps:
            draw_training_curve(self.folder, self.task.title, self.task.measure)

    def _is_tested(self) -> bool:
        records = read_metrics(self.folder) if self.first_host else []
        tested = any(r["split"] == "test" and r["step"] == self.step for r in records)
        return bool(broadcast_from_first_host(int(tested)))

    def _raise_if_interrupted(self) -> None:
        """Stop in the middle of a test: the state has been saved before it."""
        # Not while others would wait for this host: they learn of it with the next step.
        if jax.process_count() == 1 and self.stop.signal_number is not None:
            raise InterruptedRunError(self.step, self.stop.signal_number)

    def _note_best(self, records: list[dict[str, Any]]) -> None:
        """Find what is best with these records too, and let its checkpoint be kept."""
        judged = "raw" if self.state.ema is None else "ema"
        tests = [record for record in records if record.get("weights") == judged]
        self.best = best_of(tests, self.task.measure, self.best)
        if self.first_host:
            write_best(self.best, self.folder)
        step = broadcast_from_first_host(self.best.step if self.best else -1)
        if step >= 0:
            self.checkpoints.note_best(step)

    def _explain(self, halt: HaltedError) -> Exception:
        """Save the state, which is that before the halted step, and say what happened."""
        self._save_after_error()
        self.checkpoints.wait()
        saved = broadcast_from_first_host(
            int(self.state.step)
        )  # none leaves, and ends the others, before it is whole
        if Request.HALT in halt.requests:
            return self.data_error or DataError(
                f"another host has no images for step {saved + 1} (it says why); the state after "
                f"step {saved} is saved."
            )
        guard = self.config.guard
        finite = math.isfinite(halt.loss) and math.isfinite(halt.gradient_norm)
        what = "which is not finite"
        hint = "--config.guard.on_nonfinite=skip leaves such steps out and "
        if finite:
            what = f"more than config.guard.spike_factor={guard.spike_factor} times the average"
            hint = "--config.guard.spike_factor=None takes such steps and "
        if finite or guard.on_nonfinite == "skip":
            what += f", and more than config.guard.max_skipped={guard.max_skipped} were left out in"
            what += " a row"
        if not finite and guard.on_nonfinite == "skip":
            hint = ""
        return DivergedError(
            f"step {saved + 1} has loss {halt.loss:.6g} and gradient norm "
            f"{halt.gradient_norm:.6g}, {what}; the state after step {saved} is saved in "
            f"{self.checkpoints.directory}. To go on from it, {hint}"
            "--config.optimizer.clip_norm=... limits the gradient; or start over with a lower "
            "--config.optimizer.learning_rate."
        )


def _clear_halt(state: TrainState) -> TrainState:
    """Let a run that was halted go on."""
    if not state.guard.halted:
        return state
    # Compiled, because on several hosts arrays are made by all of them together.
    return dataclasses.replace(state, guard=jax.jit(GuardState.released)(state.guard))
