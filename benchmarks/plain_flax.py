"""ResNet and ResNeXt as a user of Flax writes them, for comparison: modules of Flax alone.

`nnx.Conv` with `feature_group_count`, `nnx.BatchNorm`, XLA's max-pooling, gradients that JAX
derives, optax, and `shard_map` with one mean over the devices. A device's images are one group of
batch norm. No layer of this package is in it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.jax_step import place
from benchmarks.program import (
    LEARNING_RATE,
    MEAN,
    MOMENTUM,
    STD,
    WEIGHT_DECAY,
    plain_architecture,
)


class Block(nnx.Module):
    """A bottleneck block (paper Figure 3c)."""

    def __init__(
        self, channels: int, width: int, groups: int, out: int, strides: int, options: Any
    ) -> None:
        conv, norm = options
        self.conv1 = conv(channels, width, (1, 1))
        self.norm1 = norm(width)
        self.conv2 = conv(
            width,
            width,
            (3, 3),
            strides=strides,
            padding=((1, 1), (1, 1)),
            feature_group_count=groups,
        )
        self.norm2 = norm(width)
        self.conv3 = conv(width, out, (1, 1))
        self.norm3 = norm(out)
        projection = []
        if strides > 1 or channels != out:
            projection = [conv(channels, out, (1, 1), strides=strides), norm(out)]
        self.shortcut = nnx.List(projection)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[N, H, W, channels]` to `[N, H', W', out]`."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        for layer in self.shortcut:
            x = layer(x)
        return nnx.relu(x + y)


class Network(nnx.Module):
    """A network with the ImageNet stem."""

    def __init__(self, name: str, dtype: str, num_classes: int, rngs: nnx.Rngs) -> None:
        architecture = plain_architecture(name)
        if architecture.stem != "imagenet":
            raise ValueError(f"{name!r} has CIFAR's stem; plain Flax's networks have ImageNet's.")
        conv = partial(nnx.Conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.conv = conv(3, 64, (7, 7), strides=2, padding=((3, 3), (3, 3)))
        self.norm = norm(64)
        blocks, channels = [], 64
        for stage, number in enumerate(architecture.blocks):
            width = architecture.cardinality * architecture.group_width * 2**stage
            for index in range(number):
                strides = 2 if stage and not index else 1
                out = 256 * 2**stage
                blocks.append(
                    Block(channels, width, architecture.cardinality, out, strides, (conv, norm))
                )
                channels = out
        self.blocks = nnx.List(blocks)
        self.classifier = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images `[N, H, W, 3]` to logits `[N, num_classes]`, float32."""
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.astype(jnp.float32).mean((1, 2)))


def train_step(
    name: str,
    dtype: str,
    mesh: Mesh,
    images: int,
    *,
    image_size: int = 224,
    num_classes: int = 1000,
) -> tuple[Any, ...]:
    """Return a step of SGD with momentum and weight decay, and the shapes of its arguments.

    Args:
      name: of a network for ImageNet, as `create_model` has it.
      dtype: in which it computes.
      mesh: of devices that split the batch.
      images: of a batch.
      image_size: height and width.
      num_classes: K.

    Raises:
      ValueError: another network than those that `plain_architecture` has, or CIFAR's stem.
    """
    model = nnx.eval_shape(lambda: Network(name, dtype, num_classes, nnx.Rngs(0)))
    graphdef, *arrays = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = (nnx.to_pure_dict(each) for each in arrays)
    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.sgd(LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
    )

    def step(params: Any, stats: Any, opt_state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            model = nnx.merge(graphdef, params, stats)
            model.train()
            x = (batch["image"] - jnp.asarray(MEAN)) / jnp.asarray(STD)
            logits = model(x.astype(dtype))
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            right = (logits.argmax(-1) == batch["label"]).mean()
            return loss, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), (loss, right))

        gradients, aux = jax.grad(loss_fn, has_aux=True)(params)
        gradients, (stats, metrics) = jax.lax.pmean((gradients, aux), mesh.axis_names)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, metrics

    copy, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    # Without types that say what varies over devices, whose gradients would be summed already.
    sharded = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(copy, copy, copy, split),
        out_specs=copy,
        check_vma=False,
    )
    batch = {
        "image": jax.ShapeDtypeStruct((images, image_size, image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((images,), jnp.int32),
    }
    state = params, stats, jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(sharded, donate_argnums=(0, 1, 2))
    arguments = place(state, NamedSharding(mesh, copy))
    return compiled, *arguments, place(batch, NamedSharding(mesh, split))
