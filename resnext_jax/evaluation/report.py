"""What eval.py does: score, print, and write."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from resnext_jax.errors import UserError
from resnext_jax.evaluation.confusion import (
    confusion_csv,
    confusion_npy,
    count,
    per_class_csv,
    summary,
)
from resnext_jax.evaluation.eval_file import EVAL_FILE, as_json, merge_into, read_evaluations
from resnext_jax.evaluation.outputs import check_writable, write_output
from resnext_jax.evaluation.run import EvaluationReport, evaluate_all
from resnext_jax.evaluation.table import render_report, row_names
from resnext_jax.files import user_path
from resnext_jax.parallel.distributed import is_first_host
from resnext_jax.runs.images import NO_FLAGS, ImageFlags
from resnext_jax.runs.workdir import existing_workdir

_CONFUSION_FILES = (".csv", ".npy")


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Files to write.

    Attributes:
      evaluations: see `eval_file`; None for none.
      per_class: a CSV of each class's errors; None for none.
      confusion: a CSV or .npy of the confusion matrix; None for none.
    """

    evaluations: Path | None = None
    per_class: Path | None = None
    confusion: Path | None = None

    def check(self) -> None:
        """Raise UserError if one of them could not be written in the end."""
        if self.confusion is not None and self.confusion.suffix not in _CONFUSION_FILES:
            raise UserError(
                f"--confusion={self.confusion} must end in {' or '.join(_CONFUSION_FILES)}."
            )
        for path, flag in (
            (self.evaluations, "--output"),
            (self.per_class, "--per_class"),
            (self.confusion, "--confusion"),
        ):
            if path is not None:
                check_writable(path, flag)
        if self.evaluations is not None:
            read_evaluations(self.evaluations)


def evaluate_and_write(
    config: ConfigDict,
    workdirs: Sequence[str],
    files: Sequence[str],
    *,
    checkpoint: str = "latest",
    ema: bool = False,
    output: str | None = None,
    per_class: str | None = None,
    confusion: str | None = None,
    any_class_names: bool = False,
    images: ImageFlags = NO_FLAGS,
) -> None:
    """Score, print a table, and write what is asked for; the first host prints and writes.

    Args:
      config: see `run.evaluate_all`, likewise `workdirs`, `files`, `checkpoint` and `ema`.
      workdirs: of runs.
      files: of weights.
      checkpoint: of the workdirs.
      ema: of the files.
      output: file of evaluations to add to; None: `eval.json` of a workdir that is scored alone,
        otherwise none.
      per_class: see `Outputs`.
      confusion: likewise.
      any_class_names: see `run.evaluate_all`.
      images: likewise.

    Raises:
      UserError: config, data, workdirs, files or outputs are unusable.
    """
    evaluations = user_path(output, "--output") if output is not None else None
    if evaluations is None and len(workdirs) == 1 and not files:
        evaluations = existing_workdir(workdirs[0]) / EVAL_FILE
    outputs = Outputs(
        evaluations,
        user_path(per_class, "--per_class") if per_class is not None else None,
        user_path(confusion, "--confusion") if confusion is not None else None,
    )
    if is_first_host():
        outputs.check()
    report = evaluate_all(
        config,
        workdirs,
        files,
        checkpoint=checkpoint,
        ema=ema,
        any_class_names=any_class_names,
        images=images,
    )
    if is_first_host():
        print("\n".join(render_report(report)), flush=True)
        _write(report, outputs)


def _write(report: EvaluationReport, outputs: Outputs) -> None:
    written = []
    if outputs.evaluations is not None:
        merge_into(outputs.evaluations, as_json(report))
        written.append(outputs.evaluations)
    records = report.rows[-1].result.records
    if records is not None and (outputs.per_class or outputs.confusion):
        counts = count(records, report.source.class_names)
        print(f"by class, of {row_names(report)[-1].partition(':')[0]}, the worst first:")
        print("\n".join(f"  {line}" for line in summary(counts) or ["no errors"]))
        if outputs.per_class is not None:
            write_output(outputs.per_class, per_class_csv(counts), "--per_class")
            written.append(outputs.per_class)
        path = outputs.confusion
        if path is not None:
            as_file = confusion_npy if path.suffix == ".npy" else confusion_csv
            write_output(path, as_file(counts), "--confusion")
            written.append(path)
    for path in written:
        print(f"written: {path}")
