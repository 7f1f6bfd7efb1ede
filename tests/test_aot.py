"""Steps compiled for chips that are not there, and what is read from a program's text."""

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import aot, hlo, plain_flax, run_steps
from resnext_jax.config import build
from resnext_jax.data.pipeline import eval_batches, train_batches
from resnext_jax.errors import UserError
from resnext_jax.models import complexity
from resnext_jax.parallel.mesh import make_mesh
from tests.evaluation.small_test_sets import images_of, small_config

ROOT = Path(__file__).parents[1]
H100 = ROOT / "benchmarks" / "targets" / "h100.txtpb"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler (pip install 'jax[tpu]')"
)
needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="no CUDA compiler"
)

# Written in the manner of a TPU's program: two layers, a loop of three rounds, and a branch.
PROGRAM = """\
HloModule jit_local_step, is_scheduled=true

FileNames
1 "step.py"

%fused_computation.1 (param_0: bf16[8,4]) -> bf16[8,4] {
  %param_0 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %convolution.1 = bf16[8,4]{1,0} convolution(%param_0, %param_0), dim_labels=bf_io->bf, \
metadata={op_name="jit(local_step)/shard_map/jvp(conv3)/conv_general_dilated" stack_frame_id=7}
  ROOT %multiply.1 = bf16[8,4]{1,0} multiply(%convolution.1, %param_0)
}

%fused_computation.2 (param_0: f32[8]) -> f32[8] {
  %add.1 = f32[8]{0} add(%param_0, %param_0), metadata={op_name="jit(local_step)/optimizer/add"}
  ROOT %bitcast.1 = f32[2,4]{1,0} bitcast(%add.1)
}

%body.1 (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %copy.1 = f32[8]{0} copy(%x), metadata={op_name="jit(local_step)/transpose(jvp(conv2))/while/\
body/batch_norm/sub"}, backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %tuple.1 = (s32[], f32[8]{0}) tuple(%i, %copy.1)
}

%condition.1 (arg: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(3)
  ROOT %compare.1 = pred[] compare(%i, %n), direction=LT, \
backend_config={"estimated_cycles":"100000"}
}

%branch.1 (arg: f32[8]) -> f32[8] {
  ROOT %broadcast.1 = f32[8]{0} broadcast(%one), dimensions={}, \
metadata={op_name="jit(local_step)/input/mul"}, backend_config={"estimated_cycles":"5"}
}

%branch.2 (arg: f32[8]) -> f32[8] {
  ROOT %negate.1 = f32[8]{0} negate(%arg), backend_config={"estimated_cycles":"3"}
}

ENTRY %main.1 (param: f32[8], param.1: (f32[8])) -> f32[8] {
  %fusion.1 = (bf16[8,4]{1,0:T(8,128)(2,1)}, /*index=1*/f32[4]{0}) fusion(%a), kind=kOutput, \
calls=%fused_computation.1, metadata={op_name="jit(local_step)/jvp(conv3)/batch_norm/reduce_sum"}, \
backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"1000"}}
  %fusion.2 = f32[8]{0} fusion(%b), kind=kLoop, calls=%fused_computation.2, \
backend_config={"estimated_cycles":"200"}
  %while.1 = (s32[], f32[8]{0}) while(%tuple), condition=%condition.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0"}}
  %conditional.1 = f32[8]{0} conditional(%p, %c, %c), branch_computations={%branch.1, %branch.2}
  %all-reduce.1 = (f32[64]{0}, f32[3,3,4,8]{3,2,1,0}) all-reduce(%x, %y), to_apply=%add
  ROOT %copy-start.1 = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%e), \
backend_config={"estimated_cycles":"11"}
}
"""


@pytest.mark.parametrize("known", ['"known_trip_count":{"n":"3"},', ""])
def test_cycles_are_added_up_by_source_and_kind(known: str) -> None:
    """A loop's body counts each time, and its condition not; a convolution by its own scope.

    XLA may say how often, else it is read from the condition. A fusion without a name has that of
    its last operation that has one.
    """
    program = PROGRAM.replace('"known_trip_count":{"n":"3"},', known)
    assert hlo.estimated_cycles(program) == {
        ("conv3", "convolutions"): 1000,
        ("optimizer", "other fusions"): 200,
        ("batch_norm", "copies"): 3 * 7,
        ("input", "broadcasts"): 5,
        ("other", "others"): 3,
        ("other", "copies"): 11,
    }
    assert hlo.collectives(PROGRAM) == {"all-reduce": (1, 4 * (64 + 288))}
    assert hlo.estimated_cycles("") == {}


# Written in the manner of a GPU's program: a convolution, batch norm's sums, weights cut out of
# what was all-reduced, and a loop of three rounds.
GPU_PROGRAM = """\
HloModule jit_local_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%x, %y)
}

%fused_reduce (p.0: bf16[64,8], p.1: f32[8]) -> (f32[8], bf16[64,8]) {
  %p.0 = bf16[64,8]{1,0} parameter(0)
  %p.1 = f32[8]{0} parameter(1)
  %convert.1 = f32[64,8]{1,0} convert(%p.0)
  %broadcast.1 = f32[64,8]{1,0} broadcast(%p.1), dimensions={1}
  %subtract.1 = f32[64,8]{1,0} subtract(%convert.1, %broadcast.1)
  %reduce.1 = f32[8]{0} reduce(%subtract.1, %zero), dimensions={0}, to_apply=%add
  %convert.2 = bf16[64,8]{1,0} convert(%subtract.1)
  ROOT %tuple.1 = (f32[8]{0}, bf16[64,8]{1,0}) tuple(%reduce.1, %convert.2)
}

%wrapped_slice (p.2: f32[1000]) -> f32[8] {
  %p.2 = f32[1000]{0} parameter(0)
  ROOT %slice.1 = f32[8]{0} slice(%p.2), slice={[0:8]}, \
metadata={op_name="jit(local_step)/optimizer/slice"}
}

%fused_update (p.3: f32[1000], p.4: f32[2,8]) -> f32[8] {
  %p.3 = f32[1000]{0} parameter(0)
  %p.4 = f32[2,8]{1,0} parameter(1)
  %multiply.1 = f32[1000]{0} multiply(%p.3, %quarters)
  %slice.2 = f32[8]{0} slice(%multiply.1), slice={[8:16]}
  %slice.3 = f32[8]{0} slice(%multiply.1), slice={[16:24]}
  %broadcast.2 = f32[2,8]{1,0} broadcast(%slice.2), dimensions={1}
  ROOT %add.2 = f32[2,8]{1,0} add(%p.4, %broadcast.2)
}

%fused_stacking (p.5: f32[3,8], p.6: f32[8], p.7: s32[]) -> f32[3,8] {
  %p.5 = f32[3,8]{1,0} parameter(0)
  %p.6 = f32[8]{0} parameter(1)
  %p.7 = s32[] parameter(2)
  %bitcast.1 = f32[1,8]{1,0} bitcast(%p.6)
  ROOT %update.2 = f32[3,8]{1,0} dynamic-update-slice(%p.5, %bitcast.1, %p.7, %none)
}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %i = s32[] get-tuple-element(%arg), index=0
  %all = f32[3,8]{1,0} get-tuple-element(%arg), index=1
  %exponential.1 = f32[8]{0} exponential(%state), metadata={op_name="jit(local_step)/input/exp"}
  %stacked.1 = f32[3,8]{1,0} fusion(%all, %exponential.1, %i), kind=kLoop, calls=%fused_stacking, \
metadata={op_name="jit(local_step)/conv2/dynamic_update_slice"}
  ROOT %tuple.2 = (s32[], f32[8]{0}) tuple(%i, %exponential.1)
}

ENTRY %main (a: bf16[64,8], b: f32[8], c: f32[2,8]) -> f32[2,8] {
  %a = bf16[64,8]{1,0} parameter(0)
  %state = f32[8]{0} parameter(1), metadata={op_name="state.params[\\'b\\']"}
  %c = f32[2,8]{1,0} parameter(2)
  %conv.1 = (bf16[64,8]{1,0}, u8[0]{0}) custom-call(%a, %a), \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(local_step)/jvp(conv2)/conv"}
  %element.1 = bf16[64,8]{1,0} get-tuple-element(%conv.1), index=0
  %sums.1 = (f32[8]{0}, /*index=1*/bf16[64,8]{1,0}) fusion(%element.1, %state), kind=kInput, \
calls=%fused_reduce, metadata={op_name="jit(local_step)/jvp(conv2)/batch_norm/reduce_sum"}
  %all-reduce-start.1 = ((f32[1000]{0}), f32[1000]{0}) all-reduce-start(%flat), to_apply=%add
  %done.1 = f32[1000]{0} all-reduce-done(%all-reduce-start.1)
  %wrapped_slice.1 = f32[8]{0} fusion(%done.1), kind=kLoop, calls=%wrapped_slice
  %while.1 = (s32[], f32[8]{0}) while(%start), condition=%enough, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %update.1 = f32[2,8]{1,0} fusion(%done.1, %c), kind=kLoop, calls=%fused_update, \
metadata={op_name="jit(local_step)/optimizer/add"}
}
"""


def test_kernels_are_counted_with_what_they_read_and_write() -> None:
    """Of the 1,000 numbers that were all-reduced a slice takes 8, and the update 16.

    Of the 3 x 8 numbers of a loop each round writes 8.
    """
    image, vector = 2 * 64 * 8, 4 * 8
    assert hlo.kernels(GPU_PROGRAM) == {
        ("conv2", "convolutions"): (1, 2 * image),
        ("batch_norm", "reductions"): (1, 2 * image + 2 * vector),
        ("optimizer", "copies"): (1, 2 * vector),
        ("input", "loops"): (3, 3 * 2 * vector),
        ("conv2", "copies"): (3, 3 * (2 * vector + 4)),
        ("optimizer", "loops"): (1, 2 * vector + 2 * 2 * vector),
    }
    assert hlo.kernels("") == {}


@pytest.mark.parametrize(
    ("scopes", "source"),
    [
        ("jit(local_step)/shard_map/transpose(jvp(conv4))/conv_general_dilated", "conv4"),
        ("jit(local_step)/transpose(jvp(conv2))/while/body/batch_norm/mul", "batch_norm"),
        ("jit(local_step)/jvp(stem)/max_pool/max", "max_pool"),
        ("jit(local_step)/jvp(stem)/jit(relu)/max", "stem"),
        ("jit(local_step)/jvp()/log", "other"),
        ("", "other"),
    ],
)
def test_source_of_an_operation(scopes: str, source: str) -> None:
    assert hlo.source_of(scopes) == source


def test_another_collective_is_a_fault() -> None:
    assert aot.faults_of({"collectives": {"all-reduce": (3, 100)}}) == []
    found = {"collectives": {"all-reduce": (3, 100), "all-gather": (2, 5000)}}
    assert aot.faults_of(found) == ["2 all-gather of 5,000 bytes"]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("auto", ("auto", None)),
        ("native", ("native", None)),
        ("packed@64", ("packed", 64)),
        ("grouped_packs@128", ("grouped_packs", 128)),
    ],
)
def test_lowerings_of_the_command_line(text: str, parsed: tuple[str, int | None]) -> None:
    assert aot.lowering(text) == parsed
    for wrong in ("fast", "packed", "packed@", "packed@x", "packed@0", f"{text}@", "native@64"):
        with pytest.raises(argparse.ArgumentTypeError, match="auto, native, packed@CHANNELS"):
            aot.lowering(wrong)


def small_run(**changes: Any) -> ConfigDict:
    config = small_config()
    config.batch_size, config.bn_group_size = 16, 8
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("parts", "changes"),
    [
        (1, {}),
        (2, {"accumulate_steps": 2, "data.on_error": "skip"}),
        (1, {"data.random_erase": 0.5, "data.cutmix": 1.0}),
    ],
)
def test_the_step_takes_the_batches_of_a_run(parts: int, changes: dict[str, Any]) -> None:
    config = small_run(**changes)
    mesh = make_mesh(16, 8, jax.devices()[:2], accumulate_steps=parts)
    _, _, batch = run_steps.train_step(config, mesh)
    (real,) = train_batches(
        images_of([(16, 16)], 16),
        build.train_transform(config),
        seed=0,
        batch_size=16,
        positions=np.arange(16),
        start_step=0,
        num_steps=1,
        on_error=config.data.on_error,
    )
    leading = (2, 8) if parts == 2 else (16,)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: ((*leading, *x.shape[1:]), x.dtype) for name, x in real.items()
    }


@pytest.mark.parametrize(("crops", "on_error"), [("centre", "stop"), ("ten", "skip")])
def test_the_eval_step_takes_the_batches_of_an_evaluation(crops: str, on_error: str) -> None:
    config = small_run(**{"data.eval_crops": crops, "data.on_error": on_error})
    *_, batch = run_steps.eval_step(config, make_mesh(16, 8, jax.devices()[:2]))
    real = next(
        eval_batches(
            images_of([(16, 16)], 16),
            build.eval_transform(config, crops=crops),
            batch_size=16,
            positions=np.arange(16),
            on_error=on_error,
        )
    )
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in real.items()
    }


@pytest.mark.parametrize(("training", "crops", "passes"), [(True, "centre", 3), (False, "ten", 10)])
def test_operations_are_those_of_the_network(training: bool, crops: str, passes: int) -> None:
    config = small_run(**{"data.eval_crops": crops})
    step = run_steps.train_step if training else run_steps.eval_step
    *_, batch = step(config, make_mesh(16, 8, jax.devices()[:2]))
    cost = complexity("resnext11_2x4d", image_size=8, stem_width=8, template_width=16)
    expected = 2 * 16 * passes * cost.macs
    assert run_steps.network_flops(config, batch, training=training) == expected


def test_several_hosts_send_their_requests_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Host:
        process_index: int

    class Mesh:
        size = 4
        devices = np.array([[Host(0), Host(0)], [Host(1), Host(1)]])

    assert run_steps.needs_requests(Mesh())  # type: ignore[arg-type]
    assert not run_steps.needs_requests(make_mesh(16, 8))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if "CACHE" not in name}
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "aot.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


SMALL = (
    "--per-chip=8",
    f"--config={ROOT}/configs/digits_resnext29.py",
    "--set=model.name=resnext11_2x4d",
    "--set=bn_group_size=8",
)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    cuda = ("--platform=cuda", "--topology=1x1x4")
    result = run(*cuda, *SMALL, f"--target={tmp_path}/none")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: --target={tmp_path}/none cannot be")
    with pytest.raises(UserError, match="--topology=nonsense cannot be compiled for: "):
        aot.find_chips("tpu", "nonsense", H100)


@needs_libtpu
@pytest.mark.usefixtures("onednn")
def test_a_step_for_tpus_calls_no_library_of_the_cpu() -> None:
    """In float32, where a step on this machine calls oneDNN."""
    config = small_run()
    mesh = build.training_mesh(config, aot.find_chips("tpu", "v5e:2x2", H100).devices)
    step, *arguments = run_steps.train_step(config, mesh)
    assert "onednn" not in step.lower(*arguments).as_text()


def test_the_plain_flax_network_is_resnext_50() -> None:
    """By the arrays that it learns: 25,028,904 numbers, in as many arrays as ours."""
    mesh = make_mesh(8, 8, jax.devices()[:2])
    _, params, *_ = plain_flax.train_step("resnext50_32x4d", "float32", mesh, 8)
    arrays = jax.tree.leaves(params)
    assert (sum(x.size for x in arrays), len(arrays)) == (25_028_904, 161)


@needs_libtpu
def test_the_plain_flax_step_keeps_its_state() -> None:
    mesh = make_mesh(8, 2, aot.find_chips("tpu", "v5e:2x2", H100).devices)
    step, *state, batch = plain_flax.train_step("resnet50", "bfloat16", mesh, 8, image_size=32)
    results = jax.eval_shape(step, *state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), results[:3]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tuple(state)
    )


@needs_libtpu
def test_chips_have_the_memory_that_is_published() -> None:
    for topology, count, size in (("v4:2x2x1", 4, 32e9), ("v6e:2x4", 8, 32e9), ("v3:2x2", 8, None)):
        chips = aot.find_chips("tpu", topology, H100)
        assert (len(chips.devices), chips.memory) == (count, size)


@needs_libtpu
def test_a_small_network_compiles_for_tpus(tmp_path: Path) -> None:
    out = tmp_path / "aot.json"
    result = run("--platform=tpu", "--topology=v5e:2x2", *SMALL, f"--json={out}")
    assert result.returncode == 0, result.stderr
    assert "collectives: 1 all-reduce of" in result.stdout
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["mesh"], row["faults"]) == ({"group": 4, "member": 1}, [])
    assert row["chip_memory_bytes"] == 16e9 > sum(row["memory_bytes"].values()) > 0
    cycles = row["estimated_cycles"]
    assert {"input", "stem", "conv2", "conv3", "conv4", "batch_norm", "optimizer"} <= cycles.keys()
    assert sum(cycles["conv2"].values()) > cycles["conv2"]["convolutions"] > 0


def small_step(topology: str, bn_group_size: int) -> dict[str, Any]:
    """Compile a small network's training step for TPUs, eight images a chip."""
    devices = aot.find_chips("tpu", topology, H100).devices
    config = small_run(batch_size=8 * len(devices), bn_group_size=bn_group_size)
    args = argparse.Namespace(platform="tpu", what="train", lowering=("auto", None))
    return aot.compile_step(args, config, build.training_mesh(config, devices))


@needs_libtpu
@pytest.mark.parametrize(
    ("few", "many", "bn_group_size"),
    [("v5p:2x2x2", "v5p:16x16x24", 8), ("v5e:4x4", "v5e:16x16", 32)],
)
def test_collectives_do_not_grow_with_the_chips(few: str, many: str, bn_group_size: int) -> None:
    """From 8 chips to 6,144; and, where four chips share a batch-norm group, from 16 to 256."""
    small, large = small_step(few, bn_group_size), small_step(many, bn_group_size)
    assert small["collectives"] == large["collectives"]
    assert aot.faults_of(large) == []
    for part in ("arguments", "temporary"):
        assert small["memory_bytes"][part] == pytest.approx(large["memory_bytes"][part], rel=0.01)


@needs_cuda_plugin
def test_a_small_network_compiles_for_gpus(tmp_path: Path) -> None:
    out = tmp_path / "aot.json"
    cuda = ("--platform=cuda", "--topology=1x1x4", "--what=eval")
    result = run(*cuda, *SMALL, f"--json={out}")
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(out.read_text())["rows"]
    # An evaluation step's records stay with their images.
    assert row["collectives"] == {}
    assert (row["device_kind"], row["chip_memory_bytes"]) == ("NVIDIA H100 80GB HBM3", 80e9)
    assert (row["estimated_cycles"], row["faults"]) == ({}, [])
    assert (row["memory_bandwidth"], row["peak_flops"]) == (3.35e12, 989.4e12)
    kernels = row["kernels"]
    count, size = kernels["conv2"]["convolutions"]
    assert count >= 3
    assert size > 0
    assert "kernels on each chip / MB that they read and write" in result.stdout
    assert re.search(r"^limits of a step: \S+ ms to start [\d,]+ kernels", result.stdout, re.M)
