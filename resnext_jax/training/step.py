"""The training step: (state, batch) -> (state, metrics), the same on any number of devices."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import lax
from jax.sharding import Mesh

from resnext_jax.data.augment import SKIPPED, Batch
from resnext_jax.evaluation.metrics import cross_entropy, topk_wrong
from resnext_jax.models.variables import Arrays, merge, split
from resnext_jax.training.mesh import BATCH, DATA_AXES, REPLICATED
from resnext_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    preprocess: Callable[[Batch], jax.Array],
    mesh: Mesh,
    *,
    label_smoothing: float = 0.0,
) -> TrainStep:
    """Compile one step of data-parallel training.

    `shard_map` and not automatic sharding: XLA's partitioner would gather the
    whole batch on every device for a grouped convolution (openxla/xla#47945).

    Args:
      graphdef: of the model, from `models.variables.split`; built with
        `bn_axis_name=MEMBER_AXIS`.
      optimizer: an optax transformation.
      preprocess: from a shipped batch to normalised images.
      mesh: of `training.mesh.make_mesh`.
      label_smoothing: see `evaluation.metrics.cross_entropy`.

    Returns:
      A function of the state (donated) and a global batch with `image` and
      `label`, to the next state and the batch's mean `loss` (without weight
      decay), `top1_error` and `top5_error` (percent); if it has `skipped`, also
      the mean of that.
    """

    def loss_fn(params: Arrays, batch_stats: Arrays, batch: Batch) -> tuple[jax.Array, Any]:
        model = merge(graphdef, params, batch_stats)
        model.train()
        logits = model(preprocess(batch))
        labels = batch["label"]
        loss = cross_entropy(logits, labels, label_smoothing).mean()
        metrics = {
            "loss": loss,
            "top1_error": 100.0 * topk_wrong(logits, labels, 1).mean(),
            "top5_error": 100.0 * topk_wrong(logits, labels, 5).mean(),
        }
        if SKIPPED in batch:
            metrics[SKIPPED] = batch[SKIPPED].mean()
        _, _, batch_stats = split(model)
        return loss, (batch_stats, metrics)

    def local_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Parameters are cast to a device-varying type first. Without the cast
        # shard_map sums the gradient of replicated parameters over devices by
        # itself, and the mean below would leave it too large by their number.
        params = lax.pcast(state.params, DATA_AXES, to="varying")
        (_, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            params, state.batch_stats, batch
        )
        # Every device holds as many images, so the mean of means is the mean.
        # For the running statistics it is the mean over all batch-norm groups.
        gradients, (batch_stats, metrics) = lax.pmean((gradients, aux), DATA_AXES)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, metrics

    return jax.jit(
        jax.shard_map(
            local_step,
            mesh=mesh,
            in_specs=(REPLICATED, BATCH),
            out_specs=(REPLICATED, REPLICATED),
        ),
        donate_argnums=0,
    )
