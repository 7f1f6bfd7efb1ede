"""The training curve of a run, and what the figures of several runs are drawn with."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnext_jax.runs.best import Measure
from resnext_jax.runs.log import read_metrics
from resnext_jax.runs.workdir import explained, write_atomically

# What is drawn of a run, and how; the paper draws training error dashed and validation error
# solid.
Line = tuple[str, str | None, str, str]
TRAIN: Line = ("train", None, "--", "train")
TEST: tuple[Line, ...] = (
    ("test", "raw", "-", "test"),
    ("test", "ema", "-.", "test, averaged weights"),
)


def draw_training_curve(workdir: Path, title: str, measure: Measure) -> Path | None:
    """Draw a measure and the loss by epoch from a workdir's `metrics.jsonl`.

    Returns:
      Path of `plots/training_curve.png`, None where there is nothing to draw.

    Raises:
      WorkdirError: the picture cannot be written.
    """
    records = read_metrics(workdir)
    if not records:
        return None
    figure = new_figure(9, 3.6)
    figure.suptitle(title)
    for axes, quantity, label in (
        (figure.add_subplot(1, 2, 1), measure.name, measure.label),
        (figure.add_subplot(1, 2, 2), "loss", "loss"),
    ):
        for line in (TRAIN, *TEST):
            plot_line(axes, records, quantity, line, label=line[3])
        axes.set_ylim(bottom=0)
        finish_axes(axes, "epoch", label)
    path = workdir / "plots" / "training_curve.png"
    with explained(path):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, as_picture(figure, "png"))
    return path


def plot_line(
    axes: Axes, records: Iterable[dict[str, Any]], quantity: str, line: Line, **style: Any
) -> bool:
    """Draw a quantity by epoch; say whether there was one."""
    split, weights, dashes, _ = line
    points = [
        (record["epoch"], record[quantity])
        for record in records
        if (record["split"], record.get("weights")) == (split, weights)
        and record.get(quantity) is not None
    ]
    if points:
        axes.plot(*zip(*points, strict=True), dashes, **style)
    return bool(points)


def new_figure(width: float, height: float) -> Figure:
    """Make a figure, in inches, that is drawn without a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish_axes(axes: Axes, across: str, up: str) -> None:
    """Label the axes, and explain the lines if there are any."""
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()


def as_picture(figure: Figure, kind: str) -> bytes:
    """Return the file of a figure: "png", "pdf" or "svg"."""
    # In memory first: a picture is replaced as a whole, or not at all.
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format=kind)
    return picture.getvalue()
