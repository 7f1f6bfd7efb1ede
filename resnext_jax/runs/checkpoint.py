"""Checkpoints: the whole state of a run, saved while training goes on."""

import functools
import json
import logging
import sys
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from resnext_jax.errors import CheckpointError, one_line
from resnext_jax.files import strict_json
from resnext_jax.models.variables import Arrays
from resnext_jax.parallel.distributed import broadcast_from_first_host, is_first_host
from resnext_jax.runs import packing
from resnext_jax.runs.manifest import StepFolders

# What a checkpoint is made of: the weights and their average, `params` and `batch_stats` each,
# which is all that an evaluation reads, what only training needs, and what is not arrays.
_WEIGHTS, _EMA = "weights", "ema"
ITEMS = (_WEIGHTS, _EMA, "training")
RUN_FILE = "run.json"

# In an item's metadata of Orbax: which arrays its vectors are made of.
_INDEX = "arrays"

Answer = TypeVar("Answer")


@functools.cache
def _silence_orbax() -> None:
    """Keep Orbax's tracebacks off standard error: its errors are raised and reported in a line.

    Orbax logs an error in each of its threads before it raises it. It also closes its event loop
    at the first one, and each answer of TensorStore's that comes later, from a thread of
    TensorStore's, fails and says so: during the save, or after it.
    """
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.ERROR or "/orbax/" not in record.pathname
    )
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            report(unraisable)

    sys.unraisablehook = report_others


def _print_warning(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Checkpoints:
    """The checkpoints of one workdir, under `checkpoints/`.

    A checkpoint holds the items of `ITEMS`, each a tree of arrays, and the caller's dictionary;
    `ema` may be missing. A manifest with the hash of every file shows whether it is complete.

    On several hosts, whose file system is shared, all call the same methods in the same order. The
    arrays are replicated, so the first host has all of it: it alone writes, verifies and deletes.
    The others hear from it which checkpoint is taken, and read it themselves.
    """

    # Not Orbax's `CheckpointManager`: it deletes old checkpoints before a manifest of the new one
    # could be there, and has no notion of a damaged one. Nor its `AsyncCheckpointer`, which plans
    # the writing before it returns, and cuts replicated arrays into a part for each device: with
    # the demo's 258 arrays the loop waits 0.1 s for it on one device, and on eight 0.6 s, the
    # first time 6. So the arrays are copied to the host, in milliseconds, and the rest, planning
    # too, is done by Orbax's `Checkpointer` in a thread of ours.

    def __init__(
        self,
        workdir: Path,
        *,
        keep: int = 1,
        keep_forever: Callable[[int], bool] = lambda step: False,
        read_only: bool = False,
        warn: Callable[[str], None] = _print_warning,
    ):
        """Open the folder, and unless `read_only` make it and delete what is half written in it.

        Args:
          workdir: of the run.
          keep: number of most recent checkpoints to keep, at least 1.
          keep_forever: whether the checkpoint of a step is kept besides.
          read_only: nothing is saved, and damaged checkpoints stay where they are.
          warn: takes a sentence, on the first host.

        Raises:
          CheckpointError: the folder cannot be used.
        """
        self.directory = workdir / "checkpoints"
        self._keep, self._keep_forever = keep, keep_forever
        self._read_only, self._warn = read_only, warn
        self._best: int | None = None
        self._folders = StepFolders(workdir, self.directory, warn)
        self._thread: threading.Thread | None = None
        # What the thread leaves to be reported.
        self._failure: CheckpointError | None = None
        self._failure_told = False
        self._warnings: list[str] = []
        _silence_orbax()
        # Each process for itself: nothing of Orbax's may wait for other hosts.
        process = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=process, active_processes={process})
        self._handlers = {
            item: ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
            for item in ITEMS
        }
        options = ocp.CompositeOptions(
            multiprocessing_options=alone,
            # Otherwise a folder that cannot be made is waited for, for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._checkpointer = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(composite_options=options, **self._handlers),
            multiprocessing_options=alone,
        )
        if is_first_host() and not read_only:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._folders.clean()
            except OSError as error:
                raise CheckpointError(
                    f"{self.directory} cannot be used for checkpoints ({error.strerror}); "
                    "move away what is there, or use another --workdir."
                ) from error

    def latest_step(self) -> int | None:
        """Return the step of the newest whole checkpoint, None where there is none at all.

        What is being saved is waited for, here and wherever a checkpoint is read. A damaged
        checkpoint that is newer is warned of and, unless `read_only`, moved to `damaged/`.

        Raises:
          CheckpointError: there are checkpoints, and none is whole.
        """
        self._settle()
        return _from_first_host(lambda: self._folders.newest_whole(repair=not self._read_only))

    def require_step(self, step: int | None = None) -> int:
        """Return the step of the newest whole checkpoint, or `step` if that one is whole.

        Raises:
          CheckpointError: otherwise.
        """
        if step is not None:
            self._settle()
            return _from_first_host(lambda: self._check_whole(step))
        latest = self.latest_step()
        if latest is None:
            raise CheckpointError(
                f"no checkpoint in {self.directory}; train first with train.py --workdir, "
                "or check the path."
            )
        return latest

    def save(self, step: int, items: Mapping[str, Any], run: dict[str, Any]) -> None:
        """Start saving items under a step; does nothing if that is saved already.

        Returns when the arrays are copied to the host: their buffers may then be donated. Where the
        save before this one is still under way, it is waited for.

        Args:
          step: names the checkpoint.
          items: by the names of `ITEMS`, trees of arrays that are replicated over the devices.
          run: given back by `restore`, through JSON, where NaN and infinity are None.

        Raises:
          CheckpointError: the save before this one failed.
        """
        self.wait()
        if not is_first_host() or self._is_saved(step):
            return
        text = strict_json(run)
        copies = _copy_to_host(dict(items))
        # Not a daemon: a program that ends waits for it.
        self._thread = threading.Thread(
            target=self._write, args=(step, copies, text), name="checkpoint"
        )
        self._thread.start()

    def note_best(self, step: int) -> None:
        """Let the checkpoint of `step` be kept as the best, in place of the one noted before.

        Its save may still be running. A new process starts without a best checkpoint.
        """
        self._best = step

    def check(self) -> None:
        """Look how the saving has gone so far, without waiting; no input or output.

        Raises:
          CheckpointError: it failed.
        """
        self._tell_warnings()
        if self._failure is not None:
            self._failure_told = True
            raise self._failure

    def wait(self) -> None:
        """Wait until what is being saved is whole; raises CheckpointError if it failed."""
        self._settle()
        self.check()

    def close(self) -> None:
        """Wait until what is being saved is whole.

        Raises:
          CheckpointError: it failed, and that was not reported yet.
        """
        self._settle()
        self._checkpointer.close()
        self._tell_warnings()
        if not self._failure_told:
            self.check()

    def restore(self, like: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the newest whole checkpoint.

        Args:
          like: items of the same model, whose shapes, dtypes and shardings the result takes; any
            number of devices.

        Returns:
          The items, and what was given to `save` with them.

        Raises:
          CheckpointError: there is none, it is of another model, or unreadable.
        """
        step = self.require_step()
        items = self._restore(step, like, ITEMS)
        path = self._folders.path(step) / RUN_FILE
        try:
            run = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _unreadable(path.parent, error) from error
        return items, run

    def restore_weights(
        self, params: Arrays, batch_stats: Arrays, *, step: int | None = None, ema: bool = False
    ) -> tuple[Arrays, Arrays]:
        """Read only parameters and running statistics.

        Args:
          params: arrays or their shapes (`jax.ShapeDtypeStruct`), with the
            shardings of the results.
          batch_stats: likewise.
          step: of the checkpoint; by default the newest whole one.
          ema: read their average instead.

        Raises:
          CheckpointError: there is none, it is of another model, or unreadable.
        """
        item = _EMA if ema else _WEIGHTS
        step = self.require_step(step)
        if ema and not self.has_ema(step):
            raise CheckpointError(
                f"checkpoint {self._folders.path(step)} has no average of the weights (ema); "
                "use the weights themselves, or train with --config.ema.decay=..."
            )
        like = {"params": params, "batch_stats": batch_stats}
        weights = self._restore(step, {item: like}, (item,))[item]
        return weights["params"], weights["batch_stats"]

    def has_ema(self, step: int | None = None) -> bool:
        """Whether a checkpoint, by default the newest whole one, has an average of the weights.

        Raises:
          CheckpointError: there is no such checkpoint.
        """
        path = self._folders.path(self.require_step(step)) / _EMA
        return _from_first_host(path.is_dir)

    def _check_whole(self, step: int) -> int:
        path, steps = self._folders.path(step), self._folders.steps()
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"there is no checkpoint {path}; the steps that have one: {there}."
            )
        damage = self._folders.damage(step)
        if damage is not None:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {damage}; use one of another step."
            )
        return step

    def _is_saved(self, step: int) -> bool:
        if step not in self._folders.steps():
            return False
        damage = self._folders.damage(step)
        if damage is not None:
            path, target = self._folders.path(step), self._folders.move_aside(step)
            self._warn(
                f"checkpoint {path} is damaged: {damage}; it is saved again, and what was there "
                f"is moved to {target}."
            )
        return damage is None

    def _tell_warnings(self) -> None:
        while self._warnings:
            self._warn(self._warnings.pop(0))

    def _settle(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, items: dict[str, Any], run: str) -> None:
        """Make a whole checkpoint, and only then delete older ones; runs in a thread.

        It must not wait for other hosts in any way.
        """
        path = self._folders.saving_path(step)
        try:
            # Not kept longer than needed: it is a second copy of everything.
            saves = {item: _save_args(items.pop(item)) for item in list(items)}
            self._checkpointer.save(path, args=ocp.args.Composite(**saves))
            (path / RUN_FILE).write_text(run)
            self._folders.commit(step)
        # What a full disk is called depends on who met it: Orbax, TensorStore or Python.
        except Exception as error:
            self._failure = self._folders.unwritable(step, error)
            self._folders.discard(step)
            return
        try:
            steps = self._folders.steps()
            kept = {step, *steps[-self._keep :], *filter(self._keep_forever, steps)}
            if self._best is not None:
                kept.add(self._best)
            self._folders.delete_all_but(kept)
        except OSError as error:
            self._warnings.append(
                f"an old checkpoint in {self.directory} cannot be deleted "
                f"({error.strerror}: {error.filename})."
            )
        except CheckpointError as error:
            self._warnings.append(str(error))

    def _restore(
        self, step: int, like: Mapping[str, Any], stored_items: Iterable[str]
    ) -> dict[str, Any]:
        """Read the items of `like`, and no others, if they are just those of `stored_items`."""
        path = self._folders.path(step)
        try:
            stored = {
                item: self._handlers[item].metadata(path / item).custom_metadata[_INDEX]
                for item in stored_items
                if (path / item).is_dir()
            }
            wanted = {item: packing.index_of(tree) for item, tree in like.items()}
            self._check_same_arrays(path, stored, wanted)
            args = ocp.args.Composite(**{item: ocp.args.PyTreeRestore() for item in like})
            vectors = self._checkpointer.restore(path, args=args)
            arrays = {item: packing.unpack(vectors[item], stored[item]) for item in like}
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not path.is_dir():
                raise CheckpointError(
                    f"checkpoint {path} was deleted while it was read, by a run that goes on; "
                    "run the same command again."
                ) from error
            raise _unreadable(path, error) from error
        return {item: packing.place(arrays[item], tree) for item, tree in like.items()}

    def _check_same_arrays(
        self, path: Path, stored: dict[str, packing.Index], wanted: dict[str, packing.Index]
    ) -> None:
        differences = []
        if (_EMA in stored) != (_EMA in wanted):
            which = "unexpected" if _EMA in stored else "missing"
            differences.append(f"the average of the weights (ema) {which}")
        both = {*ITEMS} - {_EMA} | (stored.keys() & wanted.keys())
        differences += packing.differences(_joined(stored, both), _joined(wanted, both))
        if differences:
            raise CheckpointError(
                f"checkpoint {path} is of another model or optimiser: {', '.join(differences)}; "
                f"use the config it was trained with ({self.directory.parent / 'config.json'}) "
                "or another --workdir."
            )


def _copy_to_host(tree: Any) -> Any:
    """Copy arrays to memory of their own, which no later step reuses."""
    for array in jax.tree.leaves(tree):
        array.copy_to_host_async()

    def copied(array: jax.Array) -> np.ndarray:
        # From a CPU NumPy is given the buffer itself, unless it copies.
        shared = any(device.platform == "cpu" for device in array.devices())
        return np.array(array, copy=True if shared else None)

    return jax.tree.map(copied, tree)


def _save_args(tree: Any) -> ocp.args.PyTreeSave:
    vectors = packing.pack(tree)
    parts = {dtype: ocp.SaveArgs(chunk_byte_size=packing.PART_BYTES) for dtype in vectors}
    return ocp.args.PyTreeSave(
        vectors, save_args=parts, custom_metadata={_INDEX: packing.index_of(tree)}
    )


def _joined(items: dict[str, packing.Index], names: Container[str]) -> packing.Index:
    """One index of some items; the average's arrays are those of the weights by other names."""
    return [
        [f"{_EMA}.{name}" if item == _EMA else name, *rest]
        for item, index in items.items()
        if item in names
        for name, *rest in index
    ]


def _from_first_host(work: Callable[[], Answer]) -> Answer:
    """Run `work` on the first host, and return its answer, or raise its error, on all hosts.

    Args:
      work: returns what JSON can hold, or raises CheckpointError.
    """
    if jax.process_count() == 1:
        return work()
    text = b""
    if is_first_host():
        try:
            text = json.dumps({"answer": work()}).encode()
        except CheckpointError as error:
            text = json.dumps({"error": str(error)}).encode()
    sent = np.zeros(broadcast_from_first_host(len(text)), np.uint8)
    if is_first_host():
        sent[:] = np.frombuffer(text, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent), np.uint8)
    message = json.loads(received.tobytes())
    if "error" in message:
        raise CheckpointError(message["error"])
    return message["answer"]


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} cannot be read ({one_line(error)}); move that folder away to go on "
        "from the checkpoint before it."
    )
