"""The paper's figures: errors over epochs (Figures 5 and 6) and over parameters (Figure 7)."""

import dataclasses
from collections.abc import Sequence

from resnext_jax.reports.capacity_tables import cost_of
from resnext_jax.reports.errors import ReportError
from resnext_jax.reports.runs import Group, Score, labels, settings
from resnext_jax.runs.curve import TEST, TRAIN, as_picture, finish_axes, new_figure, plot_line

FORMATS = ("png", "pdf", "svg")


def errors_by_epoch(groups: Sequence[Group], *, figure: int = 5, kind: str = "png") -> bytes:
    """Plot the top-1 error of several runs over epochs.

    Each experiment has its colour and a legend entry with its model's name; every seed is a line.
    Unfinished runs are plotted as far as they got.

    Args:
      groups: from `runs.group_runs`.
      figure: 5, the paper's Figure 5: training error (dashed) and test error. 6, its Figure 6:
        1K-way test error of networks trained on ImageNet-5K; their training error is 5K-way and
        therefore omitted.
      kind: picture format, one of `FORMATS`.

    Returns:
      The picture.

    Raises:
      ReportError: no run has such an error.
    """
    quantity = "top1_error" if figure == 5 else "top1_error_1000way"
    lines = (TRAIN, *TEST) if figure == 5 else TEST
    picture = new_figure(7, 4.6)
    axes = picture.add_subplot()
    for index, (group, label) in enumerate(zip(groups, labels(groups), strict=True)):
        runs = [*group.runs, *(run for run, _ in group.others)]
        seeds = f" ({len(runs)} runs)" if len(runs) > 1 else ""
        named = set()
        for run in runs:
            for line in lines:
                name = f"{label}{seeds}, {line[3]}"
                drawn = plot_line(
                    axes,
                    run.records,
                    quantity,
                    line,
                    label=None if name in named else name,
                    color=f"C{index}",
                    linewidth=1.0 if len(runs) > 1 else 1.5,
                )
                named |= {name} if drawn else set()
    if not axes.has_data():
        raise ReportError(
            f"no run has {'an' if figure == 5 else 'a 1K-way'} error to plot"
            + ("." if figure == 5 else "; runs with config.data.eval_first_classes=1000 have one.")
        )
    finish_axes(axes, "epoch", "top-1 error (%)" if figure == 5 else "1K-way top-1 error (%)")
    return as_picture(picture, kind)


@dataclasses.dataclass(frozen=True)
class Point:
    """An experiment in Figure 7.

    Attributes:
      cardinality: C.
      width: d.
      params: number of parameters.
      score: test error in percent.
    """

    cardinality: int
    width: int
    params: int
    score: Score


def error_by_parameters(groups: Sequence[Group], *, kind: str = "png") -> bytes:
    """Plot the paper's Figure 7: test error over the number of parameters.

    One line connects experiments that differ only in cardinality, another those that differ only
    in width. Points are means over seeds of the last test's top-1 error (raw weights), bars
    standard errors of the mean, as in the paper; a single seed has no bar.

    Args:
      groups: from `runs.group_runs`; unfinished runs are ignored.
      kind: picture format, one of `FORMATS`.

    Returns:
      The picture.

    Raises:
      ReportError: no run is finished.
    """
    families = lines_of_figure_7(groups)
    if not families:
        raise ReportError("no run is finished, so there is no error to plot over parameters.")
    picture = new_figure(7, 4.6)
    axes = picture.add_subplot()
    for label, points in families.items():
        axes.errorbar(
            [point.params / 1e6 for point in points],
            [point.score.mean for point in points],
            yerr=[point.score.standard_error for point in points],
            marker="o",
            markersize=4,
            capsize=3,
            linestyle="-" if len(points) > 1 else "",
            label=label,
        )
    points = [point for members in families.values() for point in members]
    distinct = {(point.params, point.score): point for point in points}
    for point in distinct.values():
        axes.annotate(
            f"{point.cardinality}x{point.width}d",
            (point.params / 1e6, point.score.mean),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=8,
        )
    axes.margins(x=0.12, y=0.1)  # room for the labels
    finish_axes(axes, "parameters (millions)", "test error (%), mean and standard error")
    return as_picture(picture, kind)


def lines_of_figure_7(groups: Sequence[Group]) -> dict[str, list[Point]]:
    """Group finished experiments into lines of equal width, or of equal cardinality.

    Returns:
      The points of each line, sorted by parameters, keyed by the line's label. An experiment on no
      line becomes a line of one point.
    """
    finished = [group for group in groups if group.score("top1_error", "raw")]
    families: dict[str, list[Group]] = {}
    for group in finished:
        families.setdefault(_family(group), []).append(group)
    lines: dict[str, list[Point]] = {}
    # Family names are only added to the labels if there are several families.
    names = labels([members[0] for members in families.values()])
    for name, members in zip(names, families.values(), strict=True):
        suffix = f" ({name})" if len(families) > 1 else ""
        lines |= {
            label + suffix: points for label, points in _lines([_point(one) for one in members])
        }
    return lines


def _family(group: Group) -> str:
    """Return a key of the settings that a line shares: all except cardinality and width."""
    config = settings(group.example.config)
    del config["model.name"]
    shape = dataclasses.replace(group.example.architecture, cardinality=1, group_width=1)
    return f"{config} {shape} {group.example.data_version}"


def _point(group: Group) -> Point:
    shape, score = group.example.architecture, group.score("top1_error", "raw")
    if score is None:
        raise ReportError("an unfinished run has no point in the figure.")
    params = cost_of(group.example).params
    return Point(shape.cardinality, shape.group_width, params, score)


def _lines(points: list[Point]) -> list[tuple[str, list[Point]]]:
    points = sorted(points, key=lambda point: point.params)
    lines = [
        (f"cardinality, C x {width}d", [point for point in points if point.width == width])
        for width in sorted({point.width for point in points})
    ]
    lines += [
        (f"width, {number} x d", [point for point in points if point.cardinality == number])
        for number in sorted({point.cardinality for point in points})
    ]
    lines = [(label, members) for label, members in lines if len(members) > 1]
    joined = {point for _, members in lines for point in members}
    return lines + [
        (f"{point.cardinality} x {point.width}d", [point])
        for point in points
        if point not in joined
    ]
