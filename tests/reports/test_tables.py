"""The paper's figures beside ours."""

from pathlib import Path

import pytest

from resnext_jax.configs import cifar, imagenet5k
from resnext_jax.models.capacity import Complexity, LayerCost
from resnext_jax.reports import paper, tables
from resnext_jax.reports.runs import group_runs, read_run
from resnext_jax.reports.tables import RUNS, TABLES, render_tables
from tests.reports.test_capacity_tables import cells
from tests.reports.workdirs import (
    EPOCH_STEPS,
    changed,
    digits,
    imagenet_run,
    write_evaluation,
    write_run,
)


@pytest.fixture
def _no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting a large network takes a second, and is tested elsewhere."""
    layers = (LayerCost("fc", 2_000_000, 3_000_000_000), LayerCost("stem.norm", 40_000, 0))
    monkeypatch.setattr(tables, "cost", lambda model, classes: Complexity(model, 224, layers))


def rendered(workdirs: list[str], *keys: str) -> str:
    return render_tables(group_runs(map(read_run, workdirs)), keys or TABLES)


def rows(text: str, title: str) -> list[list[str]]:
    """Return the rows below a title."""
    begin = text.index(title)
    end = text.find("\n## ", begin)
    table = [
        line for line in text[begin : end if end > 0 else None].splitlines() if line[:1] == "|"
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@pytest.mark.usefixtures("_no_counting")
def test_without_runs_every_figure_of_the_paper_stands_beside_not_run() -> None:
    text = rendered([], "3", "4", "residual", "5", "6", "7", "8")
    for table in paper.ERROR_TABLES:
        written = rows(text, table.title)
        assert len(written) == len(table.rows)
        for row, line in zip(table.rows, written, strict=True):
            pairs = [figure for cell in row.cells for figure in (cell.paper, cell.empty)]
            assert line[:2] == [row.network, row.setting]
            assert line[-len(pairs) :] == pairs
            assert len(line) == len(written[0])
    assert "in no table above" not in text


def test_the_papers_figures() -> None:
    """A few by hand, of each table."""
    figures = {
        (table.key, row.network, row.setting): [cell.paper for cell in row.cells]
        for table in paper.ERROR_TABLES
        for row in table.rows
    }
    assert len(figures) == 10 + 6 + 2 + 6 + 4 + 3 + 4
    assert figures["3", "ResNet-50", "1 x 64d"] == ["23.9"]
    assert figures["3", "ResNeXt-101", "32 x 4d"] == ["21.2"]
    assert figures["4", "ResNeXt-101", "2 x 64d"] == ["20.7", "5.5"]
    assert figures["residual", "ResNet-50", "1 x 64d"] == ["23.9", "31.2"]
    assert figures["5", "ResNeXt-101", "64 x 4d"] == ["20.4", "5.3", "19.1", "4.4"]
    assert figures["6", "ResNet-101", "1 x 64d"] == ["42.4", "16.9", "24.2", "6.8"]
    assert figures["7", "ResNeXt-29", "16 x 64d"] == ["3.58", "17.31"]
    assert figures["8", "ResNeXt-50", "32 x 4d"] == ["49.7", "27.5"]
    models = {row.model for table in paper.ERROR_TABLES for row in table.rows}
    assert "resnext50_8x14d" in models
    assert "resnet101_1x100d" in models


def test_seeds_stand_as_mean_and_deviation(tmp_path: Path) -> None:
    config = "cifar10,resnext29_8x64d"
    workdirs = [
        write_run(
            tmp_path / f"seed{seed}", changed(cifar.get_config(config), {"seed": seed}), error
        )
        for seed, error in enumerate((3.5, 3.7, 3.9))
    ]
    text = rendered(workdirs, "7")
    (_, ours, _) = rows(text, "Table 7")
    assert ours[:5] == ["ResNeXt-29", "8 x 64d", "5.39", "34.4", "34.4 (34.43)"]
    assert ours[5:] == ["3.65", "3.70 ± 0.20 [1]", "17.77", "not run"]
    named = ", ".join(f"`{workdir}`" for workdir in workdirs)
    assert f"- [1] seeds 0, 1, 2: {named}; recipe: the paper's.\n" in text
    assert text.endswith("All given workdirs are listed in a table above.\n")


@pytest.mark.usefixtures("_no_counting")
def test_another_recipe_and_averaged_weights_are_said(tmp_path: Path) -> None:
    average = imagenet_run(num_epochs=2.0, **{"ema.decay": 0.9})
    workdirs = [
        write_run(tmp_path / "paper", imagenet_run(), 24.0),
        write_run(tmp_path / "short", average, 60.0, ema=55.0),
    ]
    text = rendered(workdirs, "3")
    assert rows(text, "Table 3")[0][-1] == "24.00 [1]<br>60.00 [2*]<br>ema 55.00 [2*]"
    assert "paper`; recipe: the paper's." in text
    assert "other than the paper's (ema.decay=0.9 (None); num_epochs=2.0 (100.0))." in text


@pytest.mark.usefixtures("_no_counting")
def test_a_run_stands_wherever_the_paper_has_its_figure(tmp_path: Path) -> None:
    """ResNet-101 in Tables 3, 4 and 5, with one number; its 320 crop in Table 5 alone."""
    workdirs = [
        write_run(tmp_path / "224", imagenet_run("resnet101"), 22.4),
        write_run(tmp_path / "320", imagenet_run("resnet101,crop320"), 20.8),
        write_run(tmp_path / "without", imagenet_run("resnet50,no_residual"), 31.6),
    ]
    text = rendered(workdirs, "3", "4", "residual", "5")
    assert rows(text, "Table 3")[5][-1] == "22.40 [1]"
    assert rows(text, "Table 4")[0][-4:] == ["22.0", "22.40 [1]", "6.0", "5.60 [1]"]
    assert rows(text, "Residual")[0][-4:] == ["23.9", "not run", "31.2", "31.60 [2]"]
    assert " | ".join(rows(text, "Table 5")[0][-8:]) == (
        "22.0 | 22.40 [1] | 6.0 | 5.60 [1] | - | 20.80 [3] | - | 5.20 [3]"
    )
    assert rows(text, "Table 5")[2][-8:] == ["-", "-", "-", "-", "21.2", "-", "5.6", "-"]


@pytest.mark.usefixtures("_no_counting")
def test_further_crops_are_read_from_evaluations(tmp_path: Path) -> None:
    """Table 5's 320 by eval.py, of the weights at the run's end, of each seed that has it."""
    seeds = [
        write_run(
            tmp_path / str(seed),
            imagenet_run("resnet101", seed=seed, **{"ema.decay": 0.9}),
            22.0,
            ema=21.5,
        )
        for seed in range(3)
    ]
    step = 100 * EPOCH_STEPS
    write_evaluation(tmp_path / "0", 20.5, step, size=320)
    write_evaluation(tmp_path / "0", 20.0, step, "ema", size=320)
    write_evaluation(tmp_path / "1", 21.5, step, size=320)
    # None of these is such a test: of another step, crop, filter or data, or of several networks.
    for other in (
        {"step": 1},
        {"size": 299},
        {"interpolation": "bilinear"},
        {"version": "2.0.0"},
        {"members": 2},
    ):
        write_evaluation(tmp_path / "2", 1.0, **({"step": step, "size": 320} | other))
    text = rendered(seeds, "5")
    assert " | ".join(rows(text, "Table 5")[0][-8:]) == (
        "22.0 | 22.00 ± 0.00 [1*]<br>ema 21.50 ± 0.00 [1*] | "
        "6.0 | 5.50 ± 0.00 [1*]<br>ema 5.38 ± 0.00 [1*] | "
        "- | 21.00 ± 0.71 (2 of 3 seeds) [1*]<br>ema 20.00 (1 of 3 seeds) [1*] | "
        "- | 5.25 ± 0.18 (2 of 3 seeds) [1*]<br>ema 5.00 (1 of 3 seeds) [1*]"
    )
    assert rows(text, "Table 5")[1][-4:] == ["20.1", "not run", "4.8", "not run"]


@pytest.mark.usefixtures("_no_counting")
def test_both_ways_of_imagenet5k(tmp_path: Path) -> None:
    both = write_run(
        tmp_path / "both",
        imagenet5k.get_config("resnet50"),
        45.0,
        top1_error_1000way=27.5,
        top5_error_1000way=8.5,
    )
    one = changed(imagenet5k.get_config("resnet101"), {"data.eval_first_classes": None})
    text = rendered([both, write_run(tmp_path / "one", one, 42.0)], "6")
    first, _, third, _ = rows(text, "Table 6")
    assert " | ".join(first[-8:]) == (
        "45.5 | 45.00 [1] | 19.4 | 11.25 [1] | 27.1 | 27.50 [1] | 8.2 | 8.50 [1]"
    )
    assert " | ".join(third[-8:]) == (
        "42.4 | 42.00 [2] | 16.9 | 10.50 [2] | 24.2 | not tested [2] | 6.8 | not tested [2]"
    )


@pytest.mark.usefixtures("_no_counting")
def test_nothing_vanishes(tmp_path: Path) -> None:
    """Every workdir is in a table or listed at the end, with the reason."""
    folders = {
        "in": imagenet_run(seed=1),
        "begun": imagenet_run(seed=2),
        "ten": imagenet_run(**{"data.eval_crops": "ten"}),
        "narrow": imagenet_run(**{"model.template_width": 64}),
        "cifar": cifar.get_config(),
        "digits": digits(),
    }
    workdirs = [
        write_run(tmp_path / name, config, 9.0, epochs=3 if name == "begun" else None)
        for name, config in folders.items()
    ]
    text = rendered(workdirs, "3")
    assert all(f"`{workdir}`" in text for workdir in workdirs)
    assert rows(text, "Table 3")[0][-1] == "9.00 [1]"
    left = {line[0]: line for line in rows(text, "no table above")}
    reasons = {label: line[-1] for label, line in left.items()}
    assert reasons == {
        "resnext29_8x64d on cifar10": "it belongs in Table 7, which was not selected",
        "resnext29_1x4d on digits": "the paper has no data set 'digits'",
        "resnet50 on imagenet2012, data.eval_crops=ten, model.template_width=None": (
            "it is not tested on a single crop of 224 or 320, made as in the paper"
        ),
        "resnet50 on imagenet2012, data.eval_crops=centre, model.template_width=64": (
            "the paper has no such network on imagenet2012 with this test protocol"
        ),
    }
    assert " | ".join(left["resnext29_1x4d on digits"][1:-1]) == (
        "digits | 3.02 | 87,514 | raw | 9.00 | 2.25 | 1"
    )
    assert f"- `{workdirs[1]}` (resnet50): unfinished: 3 of 100 epochs, last test" in text


def test_the_runs_alone(tmp_path: Path) -> None:
    """Sorted by size, with mean and deviation over seeds."""
    workdirs = [
        write_run(tmp_path / f"{model}{seed}", digits(model, seed=seed), 5.0 + seed)
        for model in ("resnext29_2x4d", "resnext29_1x4d")
        for seed in range(2)
    ]
    text = rendered(workdirs, RUNS)
    assert text.startswith("## Runs in no table above")
    small, large = rows(text, "no table above")
    assert " | ".join(small[:7]) == (
        "resnext29_1x4d | digits | 3.02 | 87,514 | raw | 5.50 ± 0.71 | 1.38 ± 0.18"
    )
    assert large[0] == "resnext29_2x4d"
    assert cells(text.splitlines())["resnext29_2x4d"][-2] == "2"


@pytest.mark.slow
def test_all_tables_are_counted() -> None:
    """From the networks themselves: near the paper's figures where it has them."""
    text = rendered([])
    assert [line.split(".")[0] for line in text.splitlines() if line.startswith("## Table")] == [
        f"## Table {number}" for number in range(1, 9)
    ]
    for title in ("Table 3", "Table 4"):
        for _, _, papers, ours, *_ in rows(text, title):
            assert float(ours) == pytest.approx(float(papers.strip("~")), rel=0.05)
    for _, _, _, papers, ours, *_ in rows(text, "Table 7"):
        assert ours.split()[0] == papers
