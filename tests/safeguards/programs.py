"""Hashes of the programs that training and evaluation lower to: equal hash, same program.

    python -m tests.safeguards.programs           names the programs that are not as stored
    python -m tests.safeguards.programs --write   stores them anew

The programs are those that `train` and `evaluate` themselves hand to `jax.jit`: the first with a
convolution is lowered and nothing of it compiled. What has a name only (symbols, the module, the
tree of arguments and results) does not count.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from tests.safeguards import where
from tests.safeguards.inputs import write_all
from tests.safeguards.recipes import (
    CLASSIFIER,
    DETECTOR,
    FAST_RCNN,
    NETWORK,
    PYRAMID,
    RPN,
    Recipe,
    length,
)

ROOT = Path(__file__).parent.parent.parent
STORED = Path(__file__).parent / "programs.json"


@dataclasses.dataclass(frozen=True)
class Case:
    """A program.

    Attributes:
      recipe: of the run.
      devices: 1 or 8.
      workdirs: of runs to evaluate; none: the program is the training step.
      fields: of the config, changed once more.
      slow: whether it takes long to trace.
    """

    recipe: Recipe
    devices: int
    workdirs: tuple[str, ...] = ()
    fields: dict[str, object] = dataclasses.field(default_factory=dict)
    slow: bool = False


_SMALL_CIFAR = {
    "model.stem_width": 4,
    "model.template_width": 4,
    "data.name": "digits",
    "data.data_dir": "tfds",
}
_SMALL_IMAGES = {
    **NETWORK,
    "data.name": "folder",
    "data.manual_dir": "folders",
    "data.data_dir": "tfds",
    "data.image_size": 32,
    "data.num_workers": 0,
}
_FOLDER = Recipe("folder", "", 2, _SMALL_IMAGES | length(2, 16) | {"bn_group_size": 4})
_MODERN = dataclasses.replace(
    _FOLDER,
    config="imagenet_resnext50_32x4d_modern",
    fields=_FOLDER.fields | {"schedule.warmup_epochs": 0.5},
)
_CIFAR = Recipe("cifar", "", 2, _SMALL_CIFAR | length(2, 32) | {"model.name": "resnext11_2x1d"})
_DIGITS = dataclasses.replace(_CIFAR, config="digits_resnext29")

CASES = {
    "digits, form a, 1 device": Case(_DIGITS, 1, fields={"model.form": "a"}),
    "digits, form b, 8 devices, groups across devices": Case(
        _DIGITS, 8, fields={"model.form": "b", "bn_group_size": 16}
    ),
    "digits, form c, 1 device, EMA": Case(CLASSIFIER, 1, slow=True),
    "cifar, 8 devices": Case(_CIFAR, 8, slow=True),
    "cifar, pre-activation, 1 device, bfloat16": Case(
        _CIFAR, 1, fields={"model.preactivation": True, "model.dtype": "bfloat16"}
    ),
    "imagenet, 8 devices, 2 micro-batches, bfloat16": Case(
        _FOLDER, 8, fields={"accumulate_steps": 2, "model.dtype": "bfloat16", "batch_size": 32}
    ),
    "imagenet, 1 device, blocks as a loop and computed again": Case(
        _FOLDER,
        1,
        fields={"model.name": "resnext26_2x1d", "model.scan_blocks": True, "model.remat": True},
        slow=True,
    ),
    "imagenet, 8 devices, fine-tuned": Case(
        _FOLDER,
        8,
        fields={
            "init_from": "classifier",
            "finetune.backbone_rate": 0.1,
            "finetune.frozen_stages": 1,
        },
        slow=True,
    ),
    "modern recipe, 8 devices": Case(_MODERN, 8, fields={"optimizer.clip_norm": 1.0}),
    "RPN, 1 device": Case(RPN, 1),
    "Fast R-CNN, 1 device, 2 micro-batches": Case(
        FAST_RCNN, 1, fields={"accumulate_steps": 2}, slow=True
    ),
    "Faster R-CNN, 1 device, aligned": Case(DETECTOR, 1, fields={"roi.kind": "align"}),
    "pyramid, 8 devices, EMA": Case(
        PYRAMID, 8, fields={"batch_size": 8, "ema.decay": 0.9}, slow=True
    ),
    "evaluation, 8 devices": Case(CLASSIFIER, 8, ("classifier",)),
    "evaluation, 1 device, ten crops": Case(
        # Of several runs, data and protocol may be others than in training.
        CLASSIFIER,
        1,
        2 * ("classifier",),
        {"data.eval_crops": "ten", "data.crop": "random_sized"},
    ),
    "evaluation of a detector, 1 device": Case(DETECTOR, 1, ("detector",)),
}


class _LoweredError(Exception):
    """Carries the text of the program that was asked for."""


class _Stopping:
    """A jitted function that is lowered, and not run, when it is called with arrays."""

    def __init__(self, function: Any):
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs))
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            with mock.patch.object(jax, "jit", _JIT), _no_programs_kept():
                text = self._function.lower(*args, **kwargs).as_text()
            if "convolution" in text:
                raise _LoweredError(text)
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


_JIT = jax.jit


@contextlib.contextmanager
def _no_programs_kept() -> Iterator[None]:
    """As train.py has it on CPUs, where programs then call oneDNN."""
    name = "jax_enable_compilation_cache"
    usual = jax.config.values[name]
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, usual)


def _stopping_jit(*args: Any, **kwargs: Any) -> Any:
    return _Stopping(_JIT(*args, **kwargs))


def lowered(run: Callable[[], object], devices: int) -> str:
    """Return the first program with a convolution that a function would compile and run."""
    some = jax.devices()[:devices]
    with (
        mock.patch.object(jax, "jit", _stopping_jit),
        mock.patch.object(jax, "devices", return_value=some),
        mock.patch.object(jax, "local_devices", return_value=some),
        mock.patch.object(jax, "device_count", return_value=devices),
        mock.patch.object(jax, "local_device_count", return_value=devices),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            run()
        except _LoweredError as program:
            return str(program)
    raise AssertionError("no program with a convolution was run")


def anonymous(text: str) -> str:
    """Take the names out of a program: symbols are numbered as they appear."""
    names: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return names.setdefault(match[0], f"@{len(names)}")

    lines = []
    for line in text.splitlines():
        line = re.sub(r"\s*loc\(.*?\)$", "", line)
        line = re.sub(r'jax\.(result_info|arg_info) = "(?:[^"\\]|\\.)*"', "", line)
        # Which library function is called is no name of ours.
        called = re.search(r"stablehlo\.custom_call @[\w.$]+", line)
        if called:
            place = called.end()
            line = line[:place] + re.sub(r"@[\w.$]+", numbered, line[place:])
        else:
            line = re.sub(r"@[\w.$]+", numbered, line)
        lines.append(line)
    return "\n".join(lines)


def read_config(recipe: Recipe, fields: dict[str, object]) -> ConfigDict:
    """Read a recipe as train.py does."""
    changed = dataclasses.replace(recipe, fields=recipe.fields | fields)
    values, arguments = flags.FlagValues(), ["train.py", *changed.flags(ROOT)]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    config: ConfigDict = holder.value
    return config


@contextlib.contextmanager
def inputs() -> Iterator[None]:
    """Make what the recipes read, in a folder that is the working directory meanwhile."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_all(Path())
        yield


def text_of(case: Case) -> str:
    """Return a program, without names; to be called in the folder of `inputs`."""
    config = read_config(case.recipe, case.fields)

    def run() -> object:
        if case.workdirs:
            return where.evaluate(config, case.workdirs)
        with tempfile.TemporaryDirectory() as folder:
            return where.train(config, folder)

    return anonymous(lowered(run, case.devices))


def versions() -> dict[str, str]:
    """Return what the programs belong to."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "jax": jax.__version__,
        "machine": f"{sys.platform} {platform.machine()}",
    }


def digest(text: str) -> str:
    """Return a program's hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Print what is not as stored, or store what is."""
    stored = json.loads(STORED.read_text()) if STORED.exists() else {"programs": {}}
    found = {}
    with inputs():
        for name, case in CASES.items():
            found[name] = digest(text_of(case))
            same = stored["programs"].get(name) == found[name]
            print(f"{'same' if same else 'OTHER'}  {name}", flush=True)
    if "--write" in sys.argv[1:]:
        STORED.write_text(json.dumps(versions() | {"programs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
