"""Training takes the steps that PyTorch takes, from the same weights with the same images."""

import functools
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.interop.state_dicts import weights_from_torch, weights_to_torch
from resnext_jax.models.resnext import NetworkSpec
from resnext_jax.models.variables import split
from resnext_jax.optim.optimizers import Schedule, ScheduleSpec, make_schedule, sgd
from resnext_jax.parallel.mesh import batch_sharding, make_mesh, replicated_sharding
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import make_train_step
from tests.interop import recipe
from tests.interop.weights import empty_model, random_state_dict, small_spec
from tests.numerics import relative_difference

GOLDEN = Path(__file__).parent / "golden" / "training.npz"  # by make_golden.py


def train(
    spec: NetworkSpec, state_dict: dict[str, np.ndarray], schedule: Schedule, steps: int, dtype: str
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Take steps of the recipe; return the losses and the weights behind them."""
    mesh = make_mesh(recipe.BATCH_SIZE, None, jax.devices()[:1])
    graphdef, _, _ = split(empty_model(spec))
    optimizer = sgd(
        schedule, momentum=recipe.MOMENTUM, nesterov=True, weight_decay=recipe.WEIGHT_DECAY
    )
    state = TrainState.create(*weights_from_torch(state_dict, spec), optimizer)
    state = jax.device_put(state, replicated_sharding(mesh))
    step = make_train_step(graphdef, optimizer, lambda batch: batch["image"], mesh)
    losses = []
    for images, labels in recipe.batches(steps, dtype):
        batch = {"image": images, "label": labels.astype(np.int32)}
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
    return losses, weights_to_torch(state.params, state.batch_stats, spec)


@functools.cache
def float64_training() -> tuple[list[float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return losses, and the weights before and after."""
    spec = small_spec("float64")
    before = random_state_dict(spec, dtype="float64")
    schedule = ScheduleSpec(
        "step", recipe.RATE, num_epochs=2, boundaries=(1,), factor=recipe.FACTOR
    )
    losses, after = train(
        spec, before, make_schedule(schedule, recipe.BOUNDARY), recipe.STEPS, "float64"
    )
    return losses, before, after


def float32_losses() -> list[float]:
    (rate, *_), steps = recipe.FLOAT32_RATES, len(recipe.FLOAT32_RATES)
    spec = small_spec()
    losses, _ = train(
        spec, random_state_dict(spec), lambda step: jnp.asarray(rate), steps, "float32"
    )
    return losses


def worst(actual: list[float], expected: list[float]) -> float:
    return float(np.max(np.abs(np.array(actual) / np.array(expected) - 1)))


@pytest.mark.usefixtures("float64")
def test_twenty_steps_are_pytorchs() -> None:
    """In float64, with a division of the rate half-way."""
    losses, before, after = float64_training()
    with np.load(GOLDEN) as golden:
        assert worst(losses, golden["losses"]) < 1e-6
        stored = [name for name in golden.files if name in after]
        assert len(stored) == 8
        for name in stored:
            assert relative_difference(after[name], golden[name]) < 1e-6, name
        changes = recipe.changes(before, after)
        assert list(changes) == list(golden["changed"])
        assert worst(list(changes.values()), golden["changes"]) < 1e-6


@pytest.mark.slow  # twenty steps in float64 are the same
def test_a_float32_step_at_a_high_rate_is_pytorchs() -> None:
    """Its loss, and the loss behind it."""
    with np.load(GOLDEN) as golden:
        difference = worst(float32_losses(), golden["float32_losses"])
    print(f"float32 losses {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.usefixtures("float64")
def test_every_array_is_pytorchs() -> None:
    """Where PyTorch is installed: all arrays, and not only some."""
    pytest.importorskip("torch")
    reference: ModuleType
    from tests.interop import reference

    losses, before, after = float64_training()
    network = reference.ResNet(small_spec())
    reference.load(network, before)
    expected = reference.train(network, recipe.batches(recipe.STEPS, "float64"), recipe.RATES)
    arrays = reference.arrays_of(network)
    differences = {name: relative_difference(after[name], arrays[name]) for name in after}
    print(f"losses {worst(losses, expected):.1e}, arrays {max(differences.values()):.1e}")
    assert worst(losses, expected) < 1e-6
    assert max(differences.values()) < 1e-6
