"""Checkpoints give back what was saved, and say so when they cannot."""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnext_jax.errors import CheckpointError
from resnext_jax.models.variables import split
from resnext_jax.optim.ema import EmaSpec
from resnext_jax.parallel.distributed import connected
from resnext_jax.parallel.mesh import make_mesh, replicated_sharding
from resnext_jax.runs import manifest, packing
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import StepSpec
from tests.training.hosts import run_hosts
from tests.training.tiny import TinyRun, restore_state, save_state, tiny_model

RUN = {"best": {"step": 2, "top1_error": 12.5}, "rows": [{"loss": 0.1}, {}], "none": None}


def moved(state: TrainState, step: int) -> TrainState:
    """Make a state whose every array is recognisably of that step."""
    new = jax.tree.map(lambda array: (array + step).astype(array.dtype), state)
    return dataclasses.replace(new, step=jnp.zeros_like(state.step) + step)


def state_at(step: int, run: TinyRun) -> TrainState:
    return jax.device_put(moved(run.state, step), replicated_sharding(run.mesh))


def small_state(step: int, numbers: int = 10, ema: bool = False) -> TrainState:
    """Make a state of few arrays, quick to save."""
    params = {"w": jnp.arange(numbers, dtype=jnp.float32), "b": jnp.ones((2, 2), jnp.bfloat16)}
    stats = {"m": jnp.ones(3)}
    return moved(TrainState.create(params, stats, optax.sgd(0.1, momentum=0.9), ema=ema), step)


def saved(workdir: Path, *steps: int, keep: int = 3, **options: Any) -> Path:
    """Save small states; return the folder of the last one."""
    with contextlib.closing(Checkpoints(workdir, keep=keep, **options)) as checkpoints:
        for step in steps:
            save_state(checkpoints, small_state(step), {"step": step})
    return workdir / "checkpoints" / str(steps[-1])


def folders(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def same(a: Any, b: Any) -> bool:
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)
    return all(jax.tree.leaves(equal))


@contextlib.contextmanager
def opened(workdir: Path, **options: Any) -> Iterator[tuple[Checkpoints, list[str]]]:
    warnings: list[str] = []
    with contextlib.closing(Checkpoints(workdir, warn=warnings.append, **options)) as checkpoints:
        yield checkpoints, warnings


@pytest.fixture(scope="module")
def run() -> TinyRun:
    return TinyRun(1, None, dtype="float32", spec=StepSpec(ema=EmaSpec(decay=0.9)))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, run: TinyRun) -> Path:
    """A workdir with a checkpoint of `run` at step 7; to be read only."""
    workdir = tmp_path_factory.mktemp("run")
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        save_state(checkpoints, state_at(7, run), RUN)
    return workdir


def test_gives_back_every_array_bit_for_bit(run_folder: Path, run: TinyRun) -> None:
    with opened(run_folder) as (checkpoints, warnings):
        assert checkpoints.latest_step() == 7
        restored, notes = restore_state(checkpoints, run.state)
    assert notes == RUN
    assert int(restored.step) == 7
    assert same(restored, state_at(7, run))
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(run.state))
    assert not warnings


def test_long_vectors_are_stored_in_parts_of_megabytes(tmp_path: Path) -> None:
    """Of a prime number of elements, such as a network may have; then read on two devices."""
    weights = jnp.arange(4_194_319, dtype=jnp.float32)
    state = TrainState.create({"a": weights}, {}, optax.identity())
    with opened(tmp_path) as (checkpoints, _):
        save_state(checkpoints, state, RUN)
        checkpoints.wait()
        sharding = replicated_sharding(make_mesh(2, 1, jax.devices()[:2]))
        restored, _ = restore_state(checkpoints, jax.device_put(state, sharding))
    assert same(jax.device_get(restored), jax.device_get(state))
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert len(files) < 100


def test_restores_onto_other_devices(run_folder: Path, run: TinyRun) -> None:
    eight = TinyRun(8, None, dtype="float32", spec=StepSpec(ema=EmaSpec(decay=0.9)))
    with opened(run_folder) as (checkpoints, _):
        restored, _ = restore_state(checkpoints, eight.state)
    for array, like in zip(jax.tree.leaves(restored), jax.tree.leaves(eight.state), strict=True):
        assert array.sharding == like.sharding
        assert len(array.sharding.device_set) == 8
    expected = jax.device_get(state_at(7, run))
    assert same(jax.device_get(restored), expected)
    # Each device has memory of its own, which the next step may reuse.
    restored = jax.jit(lambda s: jax.tree.map(lambda x: x + x, s), donate_argnums=0)(restored)
    for array, before in zip(
        jax.tree.leaves(restored.params), jax.tree.leaves(expected.params), strict=True
    ):
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, before + before)


@pytest.mark.parametrize("ema", [False, True])
def test_restores_weights_alone_and_their_average_alone(
    run_folder: Path, run: TinyRun, ema: bool
) -> None:
    sharding = replicated_sharding(run.mesh)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (run.state.params, run.state.batch_stats),
    )
    with opened(run_folder, read_only=True) as (checkpoints, _):
        assert checkpoints.has_ema()
        weights = checkpoints.restore_weights(*shapes, step=7, ema=ema)
    expected = state_at(7, run)
    assert expected.ema is not None
    wanted = (expected.params, expected.batch_stats)
    assert same(weights, (expected.ema["params"], expected.ema["batch_stats"]) if ema else wanted)


def test_reads_nothing_but_what_is_asked_for(tmp_path: Path) -> None:
    folder = saved(tmp_path, 3)
    for path in (folder / "training").rglob("d/*"):
        path.unlink()
    manifest.write_manifest(folder)  # whole again, were it not for Orbax
    state = small_state(3)
    with opened(tmp_path, read_only=True) as (checkpoints, _):
        params, _ = checkpoints.restore_weights(state.params, state.batch_stats)
        assert same(params, state.params)
        assert not checkpoints.has_ema()
        with pytest.raises(CheckpointError, match=r"checkpoint .*/3 has no average of the weights"):
            checkpoints.restore_weights(state.params, state.batch_stats, ema=True)
        with pytest.raises(CheckpointError, match=r"checkpoint .*/3 cannot be read") as caught:
            restore_state(checkpoints, state)
    assert "\n" not in str(caught.value)


def test_the_step_may_reuse_the_memory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, pack = threading.Event(), packing.pack

    def late(tree: Any) -> dict[str, np.ndarray]:
        assert release.wait(60)
        return pack(tree)

    monkeypatch.setattr(packing, "pack", late)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    state = small_state(5, numbers=1_000_000)
    expected = jax.tree.map(np.array, state)
    memory = state.params["w"].unsafe_buffer_pointer()
    with opened(tmp_path) as (checkpoints, _):
        save_state(checkpoints, state, {})
        for _ in range(3):
            state = overwrite(state)
            # It does: nothing of the checkpoint's stands in the way.
            assert state.params["w"].unsafe_buffer_pointer() == memory
        assert float(state.params["w"][0]) == -1
        release.set()
        checkpoints.wait()
        restored, _ = restore_state(checkpoints, small_state(0, numbers=1_000_000))
    assert same(jax.device_get(restored), expected)


def test_saves_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, write_manifest = threading.Event(), manifest.write_manifest

    def late(folder: Path) -> None:
        assert release.wait(60)
        write_manifest(folder)

    monkeypatch.setattr(manifest, "write_manifest", late)
    with opened(tmp_path) as (checkpoints, _):
        save_state(checkpoints, small_state(1), {})  # returns, though the writing hangs
        checkpoints.check()
        assert "1" not in folders(tmp_path)
        release.set()
        assert checkpoints.latest_step() == 1  # waits


def test_the_dictionary_is_that_of_the_moment_and_strict(tmp_path: Path) -> None:
    notes: dict[str, Any] = {"rows": [1]}
    with opened(tmp_path) as (checkpoints, _):
        save_state(checkpoints, small_state(1), notes)
        notes["rows"].append(2)
        assert restore_state(checkpoints, small_state(0))[1] == {"rows": [1]}
        save_state(checkpoints, small_state(2), {"loss": float("nan")})
        assert restore_state(checkpoints, small_state(0))[1] == {"loss": None}


def test_saves_a_step_once(tmp_path: Path) -> None:
    with opened(tmp_path) as (checkpoints, _):
        save_state(checkpoints, small_state(1), {"time": 1})
        save_state(checkpoints, small_state(1), {"time": 2})
        assert restore_state(checkpoints, small_state(0))[1] == {"time": 1}


def test_keeps_the_last_few_the_best_and_some_for_ever(tmp_path: Path) -> None:
    with opened(tmp_path, keep=2, keep_forever=lambda step: step % 5 == 0) as (checkpoints, _):
        for step in range(1, 10):
            save_state(checkpoints, small_state(step), {})
            if step in (2, 3):
                checkpoints.note_best(step)  # while it is being saved; 3 takes the place of 2
    assert folders(tmp_path) == {"3", "5", "8", "9"}


def test_keeps_the_old_ones_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    write_manifest = manifest.write_manifest

    def look(folder: Path) -> None:
        seen.append(sorted(folders(tmp_path)))
        write_manifest(folder)

    monkeypatch.setattr(manifest, "write_manifest", look)
    saved(tmp_path, 1, 2, 3, keep=1)
    assert seen == [["1.saving"], ["1", "2.saving"], ["2", "3.saving"]]
    assert folders(tmp_path) == {"3"}


def test_no_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with opened(tmp_path, read_only=True) as (checkpoints, _):
        assert checkpoints.latest_step() is None
        with pytest.raises(CheckpointError, match=r"no checkpoint in .*; train first"):
            restore_state(checkpoints, small_state(0))
    assert not (tmp_path / "checkpoints").exists()


def test_a_step_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    with opened(tmp_path) as (checkpoints, _):
        assert checkpoints.require_step(1) == 1
        with pytest.raises(CheckpointError, match=r"no checkpoint .*/3; .* have one: 1, 2\."):
            checkpoints.require_step(3)
        (tmp_path / "checkpoints" / "1" / "run.json").unlink()
        assert checkpoints.require_step(1) == 1  # hashed once is enough
    with (
        opened(tmp_path) as (checkpoints, _),
        pytest.raises(CheckpointError, match=r"checkpoint .*/1 is damaged: run.json is missing; "),
    ):
        checkpoints.require_step(1)


def test_another_model_is_one_sentence(run_folder: Path, run: TinyRun) -> None:
    _, params, batch_stats = split(tiny_model("float32", None))
    params = jax.device_put(params, replicated_sharding(run.mesh))
    params["extra"] = params.pop("fc.bias")
    params["fc.kernel"] = params["fc.kernel"][:, :3]
    with opened(run_folder, read_only=True) as (checkpoints, _):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore_weights(params, batch_stats)
        message = str(caught.value)
        assert "1 arrays missing (such as params.extra)" in message
        assert "1 arrays unexpected (such as params.fc.bias)" in message
        assert "1 arrays of another shape (such as params.fc.kernel)" in message
        assert "\n" not in message
        with pytest.raises(CheckpointError, match=r": the average of the weights \(ema\) unexpect"):
            restore_state(checkpoints, dataclasses.replace(run.state, ema=None))


def test_a_folder_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with (
        opened(tmp_path, read_only=True) as (checkpoints, _),
        pytest.raises(CheckpointError, match=r"checkpoints cannot be read \(Not a directory\)"),
    ):
        checkpoints.latest_step()


def test_another_guard_dtype_or_no_average_is_said(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    other: Any = {"halted": jnp.zeros((), bool)}
    params = small_state(0).params
    integers = params | {"w": params["w"].astype(jnp.int32)}
    with opened(tmp_path) as (checkpoints, _):
        with pytest.raises(CheckpointError, match=r"1 arrays of another dtype \(such as params\.w"):
            restore_state(checkpoints, dataclasses.replace(small_state(0), params=integers))
        with pytest.raises(CheckpointError, match=r"arrays unexpected \(such as guard\."):
            restore_state(checkpoints, dataclasses.replace(small_state(0), guard=other))
        with pytest.raises(CheckpointError, match=r": the average of the weights \(ema\) missing"):
            restore_state(checkpoints, small_state(0, ema=True))


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x20
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [remove, truncate, flip])
@pytest.mark.parametrize("file", ["manifest.json", "weights/_METADATA", "run.json"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_used(
    tmp_path: Path, damage: Callable[[Path], None], file: str
) -> None:
    folder = saved(tmp_path, 1, 2)
    damage(folder / file)
    with opened(tmp_path, read_only=True) as (checkpoints, warnings):
        assert checkpoints.latest_step() == 1
        assert checkpoints.latest_step() == 1
        assert folders(tmp_path) == {"1", "2"}
        (warning,) = warnings  # once
        assert warning.startswith(f"checkpoint {folder} is damaged: ")
        assert file in warning
        assert warning.endswith("; 1 is used instead.")
    with opened(tmp_path, keep=2) as (checkpoints, warnings):
        state, notes = restore_state(checkpoints, small_state(0))
        assert (int(state.step), notes) == (1, {"step": 1})
        assert len(warnings) == 1
        assert f"moved to {tmp_path}/damaged/2." in warnings[0]
        assert folders(tmp_path) == {"1"}
        assert (tmp_path / "damaged" / "2").is_dir()
        save_state(checkpoints, small_state(2), {})
        assert checkpoints.latest_step() == 2
    flip(folder / "run.json")
    with opened(tmp_path) as (checkpoints, warnings):
        assert checkpoints.latest_step() == 1
        assert f"moved to {tmp_path}/damaged/2-2." in warnings[0]


def test_none_whole_is_an_error_and_stays_one(tmp_path: Path) -> None:
    newest = saved(tmp_path, 1, 2)
    flip(tmp_path / "checkpoints" / "1" / "run.json")
    remove(newest / "manifest.json")
    for _ in range(2):
        with (
            opened(tmp_path) as (checkpoints, warnings),
            pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole \(of 2; 2 is dam"),
        ):
            checkpoints.latest_step()
        assert not warnings
        assert folders(tmp_path) == {"1", "2"}


def test_a_damaged_checkpoint_of_the_step_to_save_is_replaced(tmp_path: Path) -> None:
    flip(saved(tmp_path, 1) / "run.json")
    with opened(tmp_path) as (checkpoints, warnings):
        save_state(checkpoints, small_state(1), {"time": 2})
        assert restore_state(checkpoints, small_state(0))[1] == {"time": 2}
    assert len(warnings) == 1
    assert (tmp_path / "damaged" / "1").is_dir()


def test_what_a_killed_run_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    root = tmp_path / "checkpoints"
    left = ["2.saving", "2.saving.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1", "0.deleting"]
    others = ["notes", "2.mine"]
    for name in left + others:
        (root / name / "weights").mkdir(parents=True)
    with opened(tmp_path, read_only=True):
        assert folders(tmp_path) == {"1", *left, *others}
    with opened(tmp_path) as (checkpoints, warnings):
        assert folders(tmp_path) == {"1", *others}
        assert checkpoints.latest_step() == 1
    assert not warnings


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be used for checkpoints \(File exists\)"):
        Checkpoints(tmp_path)


def fail_to_write(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr(manifest, "write_manifest", fail)


def test_a_failed_save_is_told_by_whatever_comes_next_but_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)
    fail_to_write(monkeypatch, ValueError("DATA: [OS error 28: ENOSPC No space left on device]"))
    checkpoints = Checkpoints(tmp_path)
    save_state(checkpoints, small_state(2), {})
    expected = (
        f"checkpoint 2 could not be written to {tmp_path}/checkpoints (No space left on device); "
        "make room there, and run the same command again: it goes on from checkpoint 1, which is "
        "intact."
    )
    told: list[str] = []
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        try:
            checkpoints.check()
        except CheckpointError as error:
            told.append(str(error))
    assert told == [expected]
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoints.wait()
    with pytest.raises(CheckpointError, match="could not be written"):
        save_state(checkpoints, small_state(3), {})
    assert checkpoints.latest_step() == 1
    checkpoints.close()
    checkpoints.close()
    assert folders(tmp_path) == {"1"}


def test_close_tells_of_a_failed_save_that_nothing_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_write(monkeypatch, OSError(27, "File too large"))
    checkpoints = Checkpoints(tmp_path)
    save_state(checkpoints, small_state(2), {})
    with pytest.raises(CheckpointError, match=r"\(File too large\); raise the limit .* starts ove"):
        checkpoints.close()
    checkpoints.close()


def test_an_old_checkpoint_that_cannot_be_deleted_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifest.shutil, "rmtree", refuse)
    with opened(tmp_path, keep=1) as (checkpoints, warnings):
        save_state(checkpoints, small_state(1), {})
        save_state(checkpoints, small_state(2), {})
        checkpoints.wait()
        assert len(warnings) == 1
        assert "cannot be deleted (Permission denied: " in warnings[0]
        assert folders(tmp_path) == {"1.deleting", "2"}  # and never half of "1"
        assert checkpoints.latest_step() == 2


def test_warnings_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, 1, 2)
    remove(folder / "run.json")
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert capsys.readouterr().err.startswith(f"warning: checkpoint {folder} is damaged: run.json")


@pytest.mark.slow
def test_two_hosts_take_the_same_checkpoint_and_one_goes_on_from_it(tmp_path: Path) -> None:
    hosts = run_hosts(["-m", "tests.runs.test_checkpoint", str(tmp_path)])
    for host in hosts:
        assert host.returncode == 0, host.stderr
    first, second = (
        [line for line in host.stdout.splitlines() if not line.startswith("[Gloo]")]
        for host in hosts
    )
    folder = tmp_path / "checkpoints"
    assert second == ["newest 2", "restored 1 of 1", "no checkpoint is whole"]
    assert first == [
        second[0],
        f"warning: checkpoint {folder}/2 is damaged: run.json has other contents than were saved; "
        f"1 is used instead, and it is moved to {tmp_path}/damaged/2.",
        *second[1:],
    ]
    flip(folder / "1" / "run.json")  # back
    with opened(tmp_path) as (checkpoints, warnings):
        assert same(restore_state(checkpoints, small_state(0))[0], small_state(1))
    assert not warnings


def use_as_one_of_several_hosts() -> None:
    """Save, lose and restore checkpoints together with other processes."""
    workdir, address, count, number = (argument.rpartition("=")[2] for argument in sys.argv[1:])
    folder = Path(workdir) / "checkpoints"
    with connected(address, int(count), int(number)):
        sharding = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec())

        def open_checkpoints() -> Checkpoints:
            return Checkpoints(Path(workdir), keep=2, warn=lambda text: print("warning:", text))

        checkpoints = open_checkpoints()
        for step in (1, 2):
            save_state(checkpoints, jax.device_put(small_state(step), sharding), {"step": step})
        print("newest", checkpoints.latest_step())
        checkpoints.close()
        if jax.process_index() == 0:
            flip(folder / "2" / "run.json")

        checkpoints = open_checkpoints()
        state, notes = restore_state(checkpoints, jax.device_put(small_state(0), sharding))
        assert all(array.sharding == sharding for array in jax.tree.leaves(state))
        assert same(jax.device_get(state), jax.device_get(small_state(1)))
        print("restored", notes["step"], "of", checkpoints.latest_step())
        checkpoints.close()
        if jax.process_index() == 0:
            flip(folder / "1" / "run.json")

        checkpoints = open_checkpoints()
        try:
            checkpoints.latest_step()
        except CheckpointError as error:
            print("no checkpoint is whole" if "1 is damaged" in str(error) else error)
        checkpoints.close()


if __name__ == "__main__":
    use_as_one_of_several_hosts()
