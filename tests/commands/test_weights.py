"""The command: a run's weights out, and what a file holds."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnext_jax.commands.weights import main
from resnext_jax.configs import digits_resnext29
from resnext_jax.interop.files import read_class_names, read_state_dict, write_state_dict
from resnext_jax.interop.state_dicts import weights_from_torch
from resnext_jax.models.preact import PreActResNeXt
from resnext_jax.models.registry import network_spec
from resnext_jax.models.variables import skeleton, split
from resnext_jax.runs.best import Best, write_best
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.runs.workdir import CONFIG_FILE, DATA_SET_FILE, write_config
from resnext_jax.training.state import TrainState
from tests.interop.weights import CIFAR_SPEC, random_state_dict
from tests.training.tiny import save_state

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/interop/golden"  # by make_golden.py
FORM_B = dataclasses.replace(CIFAR_SPEC, form="b")


def make_state(step: int, *, ema: bool) -> TrainState:
    """Make a state whose weights are drawn with seed `step`, and their average with `step` + 1."""
    params, batch_stats = weights_from_torch(random_state_dict(CIFAR_SPEC, step), FORM_B)
    state = TrainState.create(params, batch_stats, optax.sgd(0.1))
    average = weights_from_torch(random_state_dict(CIFAR_SPEC, step + 1), FORM_B)
    return dataclasses.replace(
        state,
        step=jnp.asarray(step, jnp.int32),
        ema=dict(zip(("params", "batch_stats"), average, strict=True)) if ema else None,
    )


def preactivated_state(step: int) -> TrainState:
    """Make the state of a pre-activation network, all zeros."""
    spec = network_spec(
        "resnext11_2x1d", num_classes=3, preactivation=True, stem_width=4, template_width=4
    )
    _, *shapes = split(skeleton(lambda rngs: PreActResNeXt(spec, rngs=rngs)))
    params, batch_stats = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    state = TrainState.create(params, batch_stats, optax.sgd(0.1))
    return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))


def make_workdir(path: Path, *, ema: bool = True, preactivation: bool | None = None) -> Path:
    """Make what a run of the golden network, in form b, leaves: checkpoints 10 and 20."""
    path.mkdir()
    config = digits_resnext29.get_config()
    config.model.name = "resnext11_2x1d"
    config.model.stem_width = config.model.template_width = 4
    config.model.form = "c" if preactivation else "b"
    config.model.preactivation = preactivation
    write_config(config, path)
    classes = {"name": "three", "version": "1.0.0", "classes": ["a", "b", "c"]}
    (path / DATA_SET_FILE).write_text(json.dumps(classes))
    with contextlib.closing(Checkpoints(path, keep=2)) as checkpoints:
        for step in (10, 20):
            state = preactivated_state(step) if preactivation else make_state(step, ema=ema)
            save_state(checkpoints, state, {})
    write_best(Best(10, "top1_error", 1.5, "raw"), path)
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workdir(tmp_path_factory.mktemp("runs") / "run")


def assert_drawn_with(seed: int, path: Path) -> None:
    actual = read_state_dict(path)
    expected = random_state_dict(CIFAR_SPEC, seed)
    assert list(actual) == sorted(
        name for name in expected if not name.endswith("num_batches_tracked")
    )
    for name, array in actual.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(
    ("options", "seed", "told"),
    [
        ([], 20, "raw, step 20"),
        (["--ema"], 21, "ema, step 20"),
        (["--checkpoint=10"], 10, "raw, step 10"),
        (["--checkpoint=best", "--ema"], 11, "ema, step 10"),
    ],
)
def test_exports(
    options: list[str],
    seed: int,
    told: str,
    workdir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.safetensors"
    main(["export", f"--workdir={workdir}", f"--out={out}", *options])
    assert_drawn_with(seed, out)
    assert read_class_names(out) == ("a", "b", "c")
    assert capsys.readouterr().out == (
        "model: resnext11_2x1d with 3 classes, form b\n"
        f"weights: {told}\n"
        "arrays: 62 with 1,289 numbers\n"
        f"file: {out}\n"
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_export_refuses(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"--out={tmp_path / 'out.safetensors'}"
    run = f"--workdir={workdir}"
    assert "does not exist" in refused(capsys, "export", f"--workdir={tmp_path / 'none'}", out)
    assert "no checkpoint" in refused(capsys, "export", f"--workdir={tmp_path}", out)
    assert "there is no checkpoint" in refused(capsys, "export", run, out, "--checkpoint=15")
    assert "'newest' must be" in refused(capsys, "export", run, out, "--checkpoint=newest")
    assert "must end in" in refused(capsys, "export", run, f"--out={tmp_path / 'out.npz'}")
    assert "--out" in refused(capsys, "export", run)
    assert "--bad" in refused(capsys, "export", run, out, "--bad")
    assert not (tmp_path / "out.safetensors").exists()


def test_export_refuses_damaged_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = make_workdir(tmp_path / "run", ema=False)
    arguments = ["export", f"--workdir={workdir}", f"--out={tmp_path / 'out.safetensors'}"]
    assert "has no average of the weights" in refused(capsys, *arguments, "--ema")
    (workdir / DATA_SET_FILE).write_text("{}")
    assert "data_set.json does not list the classes" in refused(capsys, *arguments)
    config = (workdir / CONFIG_FILE).read_text()
    (workdir / CONFIG_FILE).write_text(config.replace('"form": "b"', '"form": 3'))
    assert "config.json is damaged" in refused(capsys, *arguments)
    (workdir / CONFIG_FILE).write_text("[1, 2]")
    assert "config.json is damaged" in refused(capsys, *arguments)
    (workdir / CONFIG_FILE).unlink()
    assert "has no config.json" in refused(capsys, *arguments)


def test_export_refuses_preactivation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = make_workdir(tmp_path / "run", preactivation=True)
    arguments = ["export", f"--workdir={workdir}", f"--out={tmp_path / 'out.safetensors'}"]
    assert "pre-activation networks have no usual names" in refused(capsys, *arguments)


def test_inspects(capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(GOLDEN / "plain.pth")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=2) == ["conv1.weight", "float32", "(4, 3, 3, 3)"]
    assert lines[-1].startswith(
        "note: names and shapes do not distinguish resnext11_2x1d from networks that compute"
    )
    assert lines[-4:-1] == [
        "arrays: 74 with 1,301 numbers",
        "names: torchvision's",
        "model: create_model('resnext11_2x1d', num_classes=3, stem_width=4, template_width=4, ...)",
    ]
    assert len(lines) == 74 + 4


def test_inspects_names_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    for names, told in (("äb", "ä, b"), ("abcdefghijkl", "a, b, c, d, e, f, g, h, i, j, ...")):
        write_state_dict(random_state_dict(CIFAR_SPEC), path, names)
        main(["inspect", str(path)])
        out = capsys.readouterr().out
        assert f"\nclasses: {told}\n" in out
        assert "note:" not in out  # it is of a run here


def test_inspects_what_fits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    write_state_dict({"maxpool.0.weight": np.zeros((32, 3, 3, 3), np.float16)}, path)
    main(["inspect", str(path)])
    assert capsys.readouterr().out == (
        "maxpool.0.weight  float16   (32, 3, 3, 3)\n"
        "arrays: 1 with 864 numbers\n"
        f"model: no model of this package fits weights file {path}: it is of a network "
        "with ResNet-RS's stem, which convolves in place of max-pooling.\n"
    )
    assert "no averaged weights" in refused(capsys, "inspect", str(path), "--ema")
    assert "No such file" in refused(capsys, "inspect", str(tmp_path / "none"))


def test_runs_as_a_module(workdir: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    command = [sys.executable, "-m", "resnext_jax.interop.torch", "export"]
    result = subprocess.run(
        [*command, f"--workdir={workdir}", f"--out={path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert_drawn_with(20, path)
