"""A network and a batch small enough to train many times in a test."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from resnext_jax.data.augment import NUM_RANDOM, Batch, DeviceTransform
from resnext_jax.models import create_model
from resnext_jax.models.blocks import Form
from resnext_jax.models.variables import split
from resnext_jax.ops.grouped_conv import Implementation
from resnext_jax.optim.optimizers import sgd
from resnext_jax.parallel.mesh import MEMBER_AXIS, batch_sharding, make_mesh, replicated_sharding
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import StepSpec, TrainStep, make_train_step

CLASSES = 7
TRANSFORM = DeviceTransform(mean=(120.0, 110.0, 100.0), std=(60.0, 61.0, 62.0), max_shift=1)


def tiny_model(
    dtype: str,
    bn_group_size: int | None,
    bn_axis_name: str | None = MEMBER_AXIS,
    form: Form = "c",
    conv_implementation: Implementation = "auto",
    name: str = "resnext11_2x4d",
    scan_blocks: bool = False,
) -> nnx.Module:
    return create_model(
        name,
        num_classes=CLASSES,
        form=form,
        conv_implementation=conv_implementation,
        stem_width=8,
        template_width=16,
        rngs=nnx.Rngs(0),
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(dtype),
        bn_group_size=bn_group_size,
        bn_axis_name=bn_axis_name,
        scan_blocks=scan_blocks,
    )


def tiny_batch(batch_size: int, step: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (batch_size, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, batch_size, dtype=np.int32),
        "random": rng.random((batch_size, NUM_RANDOM), dtype=np.float32),
    }


class TinyRun:
    """The tiny network on some of the devices, ready to take steps."""

    def __init__(
        self,
        devices: int,
        bn_group_size: int | None,
        *,
        batch_size: int = 64,
        dtype: str = "float64",
        learning_rate: float = 0.1,
        weight_decay: float = 1e-4,
        form: Form = "c",
        conv_implementation: Implementation = "auto",
        name: str = "resnext11_2x4d",
        scan_blocks: bool = False,
        spec: StepSpec | None = None,
        transform: DeviceTransform = TRANSFORM,
        optimizer: optax.GradientTransformation | None = None,
    ):
        """Build mesh, state and step."""
        self.batch_size = batch_size
        spec = spec or StepSpec()
        self.accumulate_steps = spec.accumulate_steps
        self.mesh: Mesh = make_mesh(
            batch_size,
            bn_group_size,
            jax.devices()[:devices],
            accumulate_steps=self.accumulate_steps,
        )
        self.graphdef, params, batch_stats = split(
            tiny_model(
                dtype,
                bn_group_size,
                form=form,
                conv_implementation=conv_implementation,
                name=name,
                scan_blocks=scan_blocks,
            )
        )
        optimizer = optimizer or sgd(
            lambda step: jnp.asarray(learning_rate),
            momentum=0.9,
            nesterov=True,
            weight_decay=weight_decay,
        )
        state = TrainState.create(params, batch_stats, optimizer, ema=spec.ema is not None)
        self.state = jax.device_put(state, replicated_sharding(self.mesh))
        self.step: TrainStep = make_train_step(
            self.graphdef, optimizer, transform.train, self.mesh, spec
        )

    def batch(self, step: int = 0) -> Batch:
        """Return global batch `step` on the devices."""
        return self.put(tiny_batch(self.batch_size, step))

    def put(self, batch: dict[str, np.ndarray]) -> Batch:
        """Return a global batch `[N, ...]` on the devices."""
        parts = self.accumulate_steps
        if parts > 1:
            batch = {
                name: array.reshape(parts, -1, *array.shape[1:]) for name, array in batch.items()
            }
        return jax.device_put(batch, batch_sharding(self.mesh, parts))

    def train(self, steps: int) -> list[float]:
        """Take steps; return their losses."""
        losses = []
        for step in range(steps):
            self.state, metrics = self.step(self.state, self.batch(step))
            losses.append(float(metrics["loss"]))
        return losses


def save_state(checkpoints: Checkpoints, state: TrainState, notes: dict[str, Any]) -> None:
    """Begin to save a state, as the loop does."""
    checkpoints.save(int(state.step), state.as_items(), notes)


def restore_state(checkpoints: Checkpoints, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Read the newest checkpoint, as the loop does."""
    items, notes = checkpoints.restore(like.as_items())
    return TrainState.from_items(items), notes
