"""Train a ResNeXt: python train.py --config=configs/digits_resnext29.py --workdir=runs/digits.

Config fields can be changed on the command line: --config.batch_size=64. Several
hosts: docs/distributed.md. Exit status: 0 on success, 2 for invalid config, data or
workdir, 75 when another host did not connect or was lost, 128 + n when stopped by
signal n with the state saved: 130 SIGINT (Ctrl-C), 143 SIGTERM, 129 SIGHUP, 138
SIGUSR1, 140 SIGUSR2.
"""

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from resnext_jax.config import cli
from resnext_jax.errors import drop_lost_output, reports_user_errors


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Recipe, a file in configs/.")
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder for checkpoints, metrics and plots; a run with a checkpoint there is resumed. "
        "Default: runs/NAME, with the config's name.",
    )
    cli.define_host_flags()


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Train."""
    del argv
    # Imported here, so that a wrong flag is reported without waiting for these imports.
    from resnext_jax.ops import cpu
    from resnext_jax.parallel.distributed import connected, is_first_host

    cpu.keep_memory()

    stopped = None
    with connected(**cli.host_flags()):
        cli.keep_compiled_programs()
        from resnext_jax.training.loop import InterruptedRunError

        config = flags.FLAGS.config
        if config.task == "classification":
            from resnext_jax.training.classification import train
        else:
            from resnext_jax.detection.training import train

        workdir = flags.FLAGS.workdir
        if workdir is None:
            workdir = cli.default_workdir()
            if is_first_host():
                print(f"workdir: {workdir}", flush=True)
        try:
            train(config, workdir, process_ends=True)
        except InterruptedRunError as stop:
            # All hosts stop at the same step, so the connection is closed normally.
            stopped = stop
    if stopped:
        drop_lost_output()  # SIGHUP means that the terminal is gone
        print(f"{stopped}; the same command resumes", file=sys.stderr)
        sys.exit(stopped.exit_status)


def run() -> None:
    """Run the command."""
    cli.run(main, _define_flags)
