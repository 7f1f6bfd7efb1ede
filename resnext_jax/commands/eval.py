"""Evaluate a trained ResNeXt, or a detector: python eval.py --config=CONFIG --workdir=WORKDIR.

Scores the newest checkpoint of the workdir (or --checkpoint=best, or a step) on
every test image once, and the averaged weights too where the run has some; or
PyTorch's weights (--weights=FILE). Several, separated by commas or with the flag
repeated, are also scored as an ensemble. docs/evaluation.md has examples,
docs/detection.md detectors, docs/distributed.md several hosts. Exit status: 0 when
scored, 2 for a mistake in config, data, workdir or weights, 75 when another host did
not come or was lost.
"""

import os
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from resnext_jax.config import cli
from resnext_jax.errors import reports_user_errors
from resnext_jax.files import user_path


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "The recipe the run was trained with, or of the data and the protocol."
    )
    flags.DEFINE_multi_string("workdir", [], "Folders of runs; by default train.py's, runs/NAME.")
    flags.DEFINE_multi_string("weights", [], "Files of PyTorch's weights, .safetensors or .pth.")
    flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
    flags.DEFINE_bool("ema", False, "Of weight files, the average saved beside the weights.")
    flags.DEFINE_string(
        "output", None, "JSON file to add the results to; by default a single workdir's eval.json."
    )
    flags.DEFINE_string("per_class", None, "CSV file for the errors of each class.")
    flags.DEFINE_string("confusion", None, "CSV or .npy file for the confusion matrix.")
    flags.DEFINE_bool(
        "any_class_names",
        False,
        "Compare labels also where the weights' classes have other names than the data's.",
    )
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
        if values.config.task == "classification":
            from resnext_jax.evaluation.report import evaluate_and_write as evaluate
        else:
            from resnext_jax.detection.testing import evaluate
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


def _listed(values: Sequence[str], flag: str) -> list[str]:
    """Cut at commas, but not what is a path with commas; every part is checked to be a path."""
    whole = (os.path.exists(os.path.expanduser(value)) for value in values)
    parts = [
        [value] if is_whole else value.split(",")
        for value, is_whole in zip(values, whole, strict=True)
    ]
    return [str(user_path(part, flag)) for some in parts for part in some]


def run() -> None:
    """Run the command."""
    cli.run(main, _define_flags)
