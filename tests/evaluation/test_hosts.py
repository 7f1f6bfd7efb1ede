"""Two processes with four virtual devices each evaluate as one with eight does."""

import json
from pathlib import Path

import pytest

from resnext_jax.data.sources import open_split
from tests.evaluation.workdirs import CHANGES, digits_config, make_workdir, write_weights
from tests.programs import run
from tests.training.hosts import run_hosts


@pytest.mark.slow
def test_an_ensemble_on_two_hosts(data_dir: Path, tmp_path: Path) -> None:
    config = digits_config(data_dir)
    open_split(config, "test")
    workdir = make_workdir(tmp_path / "run", config, ema=True)
    files = [
        str(write_weights(tmp_path / f"{seed}.safetensors", config, seed=seed)) for seed in (3, 4)
    ]
    command = [
        *("eval.py", "--config=configs/digits_resnext29.py", f"--config.data.data_dir={data_dir}"),
        *(f"--config.{name}={value}" for name, value in CHANGES.items()),
        *(f"--workdir={workdir}", f"--weights={','.join(files)}"),
    ]

    def outputs(name: str) -> list[str]:
        return [f"--output={tmp_path}/{name}.json", f"--confusion={tmp_path}/{name}.csv"]

    alone = run(*command, *outputs("one"), devices=8)
    assert alone.returncode == 0, alone.stderr
    first, second = run_hosts([*command, *outputs("two")], timeout=300)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    # The first host speaks and writes for both.
    assert alone.stdout.replace(f"{tmp_path}/one.", f"{tmp_path}/two.") in first.stdout
    assert "ensemble" not in second.stdout
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
    one, two = (
        json.loads((tmp_path / f"{name}.json").read_text())["evaluations"]
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert len(one) == 5
    assert len(list(one.values())[-1]["members"]) == 3
    for name, evaluation in one.items():
        assert two[name]["members"] == evaluation["members"]
        assert two[name]["top5_error"] == evaluation["top5_error"]
        assert two[name]["loss"] == pytest.approx(evaluation["loss"], rel=1e-6)
