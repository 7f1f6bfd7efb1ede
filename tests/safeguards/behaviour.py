"""What commands say of mistakes, their help, and what every recipe's config is.

python -m tests.safeguards.behaviour           names what is not as stored
python -m tests.safeguards.behaviour --write   stores it anew
"""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"

from ml_collections import ConfigDict

from tests.programs import Served
from tests.safeguards.command_lines import HELP, ROOT, WRONG, lines, words, write_others
from tests.safeguards.inputs import write_all
from tests.safeguards.serving import serving

GOLDEN = Path(__file__).parent / "golden"
COMMANDS, CONFIGS = GOLDEN / "commands.json", GOLDEN / "configs.json"

# Of recipes that take an argument, some besides the usual.
ARGUMENTS = {
    "cifar": (
        "cifar10,resnext29_16x64d",
        "cifar100,wide_resnet28_10",
        "cifar10,resnext29_8x64d,preact",
    ),
    "coco": ("rpn,resnet50", "fast_rcnn,resnext101_64x4d"),
    "folder": ("resnet50", "resnext101_64x4d,crop320"),
    "imagenet": ("resnet200,crop320", "resnext50_32x4d,no_residual"),
    "imagenet5k": ("resnet101", "resnext101_32x4d"),
}


def recipes() -> dict[str, dict[str, str]]:
    """Return the fields of every recipe: type and value by dotted name."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        if not hasattr(module, "get_config"):
            continue
        found[path.stem] = dict(_fields(module.get_config()))
        for argument in ARGUMENTS.get(path.stem, ()):
            found[f"{path.stem}:{argument}"] = dict(_fields(module.get_config(argument)))
    return found


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, f"{config.get_type(name).__name__} {value!r}"


def differences(configs: dict[str, dict[str, str]]) -> dict[str, dict[str, str | None]]:
    """Return the first recipe, and of the others what differs from it; None: no such field."""
    first = next(iter(configs.values()))
    found: dict[str, dict[str, str | None]] = {next(iter(configs)): dict(first)}
    for name, fields in list(configs.items())[1:]:
        names = sorted(first.keys() | fields.keys())
        found[name] = {n: fields.get(n) for n in names if fields.get(n) != first.get(n)}
    return found


def observed(server: Served, line: str, folder: Path) -> dict[str, Any]:
    """Run a line; return what it says, as it is stored."""
    result = server(*words(line))
    # docs/config.md, which a test of its own keeps current, lists the fields too.
    result.stdout = result.stdout.partition("\nconfig fields")[0]
    texts = {
        name: text.replace(str(folder), "{folder}").replace(str(ROOT), "{root}").splitlines()
        for name, text in (("out", result.stdout), ("err", result.stderr))
    }
    return {"status": result.returncode, **{name: text for name, text in texts.items() if text}}


def commands() -> Iterator[tuple[str, dict[str, Any]]]:
    """Run all lines."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write_all(folder)
        write_others(folder)
        with serving(folder) as server:
            for line in [*lines(HELP), *lines(WRONG)]:
                yield line, observed(server, line, folder)


def main() -> None:
    """Print what is not as stored, or store what is."""
    write = "--write" in sys.argv[1:]
    for path, found in ((CONFIGS, differences(recipes())), (COMMANDS, dict(commands()))):
        stored = json.loads(path.read_text()) if path.exists() else {}
        for name, value in found.items():
            if stored.get(name) != value:
                print(f"OTHER  {name}")
        if write:
            GOLDEN.mkdir(exist_ok=True)
            path.write_text(json.dumps(found, indent=1, sort_keys=False) + "\n")


if __name__ == "__main__":
    main()
