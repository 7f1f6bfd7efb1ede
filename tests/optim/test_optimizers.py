"""Schedules by hand, and SGD as Torch defines it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.fields import base_config
from resnext_jax.optim.freezing import layers_above
from resnext_jax.optim.optimizers import ScheduleSpec, first_step_at, make_schedule, sgd
from tests.numerics import worst_difference
from tests.optim import make_golden

IMAGENET_IMAGES = 1_281_167


def rates(spec: ScheduleSpec, steps_per_epoch: float, steps: list[int]) -> list[float]:
    schedule = make_schedule(spec, steps_per_epoch)
    return [float(schedule(step)) for step in steps]


def test_imagenet_rate_falls_at_epochs_30_60_and_90() -> None:
    """An epoch is 5,004.56 steps: the first step at or after epoch 30 is 150,137, from 0."""
    config = base_config()
    assert config.batch_size == 256
    schedule = build.build_schedule(config, IMAGENET_IMAGES)
    steps = [0, 150_136, 150_137, 300_273, 300_274, 450_410, 450_411, 500_455]
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
    assert [float(schedule(step)) for step in steps] == pytest.approx(expected, rel=1e-6)


def test_a_boundary_between_steps_takes_effect_at_the_next_step() -> None:
    spec = ScheduleSpec("step", peak=1.0, num_epochs=4, boundaries=(1.0, 2.0), factor=4.0)
    actual = rates(spec, 2.5, list(range(8)))
    assert actual == pytest.approx([1, 1, 1, 1 / 4, 1 / 4, 1 / 16, 1 / 16, 1 / 16], rel=1e-6)


def test_a_boundary_on_a_step_takes_effect_at_that_step() -> None:
    spec = ScheduleSpec("step", peak=1.0, num_epochs=4, boundaries=(1.5,))
    assert rates(spec, 2.0, [2, 3]) == pytest.approx([1.0, 0.1], rel=1e-6)


def test_step_schedule_without_boundaries_is_constant() -> None:
    spec = ScheduleSpec("step", peak=0.3, num_epochs=4)
    assert rates(spec, 10.0, [0, 39]) == pytest.approx([0.3, 0.3], rel=1e-6)


def test_cosine() -> None:
    spec = ScheduleSpec("cosine", peak=0.8, num_epochs=4)
    actual = rates(spec, 2.5, [0, 1, 5, 9, 10, 11])
    by_hand = [0.4 * (1 + math.cos(math.pi * step / 10)) for step in (0, 1, 5, 9)]
    # Zero at the end of the run, and after it.
    assert actual == pytest.approx([*by_hand, 0.0, 0.0], rel=1e-5, abs=1e-7)
    assert actual[2] == pytest.approx(0.4, rel=1e-6)


def test_linear_begins_after_the_warm_up() -> None:
    spec = ScheduleSpec("linear", peak=0.8, num_epochs=6, warmup_epochs=2.0)
    actual = rates(spec, 2.0, [0, 3, 4, 8, 12, 13])
    assert actual == pytest.approx([0.2, 0.8, 0.8, 0.4, 0.0, 0.0], rel=1e-6, abs=1e-7)


def test_warm_up_rises_linearly_to_the_peak() -> None:
    spec = ScheduleSpec("step", peak=0.8, num_epochs=10, boundaries=(4.0,), warmup_epochs=2.0)
    actual = rates(spec, 2.0, [0, 1, 2, 3, 4, 7, 8])
    assert actual == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.08], rel=1e-6)


def test_cosine_begins_after_the_warm_up() -> None:
    spec = ScheduleSpec("cosine", peak=0.8, num_epochs=6, warmup_epochs=2.0)
    actual = rates(spec, 2.0, [0, 1, 2, 3, 4, 8, 12])
    assert actual == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.4, 0.0], rel=1e-5, abs=1e-7)


def test_schedule_can_be_compiled() -> None:
    schedule = make_schedule(ScheduleSpec("step", 0.1, 3, boundaries=(1.0,)), 10.0)
    assert float(jax.jit(schedule)(jnp.int32(10))) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "base_batch_size", "rate"),
    [(256, 256, 0.1), (128, 256, 0.05), (1024, 256, 0.4), (128, 128, 0.1), (32, 128, 0.025)],
)
def test_the_rate_scales_linearly_with_the_batch(
    batch_size: int, base_batch_size: int, rate: float
) -> None:
    config = base_config()
    config.batch_size = batch_size
    config.optimizer.base_batch_size = base_batch_size
    assert build.learning_rate(config) == pytest.approx(rate, rel=1e-12)
    assert float(build.build_schedule(config, 50_000)(0)) == pytest.approx(rate, rel=1e-6)


def test_steps_per_epoch_are_a_fraction() -> None:
    config = base_config()
    assert build.steps_per_epoch(config, IMAGENET_IMAGES) == IMAGENET_IMAGES / 256
    config.images_per_epoch = 512
    assert build.steps_per_epoch(config, IMAGENET_IMAGES) == 2.0


SHAPES = {"conv.kernel": (3, 2), "bn.scale": (4,), "fc.bias": (5,)}


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def torch_sgd(
    params: dict[str, np.ndarray],
    gradients: list[dict[str, np.ndarray]],
    learning_rates: list[float],
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> dict[str, np.ndarray]:
    """The pseudo-code of torch.optim.SGD's documentation, without dampening."""
    params = dict(params)
    buffers: dict[str, np.ndarray] = {}
    for gradient, rate in zip(gradients, learning_rates, strict=True):
        for name in params:
            g = gradient[name] + weight_decay * params[name]
            if momentum:
                buffers[name] = momentum * buffers[name] + g if name in buffers else g
                g = g + momentum * buffers[name] if nesterov else buffers[name]
            params[name] = params[name] - rate * g
    return params


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_sgd_is_torchs(momentum: float, nesterov: bool, weight_decay: float) -> None:
    """On every parameter, batch norm's and biases included, and while the rate falls."""
    learning_rates = [0.5, 0.5, 0.25, 0.25, 0.125, 0.0625]
    gradients = [arrays(seed) for seed in range(1, 7)]
    expected = torch_sgd(
        arrays(0),
        gradients,
        learning_rates,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )
    optimizer = sgd(
        lambda step: jnp.asarray(learning_rates)[step],
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )
    params = {name: jnp.asarray(array) for name, array in arrays(0).items()}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert worst_difference(params, expected) < 1e-14


@pytest.mark.usefixtures("float64")
def test_the_configs_optimizer_follows_its_schedule() -> None:
    """Nesterov, momentum 0.9, decay 1e-4 and a rate of 0.125 for one step of two."""
    config = base_config()
    config.optimizer.learning_rate = 0.125
    config.schedule.boundaries = (1.0,)
    config.schedule.factor = 4.0
    optimizer = build.build_optimizer(config, build.build_schedule(config, config.batch_size))
    params = {name: jnp.asarray(array) for name, array in arrays(0).items()}
    state = optimizer.init(params)
    gradients = [arrays(1), arrays(2), arrays(3)]
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    expected = torch_sgd(
        arrays(0),
        gradients,
        [0.125, 0.03125, 0.03125],
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
    )
    # The schedule is float32, whose power of 4 may be off by a rounding.
    assert worst_difference(params, expected) < 1e-7


NAMES = ("fc.kernel", "fc.bias", "stem.norm.scale", "stages.conv2.0.norm1.bias", "norm.scale")


def one_step(
    config: ConfigDict, gradient: float = 1.0
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Take a step from ones on equal gradients; return by how much each parameter moved."""
    optimizer = build.build_optimizer(config, lambda step: jnp.float32(0.5))
    params = {name: jnp.ones(4) for name in NAMES}
    state = optimizer.init(params)
    gradients = {name: jnp.full(4, gradient) for name in NAMES}
    updates, _ = optimizer.update(gradients, state, params)
    return updates, optax.apply_updates(params, updates)


def plain_config() -> ConfigDict:
    config = base_config()
    config.optimizer.momentum = 0.0
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 0.25
    return config


@pytest.mark.parametrize(
    ("norm", "bias", "decayed"),
    [
        (True, True, NAMES),
        (False, True, ("fc.kernel", "fc.bias")),
        (True, False, tuple(name for name in NAMES if name != "fc.bias")),
        (False, False, ("fc.kernel",)),
    ],
)
def test_norms_and_biases_need_not_decay(norm: bool, bias: bool, decayed: tuple[str, ...]) -> None:
    config = plain_config()
    config.optimizer.decay_norm, config.optimizer.decay_bias = norm, bias
    updates, _ = one_step(config)
    for name in NAMES:
        expected = -0.5 * (1.25 if name in decayed else 1.0)
        np.testing.assert_allclose(updates[name], expected, err_msg=name)


def test_a_gradient_that_is_too_long_is_scaled_before_the_decay() -> None:
    config = plain_config()
    config.optimizer.clip_norm = 2.0
    norm = math.sqrt(4 * len(NAMES)) * 3.0
    updates, _ = one_step(config, gradient=3.0)
    np.testing.assert_allclose(updates["fc.kernel"], -0.5 * (3.0 * 2.0 / norm + 0.25), rtol=1e-6)
    config.optimizer.clip_norm = 100.0
    updates, _ = one_step(config, gradient=3.0)
    np.testing.assert_allclose(updates["fc.kernel"], -0.5 * 3.25)


def test_a_limit_to_the_gradient_leaves_the_state_its_structure() -> None:
    """So that a run may resume with another."""
    config = plain_config()
    params = {name: jnp.ones(4) for name in NAMES}
    structures = []
    for limit in (None, 1.0):
        config.optimizer.clip_norm = limit
        state = build.build_optimizer(config, lambda step: jnp.float32(0.5)).init(params)
        structures.append(jax.tree.structure(state))
    assert str(structures[0]) == str(structures[1])


def test_the_backbone_may_move_more_slowly_and_frozen_stages_not_at_all() -> None:
    config = plain_config()
    config.finetune.backbone_rate = 0.1
    updates, _ = one_step(config)
    np.testing.assert_allclose(updates["fc.kernel"], -0.5 * 1.25)
    np.testing.assert_allclose(updates["stages.conv2.0.norm1.bias"], -0.05 * 1.25)
    config.finetune.frozen_stages = 2
    # Their gradients are zeros (see test_finetune): without decay they stay.
    updates, _ = one_step(config, gradient=0.0)
    assert not updates["stem.norm.scale"].any()
    assert not updates["stages.conv2.0.norm1.bias"].any()
    np.testing.assert_allclose(updates["norm.scale"], -0.05 * 0.25)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", make_golden.CASES)
def test_optimizers_are_pytorchs_and_timms(case: str) -> None:
    """20 stored steps; batch norm and bias have no decay, and so no trust ratio."""
    name, stored = make_golden.CASES[case]
    options = dict(stored)
    config = base_config()
    config.optimizer.name = name
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_norm = config.optimizer.decay_bias = False
    config.optimizer.clip_norm = options.pop("max_grad_norm", None)
    config.optimizer.trust_coefficient = options.pop("trust_coeff", 1e-3)
    config.optimizer.nesterov = options.pop("nesterov", False)
    config.optimizer.update(options)
    optimizer = build.build_optimizer(
        config, lambda step: make_golden.rate(jnp.asarray(step, jnp.float64))
    )
    params = {name: jnp.asarray(array) for name, array in make_golden.arrays(0).items()}
    state = optimizer.init(params)
    with np.load(make_golden.GOLDEN) as golden:
        trajectory = golden[case]
    for step, expected in enumerate(trajectory, start=1):
        updates, state = optimizer.update(make_golden.arrays(step), state, params)
        params = optax.apply_updates(params, updates)
        actual = np.concatenate([params[name].ravel() for name in make_golden.SHAPES])
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def test_rates_decay_from_the_classifier_to_the_stem() -> None:
    """Blocks of a stage in sequence; a pre-activation network's last norm is its last block's."""
    config = plain_config()
    config.model.name = "resnext29_8x4d"
    config.finetune.layer_decay = 0.5
    config.finetune.backbone_rate = 0.1
    updates, _ = one_step(config)
    np.testing.assert_allclose(updates["fc.kernel"], -0.5 * 1.25)
    blocks = (3, 4, 2)
    places = {
        "fc.kernel": 0,
        "norm.scale": 1,
        "stages.conv4.1.norm3.scale": 1,
        "stages.conv4.0.conv1.kernel": 2,
        "stages.conv2.0.conv1.kernel": 9,
        "stem.conv.kernel": 10,
    }
    assert {name: layers_above(name, blocks) for name in places} == places
    last = float(updates["stages.conv2.0.norm1.bias"][0])
    assert last == pytest.approx(float(updates["stem.norm.scale"][0]) * 2)


@pytest.mark.parametrize(("batch", "epoch", "step"), [(96, 30, 15_625), (48, 225, 234_375)])
def test_a_boundary_is_not_moved_by_rounding(batch: int, epoch: float, step: int) -> None:
    """30 epochs of 50,000 / 96 steps come to a hair more than 15,625 in floating point."""
    assert first_step_at(epoch, 50_000 / batch) == step
