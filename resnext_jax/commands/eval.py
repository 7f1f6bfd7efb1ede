"""Evaluate a trained ResNeXt, or a detector: python eval.py --config=CONFIG --workdir=WORKDIR.

Evaluates the newest checkpoint of the workdir (or --checkpoint=best, or a step), and
the averaged weights if the run has them; or PyTorch weights (--weights=FILE, or a name).
Every test image counts once. Several workdirs or files, separated by commas or with
the flag repeated, are also evaluated as an ensemble. docs/evaluation.md has examples,
docs/detection.md covers detectors, docs/distributed.md several hosts. Exit status: 0
on success, 2 for invalid config, data, workdir or weights, 75 when another host did not
connect or was lost.
"""

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from resnext_jax.config import cli
from resnext_jax.errors import UserError, reports_user_errors
from resnext_jax.files import user_path

if TYPE_CHECKING:
    from resnext_jax.runs.images import ImageFlags


# Flags of `runs.images.ImageFlags`.
_IMAGES = ("image_size", "short_side", "interpolation", "mean", "std")


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The run's recipe; with --weights, the recipe that defines data and test protocol.",
    )
    flags.DEFINE_multi_string("workdir", [], "Workdirs of runs; default: train.py's, runs/NAME.")
    flags.DEFINE_multi_string(
        "weights",
        [],
        "PyTorch weight files, .safetensors or .pth, or names such as timm/resnet50.a1_in1k.",
    )
    flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
    flags.DEFINE_bool("ema", False, "Use the averaged weights saved in a weight file.")
    flags.DEFINE_string(
        "output", None, "JSON file to add the results to; default: eval.json of a single workdir."
    )
    flags.DEFINE_string("per_class", None, "CSV file for per-class errors.")
    flags.DEFINE_string("confusion", None, "CSV or .npy file for the confusion matrix.")
    flags.DEFINE_bool(
        "any_class_names",
        False,
        "Match classes by label number, even if the weights' class names differ from the data's.",
    )
    flags.DEFINE_integer("image_size", None, "Side of the test images, in pixels.", lower_bound=1)
    flags.DEFINE_integer(
        "short_side", None, "Short side before the crop, in pixels.", lower_bound=1
    )
    flags.DEFINE_string("interpolation", None, "Interpolation of test images.")
    for name in ("mean", "std"):
        flags.DEFINE_string(name, None, "Per channel, of pixels from 0 to 1, such as 0.5,0.5,0.5.")
    cli.define_host_flags()


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Evaluate."""
    del argv
    values = flags.FLAGS
    # Imported here, so that a wrong flag is reported without waiting for these imports.
    from resnext_jax.ops import cpu
    from resnext_jax.parallel.distributed import connected

    cpu.keep_memory()

    workdirs, files = _listed(values.workdir, "--workdir"), _listed(values.weights, "--weights")
    with connected(**cli.host_flags()):
        cli.keep_compiled_programs()
        evaluate: Callable[..., None]
        if values.config.task == "classification":
            from resnext_jax.evaluation.report import evaluate_and_write

            evaluate = functools.partial(evaluate_and_write, images=_image_flags())
        else:
            from resnext_jax.detection.testing import evaluate_detector as evaluate

            if given := [name for name in _IMAGES if values[name].value is not None]:
                raise UserError(
                    f"--{given[0]} is for classifiers; set the detector's config fields."
                )
        evaluate(
            values.config,
            workdirs if workdirs or files else [cli.default_workdir()],
            files,
            checkpoint=values.checkpoint,
            ema=values.ema,
            output=values.output,
            per_class=values.per_class,
            confusion=values.confusion,
            any_class_names=values.any_class_names,
        )


def _image_flags() -> "ImageFlags":
    from resnext_jax.runs.images import ImageFlags, three_numbers

    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in _IMAGES}
    for name in ("mean", "std"):
        try:
            given[name] = given[name] and three_numbers(given[name])
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--{name}: {error}.") from error
    return ImageFlags(**given)


def _listed(values: Sequence[str], flag: str) -> list[str]:
    """Split values at commas, except existing paths with commas; check that each is a path."""
    whole = (os.path.exists(os.path.expanduser(value)) for value in values)
    parts = [
        [value] if is_whole else value.split(",")
        for value, is_whole in zip(values, whole, strict=True)
    ]
    return [str(user_path(part, flag)) for some in parts for part in some]


def run() -> None:
    """Run the command."""
    cli.run(main, _define_flags)
