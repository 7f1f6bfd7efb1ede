"""Sweeps by name: the runs of each of the paper's tables and figures."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import resnext_jax
from resnext_jax.reports.errors import ReportError

# Config files, relative to the repository root.
_IMAGENET = "configs/imagenet.py"
_IMAGENET5K = "configs/imagenet5k.py"
_CIFAR = "configs/cifar.py"
_DIGITS = "configs/digits_resnext29.py"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run of a sweep, without its seed.

    Attributes:
      name: name of its folder; a setting has the same name in every sweep.
      config: config file, with its argument after a colon.
      overrides: additional flags for train.py.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A set of runs.

    Attributes:
      summary: description of the sweep.
      settings: the settings, in the order they are run.
      seeds: default number of seeds per setting.
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

# Figure 7's experiment on the digits: starting from 1 x 4d (with the demo's stem_width of 16 and
# template_width of 64), one series increases cardinality, one width. The widths give networks with
# the numbers of parameters closest to those of 2, 4 and 8 x 4d: within 2.5 %.
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
    # The widths are our choice: the multiples of 4 that give numbers of parameters closest to those
    # of 2, 4, 8 and 16 x 64d, within 2.2 %.
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
        "Figure 7 on the digits: cardinality (C x 4d) and width (1 x d), minutes on a CPU",
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
    """Return the shell commands of a sweep: every setting with seed 0, then with seed 1, ...

    train.py skips finished runs and resumes others.

    Args:
      sweep: a value of `SWEEPS`.
      folder: parent folder; workdirs are FOLDER/SETTING/seedN.
      seeds: number of seeds.
      extra: additional flags for every train.py.

    Raises:
      ReportError: the package is installed without train.py.
    """
    root = Path(resnext_jax.__file__).resolve().parents[1]
    if not (root / "train.py").exists():
        raise ReportError(
            f"{root / 'train.py'} does not exist; run sweeps from a clone of the repository."
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
    """Return the path of this Python, relative to the current folder if it is inside."""
    # Not resolved: in a virtual environment it is a symbolic link, which must be kept.
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
