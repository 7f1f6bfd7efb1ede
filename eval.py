"""Evaluate a trained ResNeXt: python eval.py --config=CONFIG --workdir=WORKDIR.

Scores the newest checkpoint of the workdir (or --checkpoint=best, or a step) on
every test image once, and the averaged weights too where the run has some. Several
hosts: docs/distributed.md. Exit status: 0 when scored, 2 for a mistake in
config, data or workdir, 75 when another host did not come or was lost.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import config_flags

from resnext_jax import cli
from resnext_jax.errors import reports_user_errors

if TYPE_CHECKING:
    from resnext_jax.evaluation.evaluator import EvalResult

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe the run was trained with.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default train.py's, runs/NAME."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
cli.define_host_flags()

# What is said of each way to test (config.data.eval_crops).
_PROTOCOLS = {
    "centre": "",
    "ten": " in ten crops each, logits averaged",
    "dense": " at five scales each, logits averaged over positions and scales",
}


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Evaluate."""
    del argv
    cli.keep_compiled_programs()
    # Imported late, so that a wrong flag is told at once.
    from resnext_jax.training.distributed import connected, is_first_host

    with connected(**cli.host_flags()):
        from resnext_jax.evaluation.run import evaluate_workdir

        workdir = _WORKDIR.value or cli.default_workdir()
        step, results = evaluate_workdir(_CONFIG.value, workdir, _CHECKPOINT.value)
    if is_first_host():
        for weights, result in results.items():
            _print(f"step {step}" + (", averaged weights" if weights == "ema" else ""), result)


def _print(what: str, result: "EvalResult") -> None:
    protocol = _PROTOCOLS[_CONFIG.value.data.eval_crops]
    print(
        f"{what}: {result.images} test images{protocol}, loss {result.loss:.4f}, "
        f"top-1 error {result.top1_error:.2f} %, top-5 error {result.top5_error:.2f} %"
    )
    for classes, (top1_error, top5_error) in result.among_first.items():
        print(
            f"among the first {classes} classes: "
            f"top-1 error {top1_error:.2f} %, top-5 error {top5_error:.2f} %"
        )
    if result.skipped:
        print(f"left out: {result.skipped} images that cannot be decoded")


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
