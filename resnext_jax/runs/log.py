"""What a run says: lines for programs, curves for people, a bar on a terminal."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from resnext_jax.errors import WorkdirError, drop_lost_output
from resnext_jax.files import strict_json
from resnext_jax.runs.tensorboard import Board
from resnext_jax.runs.workdir import WholeWriter, write_atomically

METRICS_FILE = "metrics.jsonl"

# Steps that were left out of which a line says more.
_NAMED = 5

# What the console says of a number, in this order.
_WORDS = {
    "loss": "loss {:.4f}",
    "top1_error": "top-1 error {:6.2f} %",
    "top5_error": "top-5 error {:6.2f} %",
    "rpn_class_loss": "RPN class {:.4f}",
    "rpn_box_loss": "RPN box {:.4f}",
    "class_loss": "class {:.4f}",
    "box_loss": "box {:.4f}",
    "foreground": "{:.1f} foreground an image",
    "recall100": "recall@100 {:6.2f} %",
    "recall300": "recall@300 {:6.2f} %",
    "AP": "AP {:5.1f}",
    "AP50": "AP50 {:5.1f}",
    "AP75": "AP75 {:5.1f}",
}
# On the bar, which is short.
_BAR = {
    "loss": "{:.3f}",
    "top1_error": "{:.1f}%",
    "top5_error": "{:.1f}%",
    "class_loss": "{:.3f}",
    "box_loss": "{:.3f}",
    "rpn_class_loss": "{:.3f}",
    "rpn_box_loss": "{:.3f}",
}


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the records of a workdir's `metrics.jsonl`; a last line cut short is left out.

    Raises:
      WorkdirError: the file is damaged.
    """
    path = workdir / METRICS_FILE
    try:
        lines = path.read_text().splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        if not all({"step", "epoch", "split"} <= record.keys() for record in records):
            raise ValueError("a line lacks step, epoch or split")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); repair or remove that file, or use another --workdir."
        ) from error
    return records


class RunLog:
    """Writer of `metrics.jsonl`, TensorBoard and the console.

    On a terminal a progress bar shows the latest values; elsewhere (a log
    file, a batch queue) each record is a plain line. When nobody reads them
    any more (the terminal is lost, or `tee` ended by the signal that stops the
    run) the run goes on without. Only the first host of a run writes.
    """

    def __init__(self, workdir: Path, *, start_step: int, num_steps: int, active: bool):
        """Open the log for steps `start_step` to `num_steps`.

        Records after `start_step`, written by a run that stopped before its
        next checkpoint, are dropped: those steps are about to be repeated.
        """
        self._active = active
        self._num_steps = num_steps
        self._done = start_step
        self._paced_from: tuple[int, float] | None = None  # a step, and when it was done
        if not active:
            return
        kept = [record for record in read_metrics(workdir) if record["step"] <= start_step]
        path = workdir / METRICS_FILE
        write_atomically(path, "".join(_line(record) for record in kept))
        self._file = WholeWriter(path)
        self._board = Board(workdir / "tensorboard", purge_step=start_step + 1)
        self._bar = tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> "RunLog":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        if self._active:
            with _perhaps_lost():
                self._bar.close()
            self._file.close()
            self._board.close()

    def say(self, message: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self._active:
            with _perhaps_lost():
                tqdm.write(message)
                sys.stdout.flush()

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self._done += 1
        if self._paced_from is None:  # the first step of all compiles
            self._paced_from = (self._done, time.monotonic())
        if self._active:
            with _perhaps_lost():
                self._bar.update()

    def sync(self) -> None:
        """Flush to disk, so that no checkpoint exists without its records."""
        if self._active:
            self._file.sync()

    def record(self, *records: dict[str, Any]) -> None:
        """Write records, all or (in a crash) none: `step`, `epoch`, `split`, numbers by name.

        Raises:
          WorkdirError: they cannot be written.
        """
        if not self._active:
            return
        self._file.write("".join(map(_line, records)).encode())
        for record in records:
            self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        split = record["split"]
        board = "ema" if record.get("weights") == "ema" else split
        numbers = {
            f"{board}/{name}": value
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("epoch", "step")
        }
        self._board.add(numbers, record["step"])
        if split == "train" and not self._bar.disable:
            shown = {
                name: form.format(record[name]) for name, form in _BAR.items() if name in record
            }
            shown["rate"] = f"{record['learning_rate']:.4f}"
            with _perhaps_lost():
                self._bar.set_postfix(**shown, **_speed(record))
            if left_out := _left_out(record):
                self.say("  ".join([f"step {record['step']:6d}", *left_out]))
        else:
            self.say(_readable(record) + self._time_left(record))

    def _time_left(self, record: dict[str, Any]) -> str:
        """Estimate by the pace since the first step, tests and checkpoints included."""
        if record["split"] != "train" or self._paced_from is None:
            return ""
        step, begin = self._paced_from
        left = self._num_steps - self._done
        if self._done == step or not left:
            return ""
        seconds = (time.monotonic() - begin) / (self._done - step) * left
        return f"  {tqdm.format_interval(seconds)} left"


@contextlib.contextmanager
def _perhaps_lost() -> Iterator[None]:
    try:
        yield
    except OSError:
        drop_lost_output()


def _line(record: dict[str, Any]) -> str:
    return strict_json(record) + "\n"


def _readable(record: dict[str, Any]) -> str:
    parts = [
        f"epoch {record['epoch']:6.2f}",
        f"step {record['step']:6d}",
        # Averaged weights are scored beside the raw ones.
        "ema  " if record.get("weights") == "ema" else f"{record['split']:5s}",
        *(form.format(record[name]) for name, form in _WORDS.items() if name in record),
    ]
    for name, value in record.items():
        # Scores among the first classes alone, such as top1_error_1000way.
        scored = re.fullmatch(r"top(\d)_error_(\d+)way", name)
        if scored:
            parts.append(f"{scored[2]}-way top-{scored[1]} error {value:6.2f} %")
    if "learning_rate" in record:
        parts.append(f"rate {record['learning_rate']:.5f}")
    speed = _speed(record)
    if speed:
        parts += [f"{speed['images/s']} images/s", f"{speed['data_wait']} waiting for data"]
    if "peak_memory_bytes" in record:
        parts.append(f"{record['peak_memory_bytes'] / 1e9:.2f} GB at most")
    return "  ".join([*parts, *_left_out(record)])


def _left_out(record: dict[str, Any]) -> list[str]:
    """Say what images and steps were left out, and what the steps had."""
    parts = []
    for name, what in (("skipped_images", "images"), ("skipped_steps", "steps")):
        if record.get(name):
            parts.append(f"{record[name]} {what} left out")
    for name, what in (("skipped_losses", "loss"), ("skipped_gradient_norms", "gradient norm")):
        if values := record.get(name):
            more = ", ..." if len(values) > _NAMED else ""
            parts.append(f"{what} {', '.join(f'{value:.4g}' for value in values[:_NAMED])}{more}")
    return parts


def _speed(record: dict[str, Any]) -> dict[str, str]:
    """Speed and data wait in words; nothing where no step was timed."""
    if record.get("images_per_second") is None:
        return {}
    return {
        "images/s": f"{record['images_per_second']:.0f}",
        "data_wait": f"{100 * record['data_wait_fraction']:.0f} %",
    }
