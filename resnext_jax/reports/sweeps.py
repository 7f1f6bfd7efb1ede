"""Sweeps by name: the runs that a table or figure of the paper needs, as data."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import resnext_jax
from resnext_jax.reports.errors import ReportError

# Files of the repository.
_IMAGENET = "configs/imagenet.py"
_IMAGENET5K = "configs/imagenet5k.py"
_CIFAR = "configs/cifar.py"
_DIGITS = "configs/digits_resnext29.py"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run of a sweep, but for its seed.

    Attributes:
      name: of its folder; the same setting has the same name in every sweep.
      config: config file, with its choice after a colon.
      overrides: further flags for train.py.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs that belong together.

    Attributes:
      summary: what for.
      settings: in the order they are run.
      seeds: how many seeds of each, unless told otherwise.
    """

    summary: str
    settings: tuple[Setting, ...]
    seeds: int = 1


def _imagenet(*models: str, option: str | None = None) -> tuple[Setting, ...]:
    suffix, choice = (f"_{option}", f",{option}") if option else ("", "")
    return tuple(
        Setting(f"imagenet2012_{model}{suffix}", f"{_IMAGENET}:{model}{choice}") for model in models
    )


def _cifar(data: str, *models: str) -> tuple[Setting, ...]:
    return tuple(Setting(f"{data}_{model}", f"{_CIFAR}:{data},{model}") for model in models)


_TABLE_7_MODELS = ("resnext29_8x64d", "resnext29_16x64d", "wide_resnet28_10")

# Figure 7's idea on the digits: two lines from a template of 1 x 4d (under the demo's stem of 16
# and template of 64), one of more cardinality, one of more width. The widths are those whose
# networks come nearest in parameters to 2, 4 and 8 x 4d: within 2.5 %.
_DIGITS_MODELS = (
    *(f"resnext29_{cardinality}x4d" for cardinality in (1, 2, 4, 8)),
    *(f"resnet29_1x{width}d" for width in (7, 11, 18)),
)

SWEEPS = {
    "table3": Sweep(
        "cardinality against width on ImageNet-1K, 50 and 101 layers",
        _imagenet(
            *("resnet50", "resnext50_2x40d", "resnext50_4x24d", "resnext50_8x14d"),
            *("resnext50_32x4d", "resnet101", "resnext101_2x40d", "resnext101_4x24d"),
            *("resnext101_8x14d", "resnext101_32x4d"),
        ),
    ),
    "table4": Sweep(
        "twice the complexity on ImageNet-1K (also Table 5 at 224)",
        _imagenet(
            *("resnet101", "resnext101_32x4d", "resnet200", "resnet101_1x100d"),
            *("resnext101_2x64d", "resnext101_64x4d"),
        ),
    ),
    "residual": Sweep(
        "with and without shortcuts on ImageNet-1K (Sec. 5.1)",
        _imagenet("resnet50", "resnext50_32x4d")
        + _imagenet("resnet50", "resnext50_32x4d", option="no_residual"),
    ),
    "table6": Sweep(
        "ImageNet-5K",
        tuple(
            Setting(f"imagenet5k_{model}", f"{_IMAGENET5K}:{model}")
            for model in ("resnet50", "resnext50_32x4d", "resnet101", "resnext101_32x4d")
        ),
    ),
    "table7": Sweep(
        "CIFAR-10 and CIFAR-100",
        _cifar("cifar10", *_TABLE_7_MODELS) + _cifar("cifar100", *_TABLE_7_MODELS),
        seeds=10,
    ),
    # The widths are ours: multiples of 4 whose networks come nearest in parameters to 2, 4, 8 and
    # 16 x 64d, within 2.2 %.
    "figure7": Sweep(
        "cardinality (C x 64d) and width (1 x d) against error on CIFAR-10",
        _cifar(
            "cifar10",
            *(f"resnext29_{cardinality}x64d" for cardinality in (1, 2, 4, 8, 16)),
            *(f"resnet29_1x{width}d" for width in (100, 148, 220, 320)),
        ),
        seeds=10,
    ),
    "digits": Sweep(
        "Figure 7's idea on the digits: cardinality (C x 4d) and width (1 x d), minutes on a CPU",
        tuple(
            Setting(
                f"digits_{model}",
                _DIGITS,
                (f"--config.model.name={model}", "--config.num_epochs=6.0"),
            )
            for model in _DIGITS_MODELS
        ),
        seeds=3,
    ),
}


def commands(sweep: Sweep, folder: Path, *, seeds: int, extra: Sequence[str] = ()) -> list[str]:
    """Return the commands that train a sweep: every setting with seed 0, then with seed 1, ...

    A shell can run them as they are. Runs that are finished are skipped by train.py, others resume.

    Args:
      sweep: of `SWEEPS`.
      folder: the workdir of a run is FOLDER/SETTING/seedN.
      seeds: how many.
      extra: further flags for every train.py.

    Raises:
      ReportError: the package is installed without train.py.
    """
    root = Path(resnext_jax.__file__).resolve().parents[1]
    if not (root / "train.py").exists():
        raise ReportError(
            f"{root / 'train.py'} does not exist: sweeps are run from a clone of the repository."
        )
    prefix = "" if Path.cwd() == root else f"{root}/"
    return [
        shlex.join(
            [
                _python(),
                f"{prefix}train.py",
                f"--config={prefix}{setting.config}",
                *setting.overrides,
                f"--config.seed={seed}",
                f"--workdir={folder / setting.name / f'seed{seed}'}",
                *extra,
            ]
        )
        for seed in range(seeds)
        for setting in sweep.settings
    ]


def _python() -> str:
    """Return this Python, as short as it works in this folder."""
    # Not resolved: in a virtual environment it is a link, and has to stay one.
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
