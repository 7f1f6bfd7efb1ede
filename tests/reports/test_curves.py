"""Pictures of runs."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ml_collections import ConfigDict

from resnext_jax.configs import imagenet5k
from resnext_jax.reports import curves
from resnext_jax.reports.curves import (
    error_by_parameters,
    errors_by_epoch,
    lines_of_figure_7,
)
from resnext_jax.reports.errors import ReportError
from resnext_jax.reports.runs import Group, group_runs, read_run
from resnext_jax.runs.log import METRICS_FILE
from tests.reports.workdirs import digits, write_run


def groups_of(folder: Path, *configs: tuple[ConfigDict, float], **more: Any) -> list[Group]:
    """Return the groups of finished runs with these configs and errors."""
    folder.mkdir()
    return group_runs(
        read_run(write_run(folder / str(index), config, error, **more))
        for index, (config, error) in enumerate(configs)
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they were when a picture was made of them."""
    figures: list[Figure] = []

    def picture(figure: Figure, kind: str) -> bytes:
        figures.append(figure)
        return kind.encode()

    monkeypatch.setattr(curves, "as_picture", picture)
    return figures


def heights(line: Line2D) -> list[float]:
    values: list[float] = np.asarray(line.get_ydata(), float).tolist()
    return values


def test_several_runs_by_epoch(tmp_path: Path, drawn: list[Figure]) -> None:
    """Training dashed and test solid, a colour an experiment, a line a seed."""
    groups = groups_of(
        tmp_path / "runs",
        (digits("resnext29_2x4d"), 10.0),
        (digits("resnext29_2x4d", seed=1), 12.0),
        (digits("resnet29_1x7d"), 14.0),
    )
    assert errors_by_epoch(groups) == b"png"
    (axes,) = drawn[0].axes
    lines = [(line.get_color(), line.get_linestyle(), heights(line)) for line in axes.get_lines()]
    assert lines == [
        ("C0", "--", [15.0, 5.0]),
        ("C0", "-", [20.0, 10.0]),
        ("C0", "--", [17.0, 7.0]),
        ("C0", "-", [22.0, 12.0]),
        ("C1", "--", [19.0, 9.0]),
        ("C1", "-", [24.0, 14.0]),
    ]
    assert np.asarray(axes.get_lines()[0].get_xdata(), float).tolist() == [6.0, 12.0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "resnext29_2x4d (2 runs), train",
        "resnext29_2x4d (2 runs), test",
        "resnet29_1x7d, train",
        "resnet29_1x7d, test",
    ]


def test_averaged_weights_and_unfinished_runs_are_drawn_too(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    config = digits(**{"ema.decay": 0.9})
    errors_by_epoch(groups_of(tmp_path / "runs", (config, 10.0), ema=8.0, epochs=3))
    styles = [line.get_linestyle() for line in drawn[0].axes[0].get_lines()]
    assert styles == ["--", "-", "-."]


def test_figure_6_is_1k_way_and_of_tests(tmp_path: Path, drawn: list[Figure]) -> None:
    config = imagenet5k.get_config("resnet50")
    groups = groups_of(tmp_path / "5k", (config, 45.0), top1_error_1000way=27.0)
    errors_by_epoch(groups, figure=6)
    (line,) = drawn[0].axes[0].get_lines()
    assert (line.get_linestyle(), heights(line)) == ("-", [27.0])
    with pytest.raises(ReportError, match="no run has a 1K-way error"):
        errors_by_epoch(groups_of(tmp_path / "digits", (digits(), 9.0)), figure=6)


def test_nothing_to_draw_by_epoch(tmp_path: Path) -> None:
    groups = groups_of(tmp_path / "runs", (digits(), 1.0))
    (tmp_path / "runs" / "0" / METRICS_FILE).write_text("")
    with pytest.raises(ReportError, match="no run has an error"):
        errors_by_epoch(group_runs([read_run(str(tmp_path / "runs" / "0"))]))
    assert errors_by_epoch(groups, kind="svg").startswith(b"<?xml")


FIGURE_7 = (
    (digits("resnet29_1x4d"), 9.0),
    (digits("resnet29_1x4d", seed=1), 11.0),
    (digits("resnet29_1x7d"), 8.0),
    (digits("resnext29_4x4d"), 3.0),
    (digits("resnext29_2x4d"), 5.0),
    (digits("resnext29_2x4d", seed=1), 7.0),
    (digits("resnext29_2x4d", seed=2), 9.0),
)


def test_figure_7_joins_equal_widths_and_equal_cardinalities(tmp_path: Path) -> None:
    lines = lines_of_figure_7(groups_of(tmp_path / "runs", *FIGURE_7))
    points = {
        name: [(point.cardinality, point.width, point.params, point.score.mean) for point in line]
        for name, line in lines.items()
    }
    base = (1, 4, 87_514, 10.0)
    assert points == {
        "cardinality, C x 4d": [base, (2, 4, 126_426, 7.0), (4, 4, 204_250, 3.0)],
        "width, 1 x d": [base, (1, 7, 128_605, 8.0)],
    }


def test_figure_7_joins_no_other_recipes(tmp_path: Path) -> None:
    groups = groups_of(
        tmp_path / "runs",
        (digits("resnet29_1x4d"), 9.0),
        (digits("resnext29_2x4d"), 8.0),
        (digits("resnext29_4x4d", num_epochs=3.0), 7.0),
        (digits("resnext29_8x8d"), 7.0),
        (digits("seresnext29_4x4d"), 6.0),
    )
    assert {name: len(points) for name, points in lines_of_figure_7(groups).items()} == {
        "cardinality, C x 4d (resnet29_1x4d)": 2,
        "8 x 8d (resnet29_1x4d)": 1,
        "4 x 4d (resnext29_4x4d)": 1,
        "4 x 4d (seresnext29_4x4d)": 1,
    }


def test_figure_7_has_standard_errors(tmp_path: Path, drawn: list[Figure]) -> None:
    """Half-lengths of the bars: s / sqrt(n), nothing for a single seed."""
    assert error_by_parameters(groups_of(tmp_path / "runs", *FIGURE_7), kind="pdf") == b"pdf"
    (axes,) = drawn[0].axes
    cardinality, width = axes.containers
    assert [container.get_label() for container in (cardinality, width)] == [
        "cardinality, C x 4d",
        "width, 1 x d",
    ]
    assert isinstance(cardinality, ErrorbarContainer)
    _, _, (bars,) = cardinality.lines
    lengths = [float(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
    assert lengths == pytest.approx([math.sqrt(2) / math.sqrt(2), 2 / math.sqrt(3), 0.0])
    named = sorted(text.get_text() for text in axes.texts)
    assert named == ["1x4d", "1x7d", "2x4d", "4x4d"]


def test_figure_7_needs_a_finished_run(tmp_path: Path) -> None:
    groups = groups_of(tmp_path / "runs", (digits(), 9.0), epochs=3)
    with pytest.raises(ReportError, match="no run is finished"):
        error_by_parameters(groups)


def test_figure_7_is_a_picture(tmp_path: Path) -> None:
    picture = error_by_parameters(groups_of(tmp_path / "runs", *FIGURE_7))
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert pixels.shape[1] > pixels.shape[0] > 400
