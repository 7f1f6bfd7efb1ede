"""Train a ResNeXt: python train.py --config=configs/digits_resnext29.py --workdir=runs/digits.

Any field of the config can be changed: --config.batch_size=64. Exit status: 0
when trained, 2 for a mistake in config, data or workdir, 130 (SIGINT) or 143
(SIGTERM) when stopped by a signal, with the state saved.
"""

import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from resnext_jax import cli
from resnext_jax.errors import reports_user_errors

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, a file in configs/.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for checkpoints, metrics and plots; resumed if it has a checkpoint. By default "
    "runs/NAME, by the name of the config.",
)


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Train."""
    del argv
    workdir = _WORKDIR.value
    if not workdir:
        workdir = cli.default_workdir()
        print(f"workdir: {workdir}", flush=True)
    cli.keep_compiled_programs()
    # Imported late, so that a wrong flag is told at once.
    from resnext_jax.training.loop import InterruptedRunError, train

    try:
        train(_CONFIG.value, workdir)
    except InterruptedRunError as stop:
        print(f"{stop}; the same command resumes", file=sys.stderr)
        sys.exit(stop.exit_status)


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
