"""Our steps, compiled for `train_step.py`, and the Python time of one."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from benchmarks import measure
from benchmarks.program import (
    LEARNING_RATE,
    MEAN,
    MOMENTUM,
    STD,
    WEIGHT_DECAY,
    Plan,
    Program,
    Setting,
)
from resnext_jax.data.augment import Batch, DeviceTransform
from resnext_jax.models import create_model
from resnext_jax.models.blocks import Form
from resnext_jax.models.variables import Arrays, merge, skeleton, split
from resnext_jax.ops.grouped_conv import Implementation
from resnext_jax.optim.optimizers import sgd
from resnext_jax.parallel.mesh import (
    BATCH,
    DATA_AXES,
    MEMBER_AXIS,
    REPLICATED,
    batch_sharding,
    make_mesh,
    replicated_sharding,
)
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import Metrics, TrainStep, make_train_step

_TRANSFORM = DeviceTransform(mean=MEAN, std=STD, max_shift=0)

OPTIMIZER = sgd(
    optax.constant_schedule(LEARNING_RATE),
    momentum=MOMENTUM,
    nesterov=True,
    weight_decay=WEIGHT_DECAY,
)

Blocks = Literal["plain", "scan", "remat"]
BLOCKS: tuple[Blocks, ...] = ("plain", "scan", "remat")

# Calls that `dispatch_times` makes before those that count, and those that count.
_FIRST_CALLS, _COUNTED_CALLS = 10, 100


@dataclasses.dataclass(frozen=True)
class JaxVariant:
    """A model of ours.

    Attributes:
      model: its name.
      form: of its blocks (Figure 3).
      implementation: how it convolves.
      blocks: one by one ("plain"), equal ones as a loop ("scan"), or computed
        again for the gradient ("remat").
    """

    model: str
    form: Form
    implementation: Implementation
    blocks: Blocks = "plain"

    @property
    def what(self) -> str:
        """Form and lowering, as in `form c, auto`, and how blocks run where not one by one."""
        blocks = "" if self.blocks == "plain" else f", {self.blocks}"
        return f"form {self.form}, {self.implementation}{blocks}"

    def describe(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""
        return {"framework": "jax"} | {
            name: getattr(self, name) for name in ("form", "implementation", "blocks")
        }

    def build(self, setting: Setting) -> "JaxNetwork":
        """Make the network."""
        return JaxNetwork(self, setting)


class JaxNetwork:
    """A network of ours with its arrays on all devices."""

    def __init__(self, variant: JaxVariant, setting: Setting):
        """Draw arrays and a batch."""
        self._mesh = make_mesh(setting.batch, None)
        self._graphdef, *shapes = abstract_model(variant, setting)
        # Drawn here and not by `create_model`, which compiles many small
        # programs for it: minutes for the 1,500 convolutions of form a.
        self._drawn = [
            {name: _draw(name, shape) for name, shape in part.items()} for part in shapes
        ]
        images, labels = setting.random_batch()
        self._batch: Batch = jax.device_put(
            {"image": images, "label": labels}, batch_sharding(self._mesh)
        )

    def training(self) -> Program:
        """Compile the training step; each run continues from the state of the one before."""
        state = self._fresh_state()
        step = training_step(self._graphdef, self._mesh)
        compiled, seconds = _compile(step, state, self._batch)

        def run() -> Any:
            nonlocal state
            state, metrics = compiled(state, self._batch)
            return metrics

        return _program(run, compiled, seconds)

    def inference(self) -> Program:
        """Compile the logits of a batch, in evaluation mode."""

        def logits(params: Arrays, batch_stats: Arrays, batch: Batch) -> jax.Array:
            model = merge(self._graphdef, params, batch_stats)
            model.eval()
            return model(_TRANSFORM.test(batch))

        # `shard_map` for the reason that `make_train_step` gives.
        sharded = jax.shard_map(
            logits, mesh=self._mesh, in_specs=(REPLICATED, REPLICATED, BATCH), out_specs=BATCH
        )
        arguments = (*self._weights(), self._batch)
        compiled, seconds = _compile(jax.jit(sharded), *arguments)
        return _program(lambda: compiled(*arguments), compiled, seconds)

    def dispatch_times(self) -> tuple[measure.Timing, int]:
        """Measure the time that Python and JAX's dispatch take between two steps.

        That is what passes from calling the compiled step until the call
        returns: flattening the state and the batch, checking their types and
        placement, handing their buffers over, and making the arrays of the new
        state. It does not depend on what the step computes, but on the CPU (and
        on a GPU whose queue is full) a call returns late because the computation
        is in its way. So another step is called: compiled in the same way for
        the same state, of the same arrays, donated in the same way, that
        returns the state as it is. Its results lie where its arguments lay, so
        the device has nothing to do but three numbers, and each call waits for
        the one before (outside the time). What the runtime needs to launch a
        real step's kernels is not Python's and not in it.

        Returns:
          The time of a call (every call a round), and how many arrays a state has.
        """
        state = self._fresh_state()
        arrays = len(jax.tree.leaves(state))
        step = _idle_step(self._mesh)
        seconds = []
        for _ in range(_FIRST_CALLS + _COUNTED_CALLS):
            start = time.perf_counter()
            state, metrics = step(state, self._batch)
            seconds.append(time.perf_counter() - start)
            jax.block_until_ready((state, metrics))
        return measure.Timing(tuple(seconds[_FIRST_CALLS:]), _COUNTED_CALLS), arrays

    def _fresh_state(self) -> TrainState:
        # As one program: on a GPU each of many small ones would be compiled.
        state = jax.jit(lambda p, s: TrainState.create(p, s, OPTIMIZER))(*self._weights())
        return jax.device_put(state, replicated_sharding(self._mesh))

    def _weights(self) -> list[Arrays]:
        """Place parameters and running statistics on the devices, for a step to keep."""
        weights: list[Arrays] = jax.device_put(
            self._drawn, replicated_sharding(self._mesh), may_alias=False
        )
        return weights


def abstract_model(variant: JaxVariant, setting: Setting) -> tuple[Any, Arrays, Arrays]:
    """Return the model's structure, parameters and running statistics; no array is made."""
    model = skeleton(
        lambda rngs: create_model(
            variant.model,
            num_classes=setting.classes,
            form=variant.form,
            dtype=setting.dtype,
            bn_axis_name=MEMBER_AXIS,
            conv_implementation=variant.implementation,
            scan_blocks=variant.blocks == "scan",
            remat=variant.blocks == "remat",
            rngs=rngs,
        )
    )
    model.train()
    return split(model)


def place(shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    """Say of a tree of shapes where its arrays would be."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def training_step(graphdef: nnx.GraphDef, mesh: Mesh) -> TrainStep:
    """Return the step that `train.py` runs, with the benchmarks' transform and optimiser."""
    return make_train_step(graphdef, OPTIMIZER, _TRANSFORM.train, mesh)


def _draw(name: str, like: jax.Array) -> np.ndarray:
    """Draw a kernel as the networks do; other arrays are ones or zeros, as at their start."""
    if name.endswith(".kernel"):
        outputs = math.prod(like.shape[:-2]) * like.shape[-1]
        rng = np.random.default_rng(0)
        drawn = rng.standard_normal(like.shape, np.float32) * np.sqrt(2 / outputs)
        return drawn.astype(like.dtype)
    start = 1.0 if name.endswith((".scale", ".var")) else 0.0
    return np.full(like.shape, start, like.dtype)


def _idle_step(mesh: Mesh) -> TrainStep:
    """Compile a step with the arguments and results of training's that does not train."""

    def local_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # The barrier keeps JAX from handing the arrays back without the runtime.
        state = lax.optimization_barrier(state)
        first_label = batch["label"][0].astype(jnp.float32)
        first_pixel = batch["image"][0, 0, 0, 0].astype(jnp.float32)
        metrics = {"loss": first_label, "top1_error": first_pixel, "top5_error": first_pixel}
        return state, lax.pmean(metrics, DATA_AXES)

    return jax.jit(
        jax.shard_map(
            local_step, mesh=mesh, in_specs=(REPLICATED, BATCH), out_specs=(REPLICATED, REPLICATED)
        ),
        donate_argnums=0,
    )


def _compile(
    function: jax.stages.Wrapped | TrainStep, *arguments: Any
) -> tuple[jax.stages.Compiled, float]:
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def _program(run: Callable[[], Any], compiled: jax.stages.Compiled, seconds: float) -> Program:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return Program(run, jax.block_until_ready, Plan(seconds), lambda: None)
    arguments = int(analysis.argument_size_in_bytes)
    temporary = int(analysis.temp_size_in_bytes)
    in_place = int(analysis.alias_size_in_bytes)
    planned = arguments + int(analysis.output_size_in_bytes) - in_place + temporary

    def peak_of_a_step() -> int | None:
        before = _memory_statistics()
        jax.block_until_ready(run())
        after = _memory_statistics()
        # JAX's peak is that of the whole process: one that did not rise says nothing of this step.
        if not before or not after or after["peak"] <= before["peak"]:
            return None
        return after["peak"] - before["now"] + arguments

    plan = Plan(seconds, temporary, planned)
    return Program(run, jax.block_until_ready, plan, peak_of_a_step)


def _memory_statistics() -> dict[str, int] | None:
    statistics = jax.local_devices()[0].memory_stats()
    if not statistics or "peak_bytes_in_use" not in statistics:
        return None
    return {"peak": statistics["peak_bytes_in_use"], "now": statistics["bytes_in_use"]}
