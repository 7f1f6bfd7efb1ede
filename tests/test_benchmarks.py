"""The benchmarks run and write what they promise; no test looks at a time."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks import measure, scaling
from benchmarks.conv_layers import layers_of
from benchmarks.program import Setting
from resnext_jax.models import complexity

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
SUITE = BENCHMARKS / "gpu_suite.sh"

# The smallest network: one block a stage, two branches.
TINY = "resnext11_2x4d"

# Runs a benchmark as on a machine that has only jax, flax and optax.
WITH_LITTLE_BUT_JAX = """
import importlib.abc, runpy, sys

ABSENT = ("tensorflow_datasets", "grain", "ml_collections", "orbax", "torch", "timm")

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"} | more,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_benchmark(name: str, json_file: Path, options: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark; return what it wrote and what it printed."""
    script = BENCHMARKS / name
    result = run(
        sys.executable, "-c", WITH_LITTLE_BUT_JAX, script, "--json", json_file, *options.split()
    )
    assert result.returncode == 0, result.stderr
    written = json.loads(json_file.read_text())
    assert written.keys() >= {"benchmark", "arguments", "hardware", "versions", "date", "commit"}
    return written, result.stdout


@pytest.mark.parametrize(
    "name", ["block_forms.py", "grouped_conv.py", "scaling.py", "train_step.py"]
)
def test_help(name: str) -> None:
    result = run(sys.executable, BENCHMARKS / name, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {name}")
    assert "--json" in result.stdout


def test_train_step(tmp_path: Path) -> None:
    """With a row that fails: pre-activation networks have no form b."""
    written, printed = run_benchmark(
        "train_step.py",
        tmp_path / "steps.json",
        f"--models {TINY} wide_resnet28_10 --forms b --batches 2 --image-size 8 "
        "--rounds 1 --limit 1 --torch eager --python-overhead",
    )
    assert written["torch"] == {"used": False, "reason": "it is not installed"}
    assert "PyTorch is left out: it is not installed." in printed
    assert written["matrix_peak_flops_per_second"]["float32"] > 0
    assert [(row["mode"], row["model"]) for row in written["rows"]] == [
        (mode, model) for mode in ("inference", "training") for model in (TINY, "wide_resnet28_10")
    ]
    for row in written["rows"]:
        if row["model"] != TINY:
            assert "form 'b' does not exist" in row["failed"]
            continue
        assert (row["framework"], row["form"], row["batch"], row["rounds"]) == ("jax", "b", 2, 1)
        passes = 3 if row["mode"] == "training" else 1
        flops = 2 * passes * 2 * complexity(TINY, image_size=8).macs
        assert row["flops_per_second"] == pytest.approx(1e3 * flops / row["median_ms"])
        assert row["fraction_of_matrix_peak"] > 0
        assert row["planned_bytes"] > row["temporary_bytes"] > 0
        assert {"compile_seconds", "peak_bytes", "min_ms", "max_ms"} <= row.keys()
    (overhead,) = written["python_overhead"]
    assert overhead["arrays"] > 100
    assert overhead["median_ms"] > 0


def test_grouped_conv(tmp_path: Path) -> None:
    written, printed = run_benchmark(
        "grouped_conv.py",
        tmp_path / "convolutions.json",
        f"--network {TINY} --batch 1 --image-size 8 --rounds 1 --limit 0.1 "
        "--implementations native packed --pack-channels 32 --no-torch",
    )
    variants = ["dense", "native", "packed", "packed@32"]
    layers = layers_of(TINY, 8)
    assert [layer.label for layer in layers] == [
        "conv2 8x8x8",
        "conv3 8x8x16 /2",
        "conv4 4x4x32 /2",
    ]
    assert [(row["stage"], row["pass"], row["variant"]) for row in written["rows"]] == [
        (layer.stage, direction, variant)
        for layer in layers
        for direction in ("forward", "input grad", "kernel grad")
        for variant in variants
    ]
    assert all(row["median_ms"] > 0 and row["network"] == TINY for row in written["rows"])
    assert f"All 3x3 convolutions of {TINY}" in printed


def test_collectives_are_read_from_a_program() -> None:
    program = """
  %a = (f32[64]{0}, f32[3,3,4,8]{3,2,1,0}, /*index=2*/bf16[]) all-reduce(%x, %y, %z), channel_id=1
  %b = f32[10]{0} all-reduce-start(%w), replica_groups={{0,1}}, to_apply=%add
  %c = f32[10]{0} all-reduce-done(%b)
  ROOT %d = u8[16,2]{1,0} all-gather(%v), dimensions={0}
  %e = f32[7]{0} fusion(%all-reduce.1), calls=%all-gather.2
"""
    assert scaling.collectives(program) == {
        "all-reduce": (2, 4 * (64 + 288) + 2 + 40),
        "all-gather": (1, 32),
    }


def test_scaling_finds_faults() -> None:
    alone = {"devices": 1, "collectives": {}, "expected_bytes": [96, 100], "flops": 1000.0}
    good = alone | {"devices": 2, "collectives": {"all-reduce": (1, 98)}, "flops": 1001.0}
    assert scaling.faults_of(alone, alone) == []
    assert scaling.faults_of(good, alone) == []
    gathers = good | {"collectives": {"all-reduce": (1, 98), "all-gather": (3, 5000)}}
    assert scaling.faults_of(gathers, alone) == ["2 device(s): 3 all-gather of 5,000 bytes"]
    more = good | {"collectives": {"all-reduce": (2, 104)}, "flops": 2000.0}
    assert len(scaling.faults_of(more, alone)) == 2


def test_scaling_on_two_devices(tmp_path: Path) -> None:
    written, printed = run_benchmark(
        "scaling.py",
        tmp_path / "scaling.json",
        f"--model {TINY} --image-size 8 --images-per-device 2 --devices 1 2",
    )
    assert "fault" not in printed
    assert [row["devices"] for row in written["rows"]] == [1, 2]
    for row in written["rows"]:
        assert row["faults"] == []
        assert row["flops"] > 0
        assert row["temporary_bytes"] > 0
    assert list(written["rows"][1]["collectives"]) == ["all-reduce"]
    assert written["rows"][1]["expected_bytes"][1] > 4 * complexity(TINY).params


def test_interleaved_variants_are_waited_for_in_their_own_way() -> None:
    waited: list[str] = []
    measure.interleave(
        {"ours": lambda: jax.numpy.zeros(1), "theirs": lambda: "result"},
        rounds=2,
        limit=0.1,
        waits={"theirs": lambda result: waited.append(result)},
    )
    assert set(waited) == {"result"}


def test_a_variant_that_fails_does_not_stop_the_others() -> None:
    def fail() -> None:
        raise MemoryError("too large\nand more of it")

    variants = {"large": fail, "small": lambda: jax.numpy.zeros(1)}
    failures: dict[str, str] = {}
    timings = measure.interleave(variants, rounds=1, limit=0.1, failures=failures)
    assert list(timings) == ["small"]
    assert failures == {"large": "MemoryError: too large"}
    with pytest.raises(MemoryError):
        measure.interleave(variants, rounds=1, limit=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [TINY, "resnet50", "resnext50_32x4d"])
def test_torch_networks_have_our_parameters(model: str) -> None:
    pytest.importorskip("torch")
    from benchmarks import torch_resnext, torch_step

    setting = Setting(model, "float32", 1)
    torch_step.make_network(setting)  # raises where they differ
    network = torch_resnext.build(model, setting.classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == setting.cost.params


def test_gpu_suite_is_a_script_with_help() -> None:
    result = run("bash", "-n", SUITE)
    assert result.returncode == 0, result.stderr
    result = run(SUITE, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage:")


def test_gpu_suite_goes_on_after_a_failure(tmp_path: Path) -> None:
    """With a Python that prints its arguments, and fails for one network."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$@"\ncase "$*" in *"--models resnext101_64"*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    result = run(SUITE, tmp_path / "results", PYTHON=str(python))
    assert result.returncode == 1, result.stderr
    summary = (tmp_path / "results" / "summary.txt").read_text()
    assert re.findall(r"(\w+): (done|failed)", summary) == [
        ("price", "done"),
        ("small", "done"),
        ("large", "failed"),
        ("conv_small", "done"),
        ("conv_large", "done"),
        ("forms_bc", "done"),
        ("forms_ac", "done"),
    ]
    one = run(SUITE, tmp_path / "one", "forms_ac", PYTHON=str(python))
    assert one.returncode == 0
    assert os.listdir(tmp_path / "one").count("forms_ac.txt") == 1
    assert "large" not in (tmp_path / "one" / "summary.txt").read_text()
