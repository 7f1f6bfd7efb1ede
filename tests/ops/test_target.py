"""Programs are lowered for the devices they are for, and not for those of the machine.

A mesh without devices names their platform all the same, so neither TPU, GPU nor their compilers
are needed here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding

from resnext_jax.evaluation.dense import make_dense_step
from resnext_jax.evaluation.evaluator import make_eval_step
from resnext_jax.models.variables import split
from resnext_jax.ops.grouped_conv import grouped_conv
from resnext_jax.ops.target import compiling_for, target_platform
from resnext_jax.parallel.mesh import BATCH, DATA_AXES, REPLICATED
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import make_train_step
from tests.training.tiny import TRANSFORM, tiny_batch, tiny_model

BATCH_SIZE = 64


def mesh_of(platform: str) -> Any:
    """Return eight devices of a platform, of which pairs share a batch-norm group."""
    return AbstractMesh(
        (4, 2),
        DATA_AXES,
        axis_types=(AxisType.Auto, AxisType.Auto),
        abstract_device=AbstractDevice(platform, 1, platform),
    )


def like(tree: Any, mesh: Any, spec: jax.sharding.PartitionSpec) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def small_weights() -> tuple[Any, ...]:
    """Return graph, parameters and running statistics, of which no array is made."""
    return split(nnx.eval_shape(lambda: tiny_model("float32", 16)))


def train(mesh: Any) -> tuple[Any, ...]:
    graphdef, *weights = small_weights()
    optimizer = optax.sgd(0.1)
    state = jax.eval_shape(lambda p, s: TrainState.create(p, s, optimizer, ema=False), *weights)
    step = make_train_step(graphdef, optimizer, TRANSFORM.train, mesh)
    return step, like(state, mesh, REPLICATED), like(tiny_batch(BATCH_SIZE), mesh, BATCH)


def score(mesh: Any) -> tuple[Any, ...]:
    graphdef, *weights = small_weights()
    batch = tiny_batch(BATCH_SIZE) | {"mask": np.ones(BATCH_SIZE, bool)}
    step = make_eval_step(graphdef, TRANSFORM.test, mesh)
    return step, *like(weights, mesh, REPLICATED), like(batch, mesh, BATCH)


def lowered(step: Callable[[Any], tuple[Any, ...]], mesh: str, platform: str) -> str:
    made, *arguments = step(mesh_of(mesh))
    return str(made.trace(*arguments).lower(lowering_platforms=(platform,)).as_text())


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("step", [train, score])
def test_a_step_is_lowered_for_the_devices_of_its_mesh(
    step: Callable[[Any], tuple[Any, ...]],
) -> None:
    """On this CPU, whose own steps call oneDNN."""
    for mesh, platform in (("cpu", "cpu"), ("tpu", "tpu"), ("gpu", "cuda")):
        program = lowered(step, mesh, platform)
        assert ("onednn" in program) == (mesh == "cpu")
        assert ("feature_group_count = 2" in program) == (mesh == "gpu")


def test_a_dense_step_too() -> None:
    graphdef, *weights = small_weights()
    for platform in ("cpu", "tpu", "cuda"):
        mesh = mesh_of(platform)
        step = make_dense_step(graphdef, TRANSFORM.test, mesh, image_size=8)
        batch = tiny_batch(BATCH_SIZE) | {"mask": np.ones(BATCH_SIZE, bool)}
        arguments = *like(weights, mesh, REPLICATED), like(batch, mesh, BATCH)
        program = step.trace(*arguments).lower(lowering_platforms=(platform,))  # type: ignore[attr-defined]
        assert ("feature_group_count = 2" in program.as_text()) == (platform == "cuda")


def test_the_mesh_comes_before_the_default_and_what_was_chosen_before_the_mesh() -> None:
    seen = []

    def local(x: jax.Array) -> jax.Array:
        seen.append(target_platform())
        with compiling_for("cuda"):
            seen.append(target_platform())
        seen.append(target_platform())
        return x

    mesh = mesh_of("tpu")
    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=BATCH, out_specs=BATCH))
    run.trace(like(jnp.ones(8), mesh, BATCH))
    assert seen == ["tpu", "gpu", "tpu"]
    assert target_platform() == "cpu"


@pytest.mark.usefixtures("onednn")
def test_gradients_follow_it_too() -> None:
    """They are traced after the function, but inside of what is compiled."""
    kernel = jnp.ones((3, 3, 4, 32))

    def gradient(platform: str) -> str:
        def run(x: jax.Array) -> jax.Array:
            with compiling_for(platform):
                return jax.grad(lambda x: grouped_conv(x, kernel, groups=8).sum())(x)

        return str(jax.jit(run).trace(jnp.ones((1, 4, 4, 32))).lower().as_text())

    assert "onednn" in gradient("cpu")
    assert "onednn" not in gradient("tpu")
