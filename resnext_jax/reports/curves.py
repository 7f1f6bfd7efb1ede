"""Training curves, drawn as the paper's Figure 5 draws them."""

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnext_jax.training.logging import read_metrics
from resnext_jax.training.workdir import explained, write_atomically


def draw_training_curve(workdir: Path, title: str) -> Path | None:
    """Draw top-1 error and loss by epoch from a workdir's `metrics.jsonl`.

    Returns:
      Path of `plots/training_curve.png`, None where there is nothing to draw.

    Raises:
      WorkdirError: the picture cannot be written.
    """
    records = read_metrics(workdir)
    if not records:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, quantity, label in (
        (figure.add_subplot(1, 2, 1), "top1_error", "top-1 error (%)"),
        (figure.add_subplot(1, 2, 2), "loss", "cross-entropy (nats)"),
    ):
        # The paper draws training error dashed and validation error solid.
        for split, weights, style, name in (
            ("train", None, "--", "train"),
            ("test", "raw", "-", "test"),
            ("test", "ema", "-.", "test, averaged weights"),
        ):
            points = [
                (record["epoch"], record[quantity])
                for record in records
                if (record["split"], record.get("weights")) == (split, weights)
                and record[quantity] is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    path = workdir / "plots" / "training_curve.png"
    # In memory first: a picture is replaced as a whole, or not at all.
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    with explained(path):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, picture.getvalue())
    return path
