"""The benchmarks run and write what they promise; no test looks at a time."""

import argparse
import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from benchmarks import hlo, input_colour, input_pipeline, measure, plain_flax, scaling
from benchmarks.conv_layers import layers_of, network_name
from benchmarks.input_variants import IMAGE_SIZE, VARIANTS, batches_of
from benchmarks.input_worker import Worker, WorkerError, read_images
from benchmarks.program import Setting
from resnext_jax.data.augment import vary_colour, vary_lighting
from resnext_jax.models import complexity
from tests.programs import ROOT, xla_flags

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
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags()} | more,
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
    "name",
    [
        "aot.py",
        "block_forms.py",
        "detection.py",
        "detection_steps.py",
        "grouped_conv.py",
        "input_pipeline.py",
        "scaling.py",
        "train_step.py",
    ],
)
def test_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: {name}")
    assert "--json" in output


@pytest.mark.slow
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
        "--implementations native packed grouped_packs --pack-channels 32 --no-torch",
    )
    variants = ["dense", "native", "packed", "grouped_packs", "packed@32", "grouped_packs@32"]
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
  %f = ((f32[5]{0:T(8,128)}, f32[2,3]{1,0}), (f32[5]{0}, f32[2,3]{1,0}), u32[]) all-reduce-start(%s)
  %g = ((f32[9]{0}), f32[9]{0}) all-reduce-start(%t), channel_id=3
  ROOT %d = u8[16,2]{1,0} all-gather(%v), dimensions={0}
  %e = f32[7]{0} fusion(%all-reduce.1), calls=%all-gather.2
"""
    assert hlo.collectives(program) == {
        "all-reduce": (4, 4 * (64 + 288) + 2 + 40 + 4 * (5 + 6) + 4 * 9),
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_input_pipeline(tmp_path: Path) -> None:
    """Without TensorFlow, which is in no environment of this repository."""
    json_file = tmp_path / "input.json"
    options = "--images 2 --batch-size 2 --batches 1 --rounds 1 --limit 1 --workers 0"
    script = BENCHMARKS / "input_pipeline.py"
    result = run(sys.executable, script, "--json", json_file, *options.split())
    assert result.returncode == 0, result.stderr
    assert "tf.data is left out" in result.stdout
    assert "16 such cores beside a GPU" in result.stdout
    written = json.loads(json_file.read_text())
    cores = len(os.sched_getaffinity(0))
    expected = [
        ("transform alone", 1),
        ("transform alone, antialiased", 1),
        ("Pillow", 1),
        ("pipeline, threads", 1),
    ]
    expected += [("pipeline, threads", cores)] if cores > 1 else []
    assert [(row["variant"], row["cores"]) for row in written["rows"]] == expected
    for row in written["rows"]:
        assert row["images_per_second"] == pytest.approx(2 / row["median_ms"] * 1e3)
        assert row["images_per_core_second"] > 0
        assert row["against_tfdata"] is None
    assert written["colour"].keys() == {"device", "host"}
    assert "grain" in written["versions"]


def test_input_pipeline_says_where_tensorflow_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a Python that has nothing, and one that is none."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    for path, reason in ((python, "has no TensorFlow"), (tmp_path / "none", "cannot run")):
        with pytest.raises(SystemExit, match="2"):
            input_pipeline.make_parser().parse_args(["--tensorflow-python", str(path)])
        assert reason in capsys.readouterr().err


def test_tfdata_needs_nothing_but_tensorflow(tmp_path: Path) -> None:
    """With a TensorFlow that is empty, and a Python without its packages."""
    (tmp_path / "tensorflow.py").touch()
    script = BENCHMARKS / "input_tfdata.py"
    result = run(sys.executable, "-S", script, "--help", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "--batch-size" in result.stdout


def test_input_pipeline_variants_share_what_they_are_given() -> None:
    variants = input_pipeline.variants_of([0, 4], 2, "tf/bin/python")
    assert [(variant.name, variant.cores) for variant in variants][3:] == [
        ("pipeline, threads", 1),
        ("tf.data", 1),
        ("pipeline, threads", 2),
        ("pipeline, 4 workers", 2),
        ("tf.data", 2),
    ]
    assert variants[-1].command[0] == "tf/bin/python"
    on_one_core = input_pipeline.variants_of([0, 4], 1, "tf/bin/python")
    assert len(on_one_core) == len(set(on_one_core)) == 6


def test_photographs_are_like_imagenet_s(tmp_path: Path) -> None:
    sizes = input_pipeline.write_photograph_parts(tmp_path, 3, quality=90)
    images = read_images(tmp_path)
    assert [len(image) for image in images] == sizes
    assert len(set(images)) == 3
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
    again = tmp_path / "again"
    again.mkdir()
    input_pipeline.write_photograph_parts(again, 3, quality=90)
    assert read_images(again) == images


@pytest.mark.parametrize("variant", VARIANTS)
def test_input_variants_make_training_images(variant: str) -> None:
    """Of an orange picture, lighter to the right: windows differ, and half of them are mirrored."""
    picture = np.full((375, 500, 3), (200, 100, 30), np.int64)
    picture += np.linspace(-30, 30, 500, dtype=np.int64)[:, None]
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=90)
    with contextlib.closing(batches_of(variant, [file.getvalue()], 16)) as batches:
        images = np.stack([next(batches), next(batches)])
    assert images.shape == (2, 16, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert images.dtype == np.uint8
    np.testing.assert_allclose(images.mean((0, 1, 2, 3)), (200, 100, 30), atol=8)
    slopes = images[..., -1, :].mean((2, 3)) - images[..., 0, :].mean((2, 3))
    assert len(set(slopes.ravel())) > 16
    assert 6 < (slopes < 0).sum() < 26


def test_workers_stand_still_between_their_turns() -> None:
    """With a process that makes batches of no images, and busily reads ahead."""
    program = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from benchmarks.input_worker import serve

class Batch:
    shape = (1,)
    class dtype:
        name = "uint8"

def batches():
    while True:
        yield Batch

def be_busy():
    while True:
        pass

threading.Thread(target=be_busy, daemon=True).start()
serve(batches(), {"nothing": "1.0"})
"""
    core = min(os.sched_getaffinity(0))
    with Worker([sys.executable, "-c", program, str(ROOT)], [core]) as worker:
        assert worker.about == {"shape": [1], "dtype": "uint8", "versions": {"nothing": "1.0"}}
        assert os.sched_getaffinity(worker.pid) == {core}
        worker.run(3)
        before = worker.usage()
        assert before.batches == 3
        time.sleep(0.2)
        assert worker.usage().cpu_seconds - before.cpu_seconds < 0.05
        worker.run(2)
        after = worker.usage()
        assert after.batches == 5
        assert after.cpu_seconds > before.cpu_seconds
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_a_worker_that_fails_is_told_by_its_command() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(WorkerError, match=r"see above: .*exit"):
        Worker([sys.executable, "-c", "exit(3)"], [min(before)])
    assert os.sched_getaffinity(0) == before
    reply = """print('{"shape": [1], "dtype": "uint8", "versions": {}}', flush=True)"""
    with Worker([sys.executable, "-c", reply], [min(before)]) as worker:
        time.sleep(0.2)  # either it has ended before its turn, or it ends in it
        with pytest.raises(WorkerError, match="see above"):
            worker.run(1)


def test_colour_on_the_host_is_the_device_s() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 6, 7, 3), np.uint8)
    amounts = rng.random((8, 3), np.float32)
    lighting = rng.standard_normal((8, 3), np.float32)
    coloured = vary_colour(
        jax.numpy.asarray(images, jax.numpy.float32),
        jax.numpy.asarray(amounts),
        (input_colour.COLOUR,) * 3,
    )
    expected = vary_lighting(coloured, jax.numpy.asarray(input_colour.LIGHTING * lighting))
    components = input_colour.lighting_components()
    for index, image in enumerate(images):
        varied = input_colour.vary_on_host(image, amounts[index], lighting[index], components)
        np.testing.assert_allclose(varied, expected[index], atol=0.01)


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


RELATIVES = ("resnet18", "cifar_resnet20", "resnet50d", "seresnext50_32x4d", "resnet200")


@pytest.mark.parametrize("model", RELATIVES)
def test_no_plain_network_stands_for_another(model: str) -> None:
    with pytest.raises(ValueError, match=f"'{model}' is not among the networks for comparison"):
        plain_flax.Network(model, "float32", 10, nnx.Rngs(0))


def test_plain_flax_has_no_cifar_stem() -> None:
    with pytest.raises(ValueError, match="'resnext29_8x64d' has CIFAR's stem"):
        plain_flax.Network("resnext29_8x64d", "float32", 10, nnx.Rngs(0))


def test_convolutions_of_basic_blocks_are_not_listed() -> None:
    assert network_name("seresnext50d_32x4d") == "seresnext50d_32x4d"
    with pytest.raises(argparse.ArgumentTypeError, match="'resnet18' has basic blocks"):
        network_name("resnet18")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", RELATIVES)
def test_torch_s_networks_stand_for_no_other_either(model: str) -> None:
    pytest.importorskip("torch")
    from benchmarks import torch_resnext

    with pytest.raises(ValueError, match="not among the networks for comparison"):
        torch_resnext.build(model, 1000)


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
        ("lowerings", "done"),
        ("forms_bc", "done"),
        ("forms_ac", "done"),
        ("detection", "done"),
    ]
    one = run(SUITE, tmp_path / "one", "forms_ac", PYTHON=str(python))
    assert one.returncode == 0
    assert os.listdir(tmp_path / "one").count("forms_ac.txt") == 1
    assert "large" not in (tmp_path / "one" / "summary.txt").read_text()


@pytest.mark.slow
def test_checkpointing(tmp_path: Path) -> None:
    path = tmp_path / "checkpointing.json"
    options = f"--every 2 --rounds 2 --folder {tmp_path} --json {path}".split()
    result = run(sys.executable, BENCHMARKS / "checkpointing.py", *options)
    assert result.returncode == 0, result.stderr
    stored = json.loads(path.read_text())
    assert [row["checkpoint"] for row in stored["rows"]] == ["none", "one in 2 steps"]
    assert "until it is whole where nothing else is done" in result.stdout
