"""Micro-batches take the step of the whole batch, on any number of devices, everything varied."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from resnext_jax.data.augment import DeviceTransform
from resnext_jax.data.erasing import ERASE, draw_box
from resnext_jax.data.mixing import MIX, draw_mix
from resnext_jax.optim.ema import EmaSpec
from resnext_jax.training.step import StepSpec
from tests.numerics import worst_difference
from tests.training.tiny import TRANSFORM, TinyRun, tiny_batch

GROUP, BATCH = 8, 64
VARIED: DeviceTransform = dataclasses.replace(TRANSFORM, colour=(0.4, 0.4, 0.4), lighting=0.1)
GRID = list(itertools.product((1, 2, 8), (1, 2, 4)))


def varied_batch(step: int) -> dict[str, np.ndarray]:
    """Make a batch with boxes to erase and pairs to mix."""
    rng = np.random.default_rng(step)
    boxes = [draw_box(rng, 8, 0.5) for _ in range(BATCH)]
    mixes = [draw_mix(rng, 8, mixup=0.2, cutmix=1.0) for _ in range(BATCH)]
    return tiny_batch(BATCH, step) | {ERASE: np.stack(boxes), MIX: np.stack(mixes)}


def make_run(devices: int, parts: int, dtype: str, learning_rate: float = 0.001) -> TinyRun:
    spec = StepSpec(
        label_smoothing=0.1, accumulate_steps=parts, ema=EmaSpec(0.9, every_steps=2, start_step=3)
    )
    return TinyRun(
        devices,
        GROUP,
        batch_size=BATCH,
        dtype=dtype,
        learning_rate=learning_rate,
        spec=spec,
        transform=VARIED,
    )


def losses(run: TinyRun, steps: int) -> list[float]:
    seen = []
    for step in range(steps):
        run.state, metrics = run.step(run.state, run.put(varied_batch(step)))
        seen.append(float(metrics["loss"]))
    return seen


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layout", [pytest.param((1, 4), marks=pytest.mark.slow), (8, 2)], ids=str)
def test_three_steps_do_not_depend_on_devices_and_parts(layout: tuple[int, int]) -> None:
    alone, run = make_run(1, 1, "float64"), make_run(*layout, "float64")
    assert losses(run, 3) == pytest.approx(losses(alone, 3), rel=1e-9)
    assert worst_difference(run.state.params, alone.state.params) < 1e-9
    assert worst_difference(run.state.batch_stats, alone.state.batch_stats) < 1e-9
    assert run.state.ema is not None
    assert alone.state.ema is not None
    assert worst_difference(run.state.ema["params"], alone.state.ema["params"]) < 1e-9


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_twenty_steps_on_the_whole_grid() -> None:
    expected = losses(make_run(1, 1, "float64"), 20)
    assert expected[-1] < expected[0]
    for devices, parts in GRID[1:]:
        run = make_run(devices, parts, "float64")
        assert losses(run, 20) == pytest.approx(expected, rel=1e-9), (devices, parts)


@pytest.mark.slow
def test_single_float32_steps_from_the_same_state() -> None:
    """Whole trajectories drift apart in float32; each step of one of them is the same."""
    alone = make_run(1, 1, "float32")
    runs = {layout: make_run(*layout, "float32") for layout in GRID[1:]}
    for step in range(20):
        before = jax.device_get(alone.state)
        (expected,) = one_loss(alone, step)
        for layout, run in runs.items():
            run.state = jax.device_put(before, jax.tree.map(lambda x: x.sharding, run.state))
            assert one_loss(run, step) == pytest.approx([expected], rel=1e-5), (layout, step)
            for name, array in alone.state.params.items():
                np.testing.assert_allclose(run.state.params[name], array, rtol=0, atol=1e-5)


def one_loss(run: TinyRun, step: int) -> list[float]:
    run.state, metrics = run.step(run.state, run.put(varied_batch(step)))
    return [float(metrics["loss"])]


def test_mixed_labels_share_the_loss() -> None:
    """Of images mixed half and half both labels count alike; of whole ones their own alone."""
    run = make_run(1, 1, "float32", learning_rate=0.0)
    batch = varied_batch(0)

    def loss(share: float, label: np.ndarray) -> float:
        numbers = np.tile(np.array([share, share, 0, 0, 8, 8], np.float32), (BATCH, 1))
        run.state, metrics = run.step(run.state, run.put(batch | {MIX: numbers, "label": label}))
        return float(metrics["loss"])

    label = batch["label"]
    swapped = label.reshape(-1, 2)[:, ::-1].reshape(-1)
    assert loss(0.5, label) == pytest.approx(loss(0.5, swapped), rel=1e-6)
    whole = loss(1.0, label)
    assert whole != pytest.approx(loss(1.0, swapped), rel=1e-4)
    # Mixed "with a share of 0", an image is its partner, label and all.
    assert loss(0.0, swapped) != pytest.approx(whole, rel=1e-4)
    assert loss(0.0, label) == pytest.approx(whole, rel=1e-5)
    del batch[MIX]
    plain = make_run(1, 1, "float32", learning_rate=0.0)
    _, metrics = plain.step(plain.state, plain.put(batch))
    assert float(metrics["loss"]) == pytest.approx(whole, rel=1e-6)
