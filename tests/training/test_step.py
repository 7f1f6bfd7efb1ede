"""The train step takes the same step on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from resnext_jax.data.augment import Batch
from resnext_jax.evaluation.evaluator import make_eval_step
from resnext_jax.models.blocks import Form
from resnext_jax.models.variables import merge, split
from resnext_jax.ops import grouped_conv
from resnext_jax.ops.grouped_conv import Implementation
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import Metrics
from tests.numerics import worst_difference
from tests.training.tiny import TRANSFORM, TinyRun, tiny_batch, tiny_model

STEPS = 5


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "group",
    [
        pytest.param(4, id="group_4", marks=pytest.mark.slow),
        pytest.param(32, id="group_32"),
        pytest.param(None, id="group_None", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_five_steps_do_not_depend_on_the_devices(devices: int, group: int | None) -> None:
    """With 64 images a step, 8 devices hold 8 each: group 32 spans four of them, None all."""
    alone = TinyRun(1, group)
    expected_losses = alone.train(STEPS)
    run = TinyRun(devices, group)
    assert run.train(STEPS) == pytest.approx(expected_losses, rel=1e-7)
    assert worst_difference(run.state.params, alone.state.params) < 1e-7
    assert worst_difference(run.state.batch_stats, alone.state.batch_stats) < 1e-7


@pytest.mark.usefixtures("float64")
@pytest.mark.slow  # forms agree on one device, and form c's steps on any number of them
@pytest.mark.parametrize("form", ["a", "b"])
def test_block_forms_take_the_same_steps_on_eight_devices(form: Form) -> None:
    expected = TinyRun(1, 32, learning_rate=0.01).train(2)
    assert TinyRun(8, 32, learning_rate=0.01, form=form).train(2) == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_scanned_blocks_take_the_same_steps_on_eight_devices() -> None:
    model = "resnext29_2x4d"  # its stages end in two equal blocks
    expected = TinyRun(1, 32, learning_rate=0.01, name=model).train(2)
    scanned = TinyRun(8, 32, learning_rate=0.01, name=model, scan_blocks=True)
    assert scanned.train(2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow  # what is theirs alone works image by image
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["seresnext14d_2x4d", "resnet18"])
def test_relatives_take_the_same_steps_on_eight_devices(name: str) -> None:
    expected = TinyRun(1, 16, name=name).train(2)
    assert TinyRun(8, 16, name=name).train(2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_group_size_matters() -> None:
    """Or the test above would show nothing."""
    assert TinyRun(1, 4).train(1) != pytest.approx(TinyRun(1, 32).train(1), rel=1e-4)


def test_steps_can_be_taken_inside_of_another_program() -> None:
    run = TinyRun(1, 32, dtype="float32")
    inner = run.step.__wrapped__  # type: ignore[attr-defined]

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(inner, state, batches)

    batches = jax.tree.map(lambda *parts: jnp.stack(parts), run.batch(0), run.batch(1))
    state, metrics = jax.jit(steps).lower(run.state, batches).out_info
    assert state == jax.eval_shape(lambda: run.state)
    assert metrics["loss"].shape == (2,)


def first_gradient(run: TinyRun) -> dict[str, jax.Array]:
    """With momentum and no decay, the momentum buffer after one step is the gradient."""
    return optax.tree_utils.tree_get(run.state.opt_state, "trace")


@pytest.mark.slow  # float64 above
def test_first_float32_step_does_not_depend_on_the_devices() -> None:
    runs = {
        devices: TinyRun(devices, 32, dtype="float32", weight_decay=0.0) for devices in (1, 2, 8)
    }
    losses = {devices: run.train(1)[0] for devices, run in runs.items()}
    expected = first_gradient(runs[1])
    for devices in (2, 8):
        assert losses[devices] == pytest.approx(losses[1], rel=1e-5)
        assert worst_difference(first_gradient(runs[devices]), expected) < 1e-2


@pytest.mark.usefixtures("float64")
def test_is_sgd_on_the_mean_loss() -> None:
    """One step on one device against the definition, written without shard_map."""
    # The same weights in a model that knows of no mesh.
    graphdef, params, batch_stats = split(tiny_model("float64", None, bn_axis_name=None))
    batch = {name: jnp.asarray(array) for name, array in tiny_batch(64).items()}

    def loss_fn(params: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        network = merge(graphdef, params, batch_stats)
        logits = network(TRANSFORM.train(batch))
        log_probability = jax.nn.log_softmax(logits)[jnp.arange(64), batch["label"]]
        return -log_probability.mean(), logits

    (loss, logits), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    expected = {}
    for name, value in params.items():
        decayed = gradient[name] + 0.01 * value
        expected[name] = value - 0.1 * (decayed + 0.9 * decayed)  # Nesterov's first step

    run = TinyRun(1, None, learning_rate=0.1, weight_decay=0.01)
    run.state, metrics = run.step(run.state, run.batch())
    assert worst_difference(run.state.params, expected) < 1e-12
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-12)
    wrong = np.asarray(logits).argmax(axis=1) != np.asarray(batch["label"])
    assert float(metrics["top1_error"]) == pytest.approx(100 * wrong.mean())
    assert int(run.state.step) == 1


@pytest.mark.usefixtures("onednn")
def test_a_step_with_onednn_is_the_same_step_on_eight_devices_and_repeats() -> None:
    """Single steps: float32 trajectories part, as any two orders of adding do."""
    expected = TinyRun(1, 32, dtype="float32", conv_implementation="portable")
    (loss,) = expected.train(1)
    run = TinyRun(8, 32, dtype="float32")
    step = run.step.lower(run.state, run.batch()).compile()
    program = str(step.as_text())
    assert "__onednn$convolution" in program
    assert "all-gather" not in program
    states = [jax.tree.map(jnp.copy, run.state) for _ in range(2)]
    after, metrics = zip(*(step(state, run.batch()) for state in states), strict=True)
    assert float(metrics[0]["loss"]) == pytest.approx(loss, rel=1e-5)
    assert worst_difference(after[0].params, expected.state.params) < 1e-4
    for name, value in after[0].params.items():
        np.testing.assert_array_equal(value, after[1].params[name])


@pytest.mark.parametrize(("group", "implementation"), [(4, "native"), (32, "auto")])
def test_compiled_steps_gather_nothing(group: int, implementation: Implementation) -> None:
    """Also with grouped convolutions left to XLA, which gathers for them by itself (below)."""
    run = TinyRun(8, group, dtype="float32", conv_implementation=implementation)
    train = str(run.step.lower(run.state, run.batch()).compile().as_text())
    assert "all-reduce" in train
    assert "all-gather" not in train

    eval_step = make_eval_step(run.graphdef, TRANSFORM.test, run.mesh)
    batch = run.batch() | {"mask": jax.device_put(np.ones(64, bool), run.batch()["label"].sharding)}
    evaluation = (
        eval_step.lower(run.state.params, run.state.batch_stats, batch)  # type: ignore[attr-defined]
        .compile()
        .as_text()
    )
    assert "all-reduce" not in evaluation
    assert "all-gather" not in evaluation


def test_automatic_sharding_would_gather() -> None:
    """Why the step is a shard_map, and that the test above can fail (openxla/xla#47945)."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((8, 4, 4, 8)), NamedSharding(mesh, PartitionSpec("data")))
    kernel = jax.device_put(jnp.ones((3, 3, 4, 8)), NamedSharding(mesh, PartitionSpec()))

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return grouped_conv(x, kernel, groups=2, implementation="native")

    assert "all-gather" in str(jax.jit(convolve).lower(x, kernel).compile().as_text())
