"""Evaluate a trained ResNeXt, or a detector: python eval.py --config=CONFIG --workdir=WORKDIR.

Evaluates the newest checkpoint of the workdir (or --checkpoint=best, or a step), and
the averaged weights if the run has them; or a PyTorch weight file (--weights=FILE).
Every test image counts once. Several workdirs or files, separated by commas or with
the flag repeated, are also evaluated as an ensemble. docs/evaluation.md has examples,
docs/detection.md covers detectors, docs/distributed.md several hosts. Exit status: 0
on success, 2 for invalid config, data, workdir or weights, 75 when another host did not
connect or was lost.
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
        "config",
        None,
        "The run's recipe; with --weights, the recipe that defines data and test protocol.",
    )
    flags.DEFINE_multi_string("workdir", [], "Workdirs of runs; default: train.py's, runs/NAME.")
    flags.DEFINE_multi_string("weights", [], "PyTorch weight files, .safetensors or .pth.")
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
            from resnext_jax.detection.testing import evaluate_detector as evaluate
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
