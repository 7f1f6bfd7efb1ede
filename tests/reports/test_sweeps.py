"""The sweeps are the runs that tables and figures need."""

import importlib
import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from resnext_jax.config.checks import validate
from resnext_jax.config.fields import field, set_field
from resnext_jax.models import create_model
from resnext_jax.models.variables import skeleton, split
from resnext_jax.reports import paper
from resnext_jax.reports.matching import departures
from resnext_jax.reports.paper import ErrorTable
from resnext_jax.reports.runs import Run
from resnext_jax.reports.sweeps import SWEEPS, Setting, commands

ROOT = Path(__file__).parents[2]


def runs(name: str) -> list[Run]:
    """Return what a sweep's runs would be, of one seed."""
    return [Run(one.name, config_of(one), 10, "", ()) for one in SWEEPS[name].settings]


def config_of(setting: Setting) -> ConfigDict:
    """Make the config that train.py will make."""
    path, _, choice = setting.config.partition(":")
    recipe = importlib.import_module(f"resnext_jax.configs.{Path(path).stem}")
    config: ConfigDict = recipe.get_config(*([choice] if choice else []))
    for override in setting.overrides:
        name, value = override.removeprefix("--config.").split("=")
        set_field(config, name, type(field(config, name))(value))
    validate(config)
    return config


def test_commands_are_every_setting_with_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = commands(SWEEPS["digits"], Path("a b"), seeds=2, extra=["--config.num_epochs=1.0"])
    assert len(lines) == 14
    *_, program, config, model, epochs, seed, workdir, extra = shlex.split(lines[7])
    assert (program, config) == ("train.py", "--config=configs/digits_resnext29.py")
    assert (model, epochs) == ("--config.model.name=resnext29_1x4d", "--config.num_epochs=6.0")
    assert (seed, workdir) == ("--config.seed=1", "--workdir=a b/digits_resnext29_1x4d/seed1")
    assert extra == "--config.num_epochs=1.0"
    # From elsewhere, with whole paths.
    monkeypatch.chdir(ROOT.parent)
    (line, *_) = commands(SWEEPS["digits"], Path("runs"), seeds=1)
    assert f"{ROOT}/train.py --config={ROOT}/configs/digits_resnext29.py" in line


def parameters(run: Run) -> int:
    """Count what a network learns, by its shapes alone."""
    model = run.config.model
    widths = {"stem_width": model.stem_width, "template_width": model.template_width}
    shapes = skeleton(
        lambda rngs: create_model(model.name, num_classes=run.classes, rngs=rngs, **widths)
    )
    return sum(array.size for array in split(shapes)[1].values())


@pytest.mark.parametrize(
    ("name", "table", "size"),
    [
        ("table3", paper.TABLE_3, 10),
        ("table4", paper.TABLE_4, 6),
        ("residual", paper.TABLE_RESIDUAL, 4),
        ("table6", paper.TABLE_6, 4),
        ("table7", paper.TABLE_7, 6),
    ],
)
def test_a_sweep_fills_its_table_by_the_papers_recipe(
    name: str, table: ErrorTable, size: int
) -> None:
    swept = runs(name)
    slots = {cell.slot for row in table.rows for cell in row.cells if cell.slot}
    assert len(swept) == len(slots) == size
    for slot in slots:
        (run,) = [run for run in swept if slot.accepts(run)]
        assert departures(run.config) == []


@pytest.mark.parametrize(("name", "within"), [("figure7", 0.022), ("digits", 0.025)])
def test_two_lines_of_equal_parameters(name: str, within: float) -> None:
    """One of cardinality at one width, one of width at cardinality 1, from the same template."""
    swept = runs(name)
    shapes = {
        (run.architecture.cardinality, run.architecture.group_width): parameters(run)
        for run in swept
    }
    assert len(shapes) == len(swept) >= 7
    (base,) = {width for cardinality, width in shapes if cardinality > 1}
    assert (1, base) in shapes
    more = [params for (cardinality, width), params in shapes.items() if cardinality > 1]
    wider = [params for (cardinality, width), params in shapes.items() if width > base]
    assert len(more) == len(wider) == len(shapes) // 2
    for one, other in zip(sorted(more), sorted(wider), strict=True):
        assert abs(other / one - 1) < within


def test_the_digits_are_swept_by_their_recipe_shortened() -> None:
    assert SWEEPS["digits"].seeds == 3
    for run in runs("digits"):
        assert (run.config.data.name, run.config.num_epochs) == ("digits", 6.0)
        assert (run.config.model.stem_width, run.config.model.template_width) == (16, 64)


def test_the_same_run_has_the_same_folder_in_every_sweep() -> None:
    """So that one folder for all sweeps trains it once; and no two runs share one."""
    settings = {setting for sweep in SWEEPS.values() for setting in sweep.settings}
    assert len({setting.name for setting in settings}) == len(settings)
    for sweep in SWEEPS.values():
        assert len(set(sweep.settings)) == len(sweep.settings)
    assert set(SWEEPS["table3"].settings) & set(SWEEPS["table4"].settings)
