"""The command `python -m resnext_jax.interop.torch`."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnext_jax.errors import CommandParser, reports_user_errors
from resnext_jax.files import path_argument
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import (
    read_class_names,
    read_state_dict,
    source,
    write_state_dict,
)
from resnext_jax.interop.identify import identify, twins
from resnext_jax.interop.pretrained import find, is_name
from resnext_jax.interop.state_dicts import weights_to_torch
from resnext_jax.models.registry import model_name

# Number of class names that are printed.
_NAMED = 10


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the command that exports or inspects weights."""
    options = _parse(argv)
    if options.command == "inspect":
        _inspect(options.file, ema=options.ema)
    else:
        _export(options.workdir, options.out, checkpoint=options.checkpoint, ema=options.ema)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m resnext_jax.interop.torch",
        description="Convert weights between this package and PyTorch.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser(
        "export", help="write the weights of a run for PyTorch", allow_abbrev=False
    )
    export.add_argument(
        "--workdir", required=True, metavar="DIR", type=path_argument, help="workdir of the run"
    )
    export.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        type=path_argument,
        help="file to write: .safetensors, or .pth (needs PyTorch)",
    )
    export.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    export.add_argument("--ema", action="store_true", help="use the averaged weights")
    inspect = commands.add_parser(
        "inspect", help="list a file's arrays and the model they fit", allow_abbrev=False
    )
    inspect.add_argument(
        "file",
        metavar="FILE",
        type=path_argument,
        help=".safetensors or .pth, or a name such as timm/resnet50.a1_in1k",
    )
    inspect.add_argument(
        "--ema", action="store_true", help="use the averaged weights saved in the file"
    )
    return parser.parse_args(argv)


def _inspect(path: Path, *, ema: bool) -> None:
    wants = None
    if is_name(str(path)):
        published = find(str(path))
        path, wants = published.file, published.wants
    state_dict = read_state_dict(path, ema=ema)
    width = max(map(len, state_dict))
    for name, array in state_dict.items():
        print(f"{name:{width}}  {array.dtype!s:8}  {array.shape}")
    print(_summary(state_dict))
    names = read_class_names(path)
    if names is not None:
        more = ", ..." if len(names) > _NAMED else ""
        print(f"classes: {', '.join(names[:_NAMED])}{more}")
    try:
        identity = identify(state_dict, source(path))
    except WeightsError as error:
        print(f"model: {error}")
        return
    arguments = identity.arguments
    options = "".join(f", {what}={value}" for what, value in arguments.items() if what != "name")
    print(f"names: {identity.scheme}'s")
    print(f"model: create_model({identity.name!r}{options}, ...)")
    if wants is not None:
        print(f"wants: {wants}")
    elif names is None:  # otherwise it was exported from a run
        print(f"note: {twins(identity.name)}")


def _summary(arrays: dict[str, np.ndarray]) -> str:
    numbers = sum(math.prod(array.shape) for array in arrays.values())
    return f"arrays: {len(arrays)} with {numbers:,} numbers"


def _export(workdir: Path, out: Path, *, checkpoint: str, ema: bool) -> None:
    # Imported late: inspecting a file needs no training dependencies.
    from resnext_jax.runs.weights import load_network

    found = load_network(workdir=workdir, checkpoint=checkpoint, ema=ema)
    member = found.member
    state_dict = weights_to_torch(member.network.params, member.network.batch_stats, member.spec)
    write_state_dict(state_dict, out, found.class_names)
    name = model_name(member.spec.architecture)
    print(f"model: {name} with {member.spec.num_classes} classes, form {member.spec.form}")
    print(f"weights: {member.weights}, step {member.step}")
    print(_summary(state_dict))
    print(f"file: {out}")
