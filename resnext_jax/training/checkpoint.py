"""Checkpoints: the whole state of a run, saved while training goes on."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from resnext_jax.errors import CheckpointError
from resnext_jax.training.state import TrainState

_STATE = "state"


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
        # A handler named from the start lets shapes be read before arrays are.
        handlers = {_STATE: ocp.StandardCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Start saving `state` under its step; returns before it is written."""
        step = int(state.step)
        if step != self.latest_step():
            item = ocp.args.StandardSave(state.as_dict())
            self._manager.save(step, args=ocp.args.Composite(**{_STATE: item}))

    def restore(self, like: TrainState) -> TrainState:
        """Read the newest checkpoint.

        Args:
          like: a state of the same model, whose shapes, dtypes and shardings
            the result takes; any number of devices.

        Raises:
          CheckpointError: the checkpoint is of another model, or unreadable.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(
                f"no checkpoint in {self.directory}; train first with train.py --workdir, "
                "or check the path."
            )
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like.as_dict()
        )
        self._check_same_model(step, target)
        item = ocp.args.StandardRestore(target)
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**{_STATE: item}))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} cannot be read: "
                f"{' '.join(str(error).split())[:200]}; delete that folder to go on "
                "from the checkpoint before it."
            ) from error
        return TrainState(**restored[_STATE])

    def close(self) -> None:
        """Wait until what is being saved is whole."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check_same_model(self, step: int, target: Any) -> None:
        stored = _shapes(self._manager.item_metadata(step)[_STATE])
        wanted = _shapes(target)
        missing = sorted(wanted.keys() - stored.keys())
        unexpected = sorted(stored.keys() - wanted.keys())
        misshapen = sorted(
            name for name in wanted.keys() & stored.keys() if wanted[name] != stored[name]
        )
        if not (missing or unexpected or misshapen):
            return
        differences = [
            f"{len(names)} {what} (such as {names[0]})"
            for names, what in (
                (missing, "arrays missing"),
                (unexpected, "arrays unexpected"),
                (misshapen, "arrays of another shape"),
            )
            if names
        ]
        raise CheckpointError(
            f"checkpoint {self.directory / str(step)} is of another model or optimiser: "
            f"{', '.join(differences)}; use the config it was trained with "
            f"({self.directory.parent / 'config.json'}) or another --workdir."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: hasattr(node, "shape")
    )
    return {
        ".".join(jax.tree_util.keystr((key,), simple=True) for key in path): tuple(leaf.shape)
        for path, leaf in leaves
    }
