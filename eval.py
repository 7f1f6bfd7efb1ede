"""Evaluate a trained ResNeXt: python eval.py --config=CONFIG --workdir=WORKDIR.

Scores the newest checkpoint of the workdir on every test image once. Exit
status: 0 when scored, 2 for a mistake in config, data or workdir.
"""

from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from resnext_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe the run was trained with.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


@cli.reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Evaluate."""
    del argv
    if not _WORKDIR.value:
        cli.fail("--workdir is missing; give the folder that train.py wrote.")
    cli.keep_compiled_programs()
    # Imported late, so that a wrong flag is told at once.
    from resnext_jax.evaluation.run import evaluate_workdir

    step, result = evaluate_workdir(_CONFIG.value, _WORKDIR.value)
    print(
        f"step {step}: {result.images} test images, loss {result.loss:.4f}, "
        f"top-1 error {result.top1_error:.2f} %, top-5 error {result.top5_error:.2f} %"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
