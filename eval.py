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
import pkgutil
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from resnext_jax.config import cli
from resnext_jax.config.fields import task_entry
from resnext_jax.errors import reports_user_errors
from resnext_jax.files import user_path

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe the run was trained with, or of the data and the protocol."
)
_WORKDIR = flags.DEFINE_multi_string(
    "workdir", [], "Folders of runs; by default train.py's, runs/NAME."
)
_WEIGHTS = flags.DEFINE_multi_string(
    "weights", [], "Files of PyTorch's weights, .safetensors or .pth."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
_EMA = flags.DEFINE_bool("ema", False, "Of weight files, the average saved beside the weights.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file to add the results to; by default a single workdir's eval.json."
)
_PER_CLASS = flags.DEFINE_string("per_class", None, "CSV file for the errors of each class.")
_CONFUSION = flags.DEFINE_string("confusion", None, "CSV or .npy file for the confusion matrix.")
cli.define_host_flags()


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Evaluate."""
    del argv
    # Imported late, so that a wrong flag is told at once.
    from resnext_jax.ops import cpu
    from resnext_jax.parallel.distributed import connected

    cpu.keep_memory()

    workdirs, files = _listed(_WORKDIR.value, "--workdir"), _listed(_WEIGHTS.value, "--weights")
    with connected(**cli.host_flags()):
        cli.keep_compiled_programs()
        evaluate = pkgutil.resolve_name(task_entry(_CONFIG.value).evaluation)
        evaluate(
            _CONFIG.value,
            workdirs if workdirs or files else [cli.default_workdir()],
            files,
            checkpoint=_CHECKPOINT.value,
            ema=_EMA.value,
            output=_OUTPUT.value,
            per_class=_PER_CLASS.value,
            confusion=_CONFUSION.value,
        )


def _listed(values: Sequence[str], flag: str) -> list[str]:
    """Cut at commas, but not what is a path with commas; every part is checked to be a path."""
    whole = (os.path.exists(os.path.expanduser(value)) for value in values)
    parts = [
        [value] if is_whole else value.split(",")
        for value, is_whole in zip(values, whole, strict=True)
    ]
    return [str(user_path(part, flag)) for some in parts for part in some]


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
