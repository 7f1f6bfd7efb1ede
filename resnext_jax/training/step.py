"""The training step: (state, batch) -> (state, metrics), the same on any number of devices."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from resnext_jax.data.augment import DEPTH, SKIPPED, Batch
from resnext_jax.data.mixing import MIX, mix, partners
from resnext_jax.evaluation.metrics import binary_cross_entropy, cross_entropy, topk_wrong
from resnext_jax.models.execution import depth_scales
from resnext_jax.models.variables import Arrays, merge, split
from resnext_jax.ops import cpu
from resnext_jax.ops.cpu.sums import norm
from resnext_jax.optim import ema
from resnext_jax.optim.ema import EmaSpec
from resnext_jax.optim.freezing import Freezing
from resnext_jax.parallel.joining import join
from resnext_jax.parallel.mesh import DATA_AXES, REPLICATED, batch_spec
from resnext_jax.training.agreement import REQUESTS, Request, agreed_requests
from resnext_jax.training.guard import GuardSpec, judge
from resnext_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Loss = Callable[[Arrays, Arrays, Batch], tuple[jax.Array, tuple[Arrays, Metrics]]]


class TrainStep(Protocol):
    """A compiled step; see `make_step`.

    It is compiled with options of its own on the CPU, and JAX has no such function inside of
    another that is compiled (`jax.jit`, `lax.scan`): there, take its `__wrapped__`.
    """

    def __call__(self, state: TrainState, batch: Batch, /) -> tuple[TrainState, Metrics]:
        """Take the step."""

    def lower(self, state: TrainState, batch: Batch, /) -> jax.stages.Lowered:
        """Compile it ahead of its first call, as `jax.jit` does."""


# Among a step's metrics: whether its result was taken, and whether the run is halted (bool).
ACCEPTED, HALTED = "accepted", "halted"


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a step does beyond taking the gradient of the mean loss.

    Attributes:
      loss: "cross_entropy" or "bce", see `evaluation.metrics.binary_cross_entropy`.
      target_threshold: of "bce".
      label_smoothing: see `evaluation.metrics.cross_entropy`.
      drop_path: probability that the last block's residual function is dropped, see
        `models.execution.depth_scales`; 0: the batch has no `depth`.
      accumulate_steps: M, micro-batches of a batch, one after the other: for
        batches that do not fit the devices' memory.
      freezing: which arrays stay as they are.
      guard: which results are not taken.
      ema: how the weights are averaged; None where the state has no average.
    """

    loss: str = "cross_entropy"
    target_threshold: float | None = None
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    accumulate_steps: int = 1
    freezing: Freezing = dataclasses.field(default_factory=Freezing)
    guard: GuardSpec = dataclasses.field(default_factory=GuardSpec)
    ema: EmaSpec | None = None


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    preprocess: Callable[[Batch], jax.Array],
    mesh: Mesh,
    spec: StepSpec | None = None,
) -> TrainStep:
    """Compile one step of training a classifier.

    Args:
      graphdef: of the model, from `models.variables.split`; built with
        `bn_axis_name=MEMBER_AXIS`.
      optimizer: an optax transformation.
      preprocess: from a shipped batch to normalised images.
      mesh: of `parallel.mesh.make_mesh`.
      spec: everything else; None is a plain step.

    Returns:
      See `make_step`. A batch has `image` and `label`; its metrics are the mean
      `loss` (without weight decay), `top1_error` and `top5_error` (percent;
      where images are mixed, of the label with the larger share), and the mean
      of `skipped` if the batch has it.
    """
    spec = spec or StepSpec()

    def loss_fn(
        params: Arrays, batch_stats: Arrays, batch: Batch
    ) -> tuple[jax.Array, tuple[Arrays, Metrics]]:
        model = merge(graphdef, spec.freezing.stop_gradients(params), batch_stats)
        spec.freezing.set_modes(model)
        images, labels = preprocess(batch), batch["label"]
        scales = depth_scales(batch[DEPTH], spec.drop_path) if DEPTH in batch else None
        own: jax.Array | None = None
        if MIX in batch:
            images, own = mix(images, batch[MIX])
        logits = model(images) if scales is None else model(images, scales)
        losses = _losses(spec, logits, labels, own)
        if own is not None:
            labels = jnp.where(own >= 0.5, labels, partners(labels))
        loss = losses.mean()
        metrics = {
            "loss": loss,
            "top1_error": 100.0 * topk_wrong(logits, labels, 1).mean(),
            "top5_error": 100.0 * topk_wrong(logits, labels, 5).mean(),
        }
        if SKIPPED in batch:
            metrics[SKIPPED] = batch[SKIPPED].mean()
        _, _, batch_stats = split(model)
        return loss, (batch_stats, metrics)

    return make_step(loss_fn, optimizer, mesh, spec)


def _losses(
    spec: StepSpec, logits: jax.Array, labels: jax.Array, own: jax.Array | None
) -> jax.Array:
    """Return each image's loss `[N]`; `own`: share of its label, the partner's has the rest."""
    if spec.loss == "bce":
        targets = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
        if own is not None:
            share = own.astype(logits.dtype)[:, None]
            targets = share * targets + (1 - share) * partners(targets)
        return binary_cross_entropy(logits, targets, spec.label_smoothing, spec.target_threshold)
    if own is None:
        return cross_entropy(logits, labels, spec.label_smoothing)
    return own * cross_entropy(logits, labels, spec.label_smoothing) + (1 - own) * cross_entropy(
        logits, partners(labels), spec.label_smoothing
    )


def make_step(
    loss_fn: Loss, optimizer: optax.GradientTransformation, mesh: Mesh, spec: StepSpec
) -> TrainStep:
    """Compile one step of data-parallel training.

    `shard_map` and not automatic sharding: XLA's partitioner would gather the
    whole batch on every device for a grouped convolution (openxla/xla#47945).

    Args:
      loss_fn: from parameters, running statistics and one device's images to
        their mean loss; the statistics after them; and metrics, means over the
        images, `loss` among them.
      optimizer: an optax transformation.
      mesh: of `parallel.mesh.make_mesh`.
      spec: everything else.

    Returns:
      A function of the state (donated) and a global batch of arrays `[N, ...]`
      (with M micro-batches `[M, N / M, ...]`), to the next state and the batch's
      metrics; the `gradient_norm` (L2, before clipping); `accepted` and `halted`
      (see `training.guard`; a step that is not accepted leaves the state as it
      was, but counts unless halted); and the hosts' `requests`, if the batch has
      them.
    """

    def local_gradients(
        params: Arrays, batch_stats: Arrays, batch: Batch
    ) -> tuple[Arrays, tuple[Arrays, Metrics]]:
        """Gradients, running statistics and metrics of this device's images."""
        gradient = jax.grad(loss_fn, has_aux=True)
        if spec.accumulate_steps == 1:
            return gradient(params, batch_stats, batch)

        def accumulate(sums: Any, micro_batch: Batch) -> tuple[Any, Metrics]:
            # Each begins with the same running statistics: they move once a step, by
            # the mean over all groups.
            gradients, (moved, metrics) = gradient(params, batch_stats, micro_batch)
            return jax.tree.map(jnp.add, sums, (gradients, moved)), metrics

        # Typed as what is added to them: each device's own.
        no_stats = lax.pcast(jax.tree.map(jnp.zeros_like, batch_stats), DATA_AXES, to="varying")
        nothing = jax.tree.map(jnp.zeros_like, params), no_stats
        sums, metrics = lax.scan(accumulate, nothing, batch)
        gradients, moved = jax.tree.map(lambda x: x / spec.accumulate_steps, sums)
        return gradients, (moved, jax.tree.map(lambda x: x.mean(axis=0), metrics))

    def local_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        halt = jnp.zeros((), bool)
        events = {}
        if REQUESTS in batch:
            batch = dict(batch)
            events[REQUESTS] = agreed_requests(batch.pop(REQUESTS), DATA_AXES)
            halt = events[REQUESTS][Request.HALT]
        # Parameters are cast to a device-varying type first. Without the cast
        # shard_map sums the gradient of replicated parameters over devices by
        # itself, and the mean below would leave it too large by their number.
        params = lax.pcast(state.params, DATA_AXES, to="varying")
        gradients, aux = local_gradients(params, state.batch_stats, batch)
        # Every device holds as many images, so the mean of means is the mean.
        # For the running statistics it is the mean over all batch-norm groups.
        joined, separate = join(gradients)
        joined_aux, separate_aux = join(aux)
        joined, joined_aux = lax.pmean((joined, joined_aux), DATA_AXES)
        gradients, (batch_stats, metrics) = separate(joined), separate_aux(joined_aux)
        # Frozen ones as they are: averaging equal numbers may round them.
        batch_stats = {
            name: state.batch_stats[name] if spec.freezing(name) else value
            for name, value in batch_stats.items()
        }
        with jax.named_scope("optimizer"):
            metrics["gradient_norm"] = norm(joined)
            verdict, guard = judge(
                spec.guard, state.guard, metrics["loss"], metrics["gradient_norm"], halt
            )
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            new = {
                "params": optax.apply_updates(state.params, updates),
                "batch_stats": batch_stats,
                "opt_state": opt_state,
            }
            old = {name: getattr(state, name) for name in new}
            step = state.step + jnp.where(verdict.halted, 0, 1)
            if spec.ema is not None and state.ema is not None:
                weights = {name: new[name] for name in ("params", "batch_stats")}
                new["ema"] = ema.update(spec.ema, state.ema, weights, step)
                old["ema"] = state.ema
            chosen = {"ema": None} | verdict.choose(new, old)
            chosen["opt_state"] = verdict.count(opt_state, chosen["opt_state"])
        new_state = TrainState(**chosen, step=step, guard=guard)
        events |= {ACCEPTED: verdict.accepted, HALTED: verdict.halted}
        return new_state, metrics | events

    return jax.jit(
        jax.shard_map(
            local_step,
            mesh=mesh,
            in_specs=(REPLICATED, batch_spec(spec.accumulate_steps)),
            out_specs=(REPLICATED, REPLICATED),
        ),
        donate_argnums=0,
        compiler_options=cpu.compiler_options(mesh),
    )
