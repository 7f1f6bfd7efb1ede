"""The networks of the paper's Tables 1, 3, 4, 5 and 7: ResNeXt, ResNet as C = 1, and relatives.

A network is a stem, stages of equal blocks, global average pooling and a
classifier. The two rules of Sec. 3.1 set every width: blocks that make maps of
one size share their widths, and each halving of the map doubles them.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from resnext_jax.models.blocks import BOTTLENECK, Basic, BlockForms, BlockSpec, Form, Residual
from resnext_jax.models.execution import Execution, apply_stages
from resnext_jax.models.layers import (
    ConvNorm,
    DeepStem,
    LayerOptions,
    pool_and_classify,
    pool_and_classify_densely,
)
from resnext_jax.ops.pooling import max_pool


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a model name stands for.

    Attributes:
      stem: "imagenet" (7x7 stride 2, then 3x3 max-pool stride 2) or "cifar" (3x3).
      blocks: number of blocks in each stage.
      cardinality: C, groups a 3x3 convolution.
      group_width: d, channels a group in the first stage.
      preactivation: batch norm and ReLU before each convolution (`models.preact`).
      stem_width: channels of the stem's result.
      template_width: output channels of the first stage's blocks.
      block: kind of block, in the forms that it exists in.
      deep: ResNet-D: a stem of three 3x3 convolutions, and shortcuts that average where
        maps are halved.
      in_channels: channels of the images.
    """

    stem: Literal["imagenet", "cifar"]
    blocks: tuple[int, ...]
    cardinality: int
    group_width: int
    preactivation: bool = False
    stem_width: int = 64
    template_width: int = 256
    block: BlockForms = BOTTLENECK
    deep: bool = False
    in_channels: int = 3

    @property
    def basic(self) -> bool:
        """Whether a block has two 3x3 layers, in place of a bottleneck."""
        return issubclass(self.block.c, Basic)

    @property
    def usual_image_size(self) -> int:
        """Height and width of ImageNet's crops, or of CIFAR's images."""
        return 224 if self.stem == "imagenet" else 32

    @property
    def usual_classes(self) -> int:
        """Classes of ImageNet-1K, or of CIFAR-10."""
        return 1000 if self.stem == "imagenet" else 10

    @property
    def total_stride(self) -> int:
        """Pixels of the image from one position of the last feature map to the next."""
        return (4 if self.stem == "imagenet" else 1) * 2 ** (len(self.blocks) - 1)

    def block_specs(self, options: LayerOptions, *, residual: bool) -> dict[str, list[BlockSpec]]:
        """Sizes of every block, by stage.

        The paper counts the stem as conv1: stages are conv2, conv3, ...
        """
        features = self.stem_width
        stages: dict[str, list[BlockSpec]] = {}
        for stage, blocks in enumerate(self.blocks):
            specs = stages[f"conv{stage + 2}"] = []
            for index in range(blocks):
                spec = BlockSpec(
                    features,
                    self.template_width * 2**stage,
                    cardinality=self.cardinality,
                    group_width=self.group_width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    residual=residual,
                    pooled_shortcut=self.deep,
                    options=options,
                )
                specs.append(spec)
                features = spec.out_features
        return stages

    def make_stem(self, options: LayerOptions, *, rngs: nnx.Rngs) -> ConvNorm:
        """Make the first convolution (of ResNet-D: three) and its batch norm."""
        if self.deep:
            return DeepStem(self.in_channels, self.stem_width, options, rngs=rngs)
        size, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
        conv = options.conv(self.in_channels, self.stem_width, size, strides=strides, rngs=rngs)
        return ConvNorm(conv, options.norm(self.stem_width))

    @jax.named_scope("stem")
    def apply_stem(self, stem: ConvNorm, images: jax.Array) -> jax.Array:
        """Convolve, normalise, rectify, and pool where the stem does.

        Raises:
          TypeError: the images are not floating point.
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                f"images must be normalised floats, got {images.dtype}: subtract the mean of each "
                "channel and divide by its standard deviation first (DeviceTransform.test does)."
            )
        x = nnx.relu(stem(images))
        if self.stem == "imagenet":
            x = max_pool(x, window=3, strides=2, padding=1)
        return x


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """Everything that makes a network; `create_model` explains the fields."""

    architecture: Architecture
    num_classes: int = 1000
    form: Form = "c"
    residual: bool = True
    options: LayerOptions = dataclasses.field(default_factory=LayerOptions)
    execution: Execution = dataclasses.field(default_factory=Execution)


class ResNeXt(nnx.Module):
    """A ResNeXt (or ResNet, C = 1) classifier."""

    def __init__(self, spec: NetworkSpec, *, rngs: nnx.Rngs):
        """Make the network that `spec` describes."""
        self.spec = spec
        options, architecture = spec.options, spec.architecture
        self.stem = architecture.make_stem(options, rngs=rngs)
        block, features = architecture.block.of(spec.form), architecture.stem_width
        self.stages: nnx.Dict[nnx.List[Residual]] = nnx.Dict()
        for name, specs in architecture.block_specs(options, residual=spec.residual).items():
            self.stages[name] = nnx.List([block(block_spec, rngs=rngs) for block_spec in specs])
            features = specs[-1].out_features
        self.fc = options.classifier(features, spec.num_classes, rngs=rngs)

    def features(self, images: jax.Array) -> dict[str, jax.Array]:
        """Return the feature map at the end of each stage.

        Args:
          images: `[N, H, W, 3]`, normalised (or of the network's `in_channels`).

        Returns:
          `{"conv2": ..., "conv3": ..., ...}`, up to "conv5" for ImageNet
          networks (strides 4, 8, 16, 32) and "conv4" for CIFAR networks
          (strides 1, 2, 4); `[N, H / stride, W / stride, channels]` in the
          compute dtype.
        """
        x = self.spec.architecture.apply_stem(self.stem, images)
        return apply_stages(self.stages, x, self.spec.execution)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Classify.

        Args:
          images: `[N, H, W, 3]`, normalised.

        Returns:
          Logits `[N, num_classes]`, float32 (float64 where `param_dtype` is).

        Raises:
          TypeError: the images are whole numbers, such as uint8 pixels.
        """
        *_, last = self.features(images).values()
        return pool_and_classify(last, self.fc)

    def dense_logits(self, images: jax.Array, window: int) -> jax.Array:
        """Classify at every position, fully convolutionally, and average (He et al. 2015).

        Args:
          images: `[N, H, W, 3]`, normalised, of any height and width.
          window: side, in the last feature map, of what is classified at a position: 7 of
            conv5 is what a 224x224 image has. An image of just this size gets the logits that
            `model(images)` gives.

        Returns:
          Logits `[N, num_classes]`, as of `model(images)`, averaged over the positions.

        Raises:
          ValueError: the last feature map is smaller than the window.
        """
        *_, last = self.features(images).values()
        return pool_and_classify_densely(last, self.fc, window)
