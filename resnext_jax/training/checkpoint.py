"""Checkpoints: the whole state of a run, saved while training goes on."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from resnext_jax.errors import CheckpointError
from resnext_jax.models.variables import Arrays
from resnext_jax.training.state import TrainState

# What a checkpoint is made of: the weights, which is all that evaluation reads,
# and what only training needs.
_WEIGHTS = "weights"
_TRAINING = "training"


class Checkpoints:
    """The checkpoints of one workdir, under `checkpoints/`.

    A checkpoint holds parameters, running statistics, optimiser state and the
    step, which is also the data position. Saving is asynchronous. An Orbax
    checkpoint has its final name only once it is whole, so an interrupted save
    is never restored.
    """

    def __init__(self, workdir: Path, *, keep: int = 1, read_only: bool = False):
        """Open, and unless `read_only` make, the folder; keep the last `keep` checkpoints."""
        self.directory = workdir / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        # Handlers named from the start let shapes be read before arrays are.
        handlers = {item: ocp.StandardCheckpointHandler() for item in (_WEIGHTS, _TRAINING)}
        try:
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )
        except OSError as error:
            raise CheckpointError(
                f"{self.directory} cannot be used for checkpoints ({error.strerror}); "
                "move away what is there, or use another --workdir."
            ) from error

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def require_step(self) -> int:
        """Return the step of the newest checkpoint; raises CheckpointError where there is none."""
        step = self.latest_step()
        if step is None:
            raise CheckpointError(
                f"no checkpoint in {self.directory}; train first with train.py --workdir, "
                "or check the path."
            )
        return step

    def save(self, state: TrainState) -> None:
        """Start saving `state` under its step; returns before it is written."""
        step = int(state.step)
        if step == self.latest_step():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, like: TrainState) -> TrainState:
        """Read the newest checkpoint.

        Args:
          like: a state of the same model, whose shapes, dtypes and shardings
            the result takes; any number of devices.

        Raises:
          CheckpointError: there is none, it is of another model, or unreadable.
        """
        restored = self._restore(_items(like))
        return TrainState(**restored[_WEIGHTS], **restored[_TRAINING])

    def restore_weights(self, params: Arrays, batch_stats: Arrays) -> tuple[Arrays, Arrays]:
        """Read only parameters and running statistics of the newest checkpoint.

        Args:
          params: arrays or their shapes (`jax.ShapeDtypeStruct`), with the
            shardings that the results shall have.
          batch_stats: likewise.

        Raises:
          CheckpointError: there is none, it is of another model, or unreadable.
        """
        like = {"params": params, "batch_stats": batch_stats}
        weights = self._restore({_WEIGHTS: like})[_WEIGHTS]
        return weights["params"], weights["batch_stats"]

    def close(self) -> None:
        """Wait until what is being saved is whole."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, like: dict[str, Any]) -> Any:
        step = self.require_step()
        targets = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        path = self.directory / str(step)
        try:
            metadata = self._manager.item_metadata(step)
            stored = {name: metadata[name] for name in targets}
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(path, error) from error
        self._check_same_arrays(path, _shapes(stored), _shapes(targets))
        items = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def _check_same_arrays(
        self, path: Path, stored: dict[str, Any], wanted: dict[str, Any]
    ) -> None:
        shared = wanted.keys() & stored.keys()
        differences = [
            f"{len(names)} {what} (such as {min(names)})"
            for names, what in (
                (wanted.keys() - stored.keys(), "arrays missing"),
                (stored.keys() - wanted.keys(), "arrays unexpected"),
                (
                    {name for name in shared if wanted[name] != stored[name]},
                    "arrays of another shape",
                ),
            )
            if names
        ]
        if differences:
            raise CheckpointError(
                f"checkpoint {path} is of another model or optimiser: {', '.join(differences)}; "
                f"use the config it was trained with ({self.directory.parent / 'config.json'}) "
                "or another --workdir."
            )


def _items(state: TrainState) -> dict[str, Any]:
    return {
        _WEIGHTS: {"params": state.params, "batch_stats": state.batch_stats},
        _TRAINING: {"step": state.step, "opt_state": state.opt_state},
    }


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array by its path, the item's name left out."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: hasattr(node, "shape")
    )
    return {
        ".".join(jax.tree_util.keystr((key,), simple=True) for key in path[1:]): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(
        f"checkpoint {path} cannot be read ({reason}); move that folder away to go on from "
        "the checkpoint before it."
    )
