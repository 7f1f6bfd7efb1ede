"""From a configuration to the state and the step of a training."""

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.models.variables import split
from resnext_jax.optim.ema import EmaSpec
from resnext_jax.optim.optimizers import first_step_at
from resnext_jax.parallel.mesh import replicated_sharding
from resnext_jax.training.guard import GuardSpec
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import StepSpec


def step_spec(config: ConfigDict, train_images: int) -> StepSpec:
    """Collect what a training step does beyond taking the gradient of the loss."""
    average = None
    if config.ema.decay is not None:
        warmup = first_step_at(
            config.schedule.warmup_epochs, build.steps_per_epoch(config, train_images)
        )
        average = EmaSpec(
            config.ema.decay,
            config.ema.every_steps,
            start_step=warmup,
            warmup=config.ema.warmup,
        )
    return StepSpec(
        # Detectors have losses of their own, and none of these fields.
        loss=config.optimizer.get("loss", "cross_entropy"),
        target_threshold=config.optimizer.get("target_threshold"),
        label_smoothing=config.optimizer.get("label_smoothing", 0.0),
        drop_path=config.optimizer.get("drop_path", 0.0),
        accumulate_steps=config.accumulate_steps,
        freezing=build.freezing(config),
        guard=GuardSpec(
            skip_nonfinite=config.guard.on_nonfinite == "skip",
            spike_factor=config.guard.spike_factor,
            max_skipped=config.guard.max_skipped,
        ),
        ema=average,
    )


def build_state(
    config: ConfigDict, num_classes: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """Initialise the classifier and the optimiser, a copy on every device of the mesh."""
    return place_state(config, build.build_model(config, num_classes), optimizer, mesh)


def place_state(
    config: ConfigDict, model: nnx.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """Put a model and the optimiser's first state on every device of the mesh."""
    graphdef, params, batch_stats = split(model)
    average = config.ema.decay is not None
    state = TrainState.create(params, batch_stats, optimizer, ema=average)
    return graphdef, jax.device_put(state, replicated_sharding(mesh))
