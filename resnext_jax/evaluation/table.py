"""An evaluation as a table on the console."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # readers of eval.json should not import the evaluation
    from resnext_jax.evaluation.run import EvaluationReport


def row_names(report: "EvaluationReport") -> list[str]:
    """Name each row of a report, such as "step 539, averaged"; unlike the others.

    Where all rows are of one workdir, it is not named.
    """
    members = [row.members[0] for row in report.rows if len(row.members) == 1]
    alone = len({member.origin for member in members}) == 1 and members[0].step is not None
    names = [
        member.short_name if alone else f"{member.origin}, {member.short_name}"
        for member in members
    ]
    names += [
        f"ensemble of {len(row.members)}: "
        + " + ".join(f"{member.origin}, {member.short_name}" for member in row.members)
        for row in report.rows
        if len(row.members) > 1
    ]
    return names


def render_report(report: "EvaluationReport") -> list[str]:
    """Return the lines of a report: the data, a table, and what is to be said of it."""
    source, protocol = report.source, report.protocol
    first = sorted({k for row in report.rows for k in row.result.among_first})
    head = ["weights", "test", "images", "loss", "top-1 error", "top-5 error"]
    head += [f"{k}-way top-{top}" for k in first for top in (1, 5)]
    table = [head]
    notes = []
    for name, row in zip(row_names(report), report.rows, strict=True):
        shown, _, of = name.partition(": ")
        if len(row.members) > 1:
            notes.append(f"{shown}: the mean of the probabilities of {of}")
        else:
            shown = name
        result = row.result
        errors = [result.top1_error, result.top5_error]
        errors += [error for k in first for error in result.among_first[k]]
        table.append(
            [shown, str(protocol), str(result.images), f"{result.loss:.4f}"]
            + [f"{error:.2f} %" for error in errors]
        )
    skipped = report.rows[0].result.skipped
    if skipped:
        notes.append(f"left out: {skipped} images that cannot be decoded")
    version = f" {source.version}" if source.version else ""
    return [
        f"{source.name}{version}, split {source.split}, {source.num_classes} classes; "
        f"{protocol.resizing}",
        *align(table),
        *notes,
    ]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Set rows in columns: the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
