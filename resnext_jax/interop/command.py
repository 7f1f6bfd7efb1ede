"""The command `python -m resnext_jax.interop.torch`."""

import argparse
import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnext_jax.errors import CommandParser, WorkdirError, reports_user_errors
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import read_state_dict, source, write_state_dict
from resnext_jax.interop.identify import identify
from resnext_jax.interop.names import model_name, table
from resnext_jax.interop.state_dicts import weights_to_torch
from resnext_jax.models.resnext import NetworkSpec
from resnext_jax.models.variables import Arrays, merge


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Export or inspect weights, as the command line says."""
    options = _parse(argv)
    if options.command == "inspect":
        _inspect(options.file, ema=options.ema)
    else:
        _export(options.workdir, options.out, checkpoint=options.checkpoint, ema=options.ema)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m resnext_jax.interop.torch",
        description="Weights between this package and PyTorch.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser(
        "export", help="write the weights of a run for PyTorch", allow_abbrev=False
    )
    export.add_argument("--workdir", required=True, metavar="DIR", type=Path, help="of the run")
    export.add_argument(
        "--out", required=True, metavar="FILE", type=Path, help=".safetensors, or .pth with PyTorch"
    )
    export.add_argument(
        "--checkpoint", default="latest", help="latest (the default), best, or a step"
    )
    export.add_argument("--ema", action="store_true", help="the averaged weights")
    inspect = commands.add_parser(
        "inspect", help="list a file's arrays, and tell which model it fits", allow_abbrev=False
    )
    inspect.add_argument("file", metavar="FILE", type=Path, help=".safetensors or .pth")
    inspect.add_argument("--ema", action="store_true", help="the average that is beside weights")
    return parser.parse_args(argv)


def _inspect(path: Path, *, ema: bool) -> None:
    state_dict = read_state_dict(path, ema=ema)
    width = max(map(len, state_dict))
    for name, array in state_dict.items():
        print(f"{name:{width}}  {array.dtype!s:8}  {array.shape}")
    print(_summary(state_dict))
    try:
        identity = identify(state_dict, source(path))
    except WeightsError as error:
        print(f"model: {error}")
        return
    arguments = identity.arguments
    options = "".join(f", {what}={value}" for what, value in arguments.items() if what != "name")
    print(f"names: {identity.scheme}'s")
    print(f"model: create_model({identity.name!r}{options}, ...)")


def _summary(arrays: dict[str, np.ndarray]) -> str:
    numbers = sum(math.prod(array.shape) for array in arrays.values())
    return f"arrays: {len(arrays)} with {numbers:,} numbers"


def _export(workdir: Path, out: Path, *, checkpoint: str, ema: bool) -> None:
    step, spec, weights = _restore(workdir, checkpoint, ema=ema)
    state_dict = weights_to_torch(*weights, spec)
    write_state_dict(state_dict, out)
    name = model_name(spec.architecture)
    print(f"model: {name} with {spec.num_classes} classes, form {spec.form}")
    print(f"weights: {'ema' if ema else 'raw'}, step {step}")
    print(_summary(state_dict))
    print(f"file: {out}")


def _restore(
    path: Path, checkpoint: str, *, ema: bool
) -> tuple[int, NetworkSpec, tuple[Arrays, Arrays]]:
    """Read a checkpoint's weights, for the network of the run's `config.json`."""
    # Late: files of weights are read without what training needs.
    import jax

    from resnext_jax.training import setup
    from resnext_jax.training.best import wanted_step
    from resnext_jax.training.checkpoint import Checkpoints
    from resnext_jax.training.mesh import make_mesh
    from resnext_jax.training.validation import validate
    from resnext_jax.training.workdir import existing_workdir, stored_classes

    workdir = existing_workdir(path)
    config, num_classes = _stored_config(workdir), stored_classes(workdir)
    validate(config)
    mesh = make_mesh(batch_size=1, bn_group_size=1, devices=jax.devices()[:1])
    graphdef, *shapes = setup.abstract_weights(config, num_classes, mesh)
    spec = merge(graphdef, *shapes).spec
    table(spec)  # refuses a network without names, before anything is read
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.require_step(wanted_step(checkpoint, workdir))
        weights = checkpoints.restore_weights(*shapes, step=step, ema=ema)
    return step, spec, weights


def _stored_config(workdir: Path) -> Any:
    """Read `config.json`; fields that it does not have get their defaults."""
    from resnext_jax.training.config import base_config
    from resnext_jax.training.workdir import CONFIG_FILE

    config, path = base_config(), workdir / CONFIG_FILE
    try:
        config.update(_stored(path))
    except (TypeError, ValueError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); put the run's config back, or use another --workdir."
        ) from error
    return config


def _stored(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise WorkdirError(
            f"{path} cannot be read ({error}); give the folder of a whole run with --workdir=..."
        ) from error
