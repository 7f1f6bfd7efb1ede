"""The networks of the paper's Tables 1, 3, 4, 5 and 7: ResNeXt, and ResNet as C = 1.

A network is a stem, stages of equal blocks, global average pooling and a
classifier. The two rules of Sec. 3.1 set every width: blocks that make maps of
one size share their widths, and each halving of the map doubles them.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from resnext_jax.models.blocks import BottleneckC
from resnext_jax.models.layers import Conv, ConvNorm, uniform_fan_in
from resnext_jax.ops.batch_norm import BatchNorm
from resnext_jax.ops.grouped_conv import Implementation


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a model name stands for.

    Attributes:
      stem: "imagenet" (7x7 stride 2, then 3x3 max-pool stride 2) or "cifar" (3x3).
      blocks: number of blocks in each stage.
      cardinality: C, groups a 3x3 convolution.
      group_width: d, channels a group in the first stage.
    """

    stem: Literal["imagenet", "cifar"]
    blocks: tuple[int, ...]
    cardinality: int
    group_width: int


class ResNeXt(nnx.Module):
    """A ResNeXt (or ResNet, C = 1) classifier."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int,
        stem_width: int,
        template_width: int,
        residual: bool,
        bn_group_size: int | None,
        bn_axis_name: str | None,
        conv_implementation: Implementation,
        dtype: jax.typing.DTypeLike,
        param_dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Make the network; `create_model` explains the arguments and gives their defaults."""
        conv = partial(
            Conv,
            implementation=conv_implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        norm = partial(
            BatchNorm,
            group_size=bn_group_size,
            axis_name=bn_axis_name,
            dtype=dtype,
            param_dtype=param_dtype,
        )

        imagenet = architecture.stem == "imagenet"
        stem = conv(3, stem_width, 7, strides=2) if imagenet else conv(3, stem_width, 3)
        self.stem = ConvNorm(stem, norm(stem_width))
        self.stem_pool = imagenet

        features = stem_width
        self.stages: nnx.Dict[nnx.List[BottleneckC]] = nnx.Dict()
        for stage, blocks in enumerate(architecture.blocks):
            out_features = template_width * 2**stage
            stage_blocks: nnx.List[BottleneckC] = nnx.List([])
            for index in range(blocks):
                block = BottleneckC(
                    features,
                    out_features,
                    cardinality=architecture.cardinality,
                    group_width=architecture.group_width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    residual=residual,
                    conv=conv,
                    norm=norm,
                )
                stage_blocks.append(block)
                features = out_features
            # The paper counts the stem as conv1: stages are conv2, conv3, ...
            self.stages[f"conv{stage + 2}"] = stage_blocks

        self.classifier_dtype = jnp.promote_types(jnp.float32, param_dtype)
        self.fc = nnx.Linear(
            features,
            num_classes,
            dtype=self.classifier_dtype,
            param_dtype=param_dtype,
            kernel_init=uniform_fan_in,
            rngs=rngs,
        )

    def features(self, images: jax.Array) -> dict[str, jax.Array]:
        """Return the feature map at the end of each stage.

        Args:
          images: `[N, H, W, 3]`, normalised.

        Returns:
          `{"conv2": ..., "conv3": ..., ...}`, up to "conv5" for ImageNet
          networks (strides 4, 8, 16, 32) and "conv4" for CIFAR networks
          (strides 1, 2, 4); `[N, H / stride, W / stride, channels]` in the
          compute dtype.
        """
        x = nnx.relu(self.stem(images))
        if self.stem_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        maps = {}
        for name, blocks in self.stages.items():
            for block in blocks:
                x = block(x)
            maps[name] = x
        return maps

    def __call__(self, images: jax.Array) -> jax.Array:
        """Classify.

        Args:
          images: `[N, H, W, 3]`, normalised.

        Returns:
          Logits `[N, num_classes]`, float32 (float64 where `param_dtype` is).
        """
        *_, last = self.features(images).values()
        pooled = last.astype(self.classifier_dtype).mean(axis=(1, 2))
        return self.fc(pooled)
