"""The networks of the paper's Tables 1, 3, 4, 5 and 7: ResNeXt, ResNet as C = 1, and relatives.

A network is a stem, stages of identical blocks, global average pooling and a classifier. Two rules
(Sec. 3.1) determine every width: blocks with the same output size have the same width, and the
width doubles whenever the feature map is downsampled by 2.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

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
    """The architecture that a model name denotes.

    Attributes:
      stem: "imagenet" (7x7 stride 2, then 3x3 max-pool stride 2) or "cifar" (3x3).
      blocks: number of blocks in each stage.
      cardinality: C, groups of a 3x3 convolution.
      group_width: d, channels per group in the first stage.
      preactivation: batch norm and ReLU before each convolution (`models.preact`).
      stem_width: output channels of the stem.
      template_width: output channels of the first stage's blocks.
      block: kind of block, with the classes of its forms.
      deep: ResNet-D: a stem of three 3x3 convolutions, and average pooling in downsampling
        shortcuts.
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
        """Whether blocks are basic (two 3x3 layers) and not bottlenecks."""
        return issubclass(self.block.c, Basic)

    @property
    def usual_image_size(self) -> int:
        """Usual height and width of the images: 224 for ImageNet, 32 for CIFAR."""
        return 224 if self.stem == "imagenet" else 32

    @property
    def usual_classes(self) -> int:
        """Usual number of classes: 1000 (ImageNet-1K) or 10 (CIFAR-10)."""
        return 1000 if self.stem == "imagenet" else 10

    @property
    def total_stride(self) -> int:
        """Stride of the last feature map, in pixels of the image."""
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
        """Create the stem's convolution (ResNet-D: three) and batch norm."""
        if self.deep:
            return DeepStem(self.in_channels, self.stem_width, options, rngs=rngs)
        size, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
        conv = options.conv(self.in_channels, self.stem_width, size, strides=strides, rngs=rngs)
        return ConvNorm(conv, options.norm(self.stem_width))

    @jax.named_scope("stem")
    def apply_stem(
        self, stem: ConvNorm, images: Shaped[Array, "n h w c"]
    ) -> Float[Array, "n h_out w_out c_out"]:
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
    """The full specification of a network; `create_model` documents the fields."""

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

    def features(
        self, images: Shaped[Array, "n h w c"], scales: Float[Array, "n blocks"] | None = None
    ) -> dict[str, Float[Array, "n _ _ _"]]:
        """Return the feature map at the end of each stage.

        Args:
          images: `[N, H, W, 3]`, normalised (or of the network's `in_channels`).
          scales: `[N, blocks]`, factors of the residual functions, in training with stochastic
            depth (`execution.depth_scales`); None: 1.

        Returns:
          `{"conv2": ..., "conv3": ..., ...}`, up to "conv5" for ImageNet
          networks (strides 4, 8, 16, 32) and "conv4" for CIFAR networks
          (strides 1, 2, 4); `[N, H / stride, W / stride, channels]` in the
          compute dtype.
        """
        x = self.spec.architecture.apply_stem(self.stem, images)
        return apply_stages(self.stages, x, self.spec.execution, scales)

    def __call__(
        self, images: Shaped[Array, "n h w c"], scales: Float[Array, "n blocks"] | None = None
    ) -> Float[Array, "n num_classes"]:
        """Classify.

        Args:
          images: `[N, H, W, 3]`, normalised.
          scales: see `features`.

        Returns:
          Logits `[N, num_classes]`, float32 (float64 where `param_dtype` is).

        Raises:
          TypeError: the images are whole numbers, such as uint8 pixels.
        """
        *_, last = self.features(images, scales).values()
        return pool_and_classify(last, self.fc)

    def dense_logits(
        self, images: Shaped[Array, "n h w c"], window: int
    ) -> Float[Array, "n num_classes"]:
        """Classify at every position, fully convolutionally, and average (He et al. 2015).

        Args:
          images: `[N, H, W, 3]`, normalised, of any height and width.
          window: side of the window that is classified at each position, in the last feature map:
            7 in conv5 corresponds to a 224x224 image. For an image of exactly this size the result
            is that of `model(images)`.

        Returns:
          Logits `[N, num_classes]` averaged over the positions, dtype as of `model(images)`.

        Raises:
          ValueError: the last feature map is smaller than the window.
        """
        *_, last = self.features(images).values()
        return pool_and_classify_densely(last, self.fc, window)
