"""The paper's Tables 1 to 8 in Markdown, with our results next to the published ones."""

from collections.abc import Callable, Iterable, Sequence

from resnext_jax.reports import paper
from resnext_jax.reports.capacity_tables import (
    beside,
    cost,
    cost_of,
    markdown_head,
    markdown_row,
    table_1,
    table_2,
    without_norms,
)
from resnext_jax.reports.matching import departures, scored_crop
from resnext_jax.reports.paper import Cell, ErrorTable, TableRow
from resnext_jax.reports.runs import Group, Run, Score, Tests, labels

_CAPACITY_TABLES: dict[str, Callable[[], list[str]]] = {"1": table_1, "2": table_2}
_ERROR_TABLES = {table.key: table for table in paper.ERROR_TABLES}

TABLES = (*_CAPACITY_TABLES, *_ERROR_TABLES)

# Selected like a table: only the list of runs at the end.
RUNS = "runs"

_INTRODUCTION = """\
# The paper's tables

Results of Xie et al. 2017 ("paper") and of this project ("ours"). Our parameters and FLOPs
(multiply-adds) are counted from the networks: parameters of convolutions and classifier, as in the
paper, and in parentheses with batch norm's scale and shift.

Our errors are those of the final weights, not of the best checkpoint: the mean over seeds, ± the
sample standard deviation for several seeds; "ema" marks averaged weights. Numbers in brackets refer
to the runs below the table. A run is listed where its network, shortcuts, data set and test images
match the paper's; results on other test images than those used during training are read from the
`eval.json` that eval.py writes. A star marks a run with a recipe other than the paper's; the
differences are listed below the table.
"""


def render_tables(groups: Sequence[Group], tables: Sequence[str] = TABLES) -> str:
    """Return the tables in Markdown.

    Args:
      groups: the runs, from `runs.group_runs`. Those that match no cell of these tables are listed
        at the end.
      tables: keys of `TABLES`; `RUNS` alone gives only the list of runs.

    Returns:
      Markdown.
    """
    lines = [] if list(tables) == [RUNS] else [*_INTRODUCTION.splitlines(), ""]
    notes = _Notes()
    for key in [key for key in TABLES if key in tables]:
        if key in _CAPACITY_TABLES:
            lines += _CAPACITY_TABLES[key]()
        else:
            lines += _error_table(_ERROR_TABLES[key], groups, notes)
    lines += _left_over(groups, notes)
    return "\n".join(lines).rstrip() + "\n"


class _Notes:
    """Footnotes: the numbers of the groups listed in tables, in order of appearance."""

    def __init__(self) -> None:
        self.numbers: dict[Group, int] = {}
        self._printed: set[Group] = set()

    def number(self, group: Group) -> int:
        return self.numbers.setdefault(group, len(self.numbers) + 1)

    def lines(self) -> list[str]:
        """Return the footnotes that have not been printed yet."""
        new = [group for group in self.numbers if group not in self._printed]
        self._printed.update(new)
        return [f"- [{self.numbers[group]}] {_described(group)}" for group in new]


def _described(group: Group) -> str:
    other = departures(group.example.config)
    recipe = f"other than the paper's ({'; '.join(other)})" if other else "the paper's"
    return f"{_seeds(group)}; recipe: {recipe}."


def _seeds(group: Group) -> str:
    seeds = ", ".join(str(run.seed) for run in group.runs)
    workdirs = ", ".join(f"`{run.workdir}`" for run in group.runs)
    return f"{'seeds' if len(group.runs) > 1 else 'seed'} {seeds}: {workdirs}"


def _error_table(table: ErrorTable, groups: Sequence[Group], notes: _Notes) -> list[str]:
    number = f"Table {table.key}. " if table.key.isdigit() else ""
    costs = any(row.model for row in table.rows)
    papers_macs = any(row.paper_macs for row in table.rows)
    papers_params = any(row.paper_params for row in table.rows)
    head = ["network", "setting"]
    if costs:
        flops, params = "FLOPs, billions", "parameters, millions"
        head += beside(flops) if papers_macs else (f"{flops}: ours",)
        head += beside(params) if papers_params else (f"{params}: ours",)
    for column in table.columns:
        head += beside(column)
    lines = [f"## {number}{table.title}", "", *markdown_head(head)]
    for row in table.rows:
        cells = [row.network, row.setting]
        if costs:
            macs, params = _cost(row)
            cells += [row.paper_macs, macs] if papers_macs else [macs]
            cells += [row.paper_params, params] if papers_params else [params]
        for cell in row.cells:
            cells += [cell.paper, _ours(cell, groups, notes)]
        lines.append(markdown_row(cells))
    remarks = [line for remark in table.remarks for line in ("", remark)]
    footnotes = notes.lines()
    return [*lines, *remarks, *(["", *footnotes] if footnotes else []), ""]


def _cost(row: TableRow) -> tuple[str, str]:
    if row.model is None:
        return paper.NO_FIGURE, paper.NO_FIGURE
    counted = cost(row.model, row.classes)
    return (
        f"{counted.macs / 1e9:.2f}",
        f"{without_norms(counted) / 1e6:.1f} ({counted.params / 1e6:.2f})",
    )


def _ours(cell: Cell, groups: Iterable[Group], notes: _Notes) -> str:
    """Return our results for a cell: one per experiment and kind of weights."""
    figures = []
    for group in groups:
        if cell.slot is None or not any(map(cell.slot.accepts, group.runs)):
            continue
        for weights in _weights(group, cell.slot.tests):
            star = "*" if departures(group.example.config) else ""
            mark = f"[{notes.number(group)}{star}]"
            score = group.score(cell.metric, weights, cell.slot.tests)
            figures.append(f"{_figure(group, score, weights)} {mark}")
    return "<br>".join(figures) or cell.empty


def _figure(group: Group, score: Score | None, weights: str) -> str:
    text = "not tested" if score is None else str(score)
    if score is not None and score.count < len(group.runs):
        text += f" ({score.count} of {len(group.runs)} seeds)"
    return f"ema {text}" if weights == "ema" else text


def _weights(
    group: Group, tests_of: Callable[[Run], Tests] = lambda run: run.last_test
) -> list[str]:
    tested = {weights for run in group.runs for weights in tests_of(run)}
    return [weights for weights in ("raw", "ema") if weights in tested]


def _left_over(groups: Sequence[Group], notes: _Notes) -> list[str]:
    """List the runs that match no table that was printed."""
    placeless = sorted(
        (group for group in groups if group.runs and group not in notes.numbers),
        key=lambda group: (group.example.config.data.name, cost_of(group.example).params),
    )
    useless = [(run, reason) for group in groups for run, reason in group.others]
    lines = []
    if placeless:
        head = ["run", "data set", "FLOPs, millions", "parameters"]
        head += ["weights", "top-1 error, %", "top-5 error, %", "seeds", "reason"]
        lines += ["## Runs in no table above", "", *markdown_head(head)]
        for group, label in zip(placeless, labels(placeless), strict=True):
            counted = cost_of(group.example)
            for weights in _weights(group):
                cells = [label, group.example.config.data.name]
                cells += [f"{counted.macs / 1e6:.2f}", f"{counted.params:,}", weights]
                cells += [_number(group, error, weights) for error in ("top1_error", "top5_error")]
                cells += [str(len(group.runs)), _why_not(group.example)]
                lines.append(markdown_row(cells))
        lines += ["", "Parameters include batch norm's.", ""]
        lines += [
            f"- {label}: {_seeds(group)}"
            for group, label in zip(placeless, labels(placeless), strict=True)
        ]
        lines.append("")
    if useless:
        lines += ["## Excluded runs", ""]
        lines += [f"- `{run.workdir}` ({run.config.model.name}): {why}" for run, why in useless]
    elif groups and not placeless:
        lines.append("All given workdirs are listed in a table above.")
    return lines


def _number(group: Group, metric: str, weights: str) -> str:
    score = group.score(metric, weights)
    return paper.NO_FIGURE if score is None else str(score)


def _why_not(run: Run) -> str:
    """Return why a run matches no cell of the tables that were printed."""
    slots = [
        (table.key, cell.slot)
        for table in paper.ERROR_TABLES
        for row in table.rows
        for cell in row.cells
        if cell.slot is not None
    ]
    tables = sorted({key for key, slot in slots if slot.accepts(run)})
    if tables:
        return f"it belongs in {' and '.join(map(_table_name, tables))}, which was not selected"
    data = run.config.data.name
    on_data = [slot for _, slot in slots if slot.data == data]
    if not on_data:
        return f"the paper has no data set {data!r}"
    crops = {slot.crop for slot in on_data}
    if scored_crop(run.config) not in crops:
        sizes = " or ".join(sorted(str(crop.size) for crop in crops))
        return f"it is not tested on a single crop of {sizes}, made as in the paper"
    return f"the paper has no such network on {data} with this test protocol"


def _table_name(key: str) -> str:
    return f"Table {key}" if key.isdigit() else "the table on shortcuts"
