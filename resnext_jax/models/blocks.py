"""The residual blocks of the paper's Figure 3, three forms of one function.

Form a sums C branches of 1x1, 3x3, 1x1; form b concatenates C branches of 1x1,
3x3 before a single 1x1; form c has one grouped 3x3. They compute the same function for weights
converted by `models.equivalence`, with batch norm and ReLU placed as here. Forms a and b are
implemented as C explicit branches, so that their cost can be compared. Use form c for training.
With cardinality 1 all are the bottleneck block of ResNet.

The module also has the basic block of ResNet-18 and 34, and both kinds of block with
squeeze-and-excitation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from resnext_jax.models.layers import ConvNorm, LayerOptions, PooledConvNorm, he_fan_out

Form = Literal["a", "b", "c"]
FORMS: tuple[Form, ...] = ("a", "b", "c")


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """Sizes of a block, the same for all three forms.

    Attributes:
      in_features: input channels.
      out_features: output channels.
      cardinality: C, the number of branches or groups.
      group_width: d, channels per branch; the bottleneck has C * d.
      strides: 1, or 2 in the first block of a stage; applied by the 3x3 convolution.
      residual: False removes the shortcut (the ablation of Sec. 5.1).
      pooled_shortcut: downsample the shortcut by average pooling, as in ResNet-D, instead of a
        strided projection.
      options: options of all layers.
    """

    in_features: int
    out_features: int
    cardinality: int
    group_width: int
    strides: int = 1
    residual: bool = True
    pooled_shortcut: bool = False
    options: LayerOptions = dataclasses.field(default_factory=LayerOptions)

    @property
    def width(self) -> int:
        """Channels of the bottleneck, C * d."""
        return self.cardinality * self.group_width

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a projection, because channels or size change."""
        changes = self.strides != 1 or self.in_features != self.out_features
        return self.residual and changes


class Aggregation(nnx.Module):
    """A sum of transformations of one input (paper Eqn. 2, in the general form of Eqn. 3).

    The branches may be any modules with the same output shape; they need not be of one kind.
    """

    def __init__(self, branches: Sequence[nnx.Module]):
        """Aggregate `branches`, of which there must be at least one."""
        if not branches:
            raise ValueError("an aggregation needs at least one branch.")
        self.branches = nnx.List(branches)

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply every branch to `x` and add up."""
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class Branch(nnx.Module):
    """One transformation: 1x1 and 3x3 to d channels, and in form a 1x1 to the block's width.

    Batch norm and ReLU follow the first two convolutions. The last one has neither: form a
    normalises after the sum.
    """

    def __init__(self, spec: BlockSpec, *, returns_to_width: bool, rngs: nnx.Rngs):
        """Create one of the C branches."""
        options, width = spec.options, spec.group_width
        self.conv1 = options.conv(spec.in_features, width, 1, rngs=rngs)
        self.norm1 = options.norm(width)
        self.conv2 = options.conv(width, width, 3, strides=spec.strides, rngs=rngs)
        self.norm2 = options.norm(width)
        self.conv3 = (
            options.conv(width, spec.out_features, 1, rngs=rngs) if returns_to_width else None
        )

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Map `[N, H, W, in_features]` to `[N, H / strides, W / strides, d or out_features]`."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        return y if self.conv3 is None else self.conv3(y)


class Residual(nnx.Module):
    """Base class of blocks: the shortcut, the sum and the last ReLU.

    If the number of channels or the size changes, the shortcut is a 1x1 projection with batch norm
    (option B of He et al. 2016).
    """

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        """Create the shortcut."""
        self.spec = spec
        self.shortcut = projection(spec, rngs=rngs) if spec.projects else None

    def transform(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply the residual function, up to its last batch norm."""
        raise NotImplementedError

    def __call__(
        self, x: Float[Array, "n h w cin"], scale: Float[Array, " n"] | None = None
    ) -> Float[Array, "n h_out w_out cout"]:
        """Map `[N, H, W, in_features]` to `[N, H / strides, W / strides, out_features]`.

        Args:
          x: the input.
          scale: `[N]`, factor of the residual function (stochastic depth); None: 1.
        """
        y = scaled(self.transform(x), scale)
        if self.spec.residual:
            y = y + (x if self.shortcut is None else self.shortcut(x))
        return nnx.relu(y)


def scaled(y: Float[Array, "n h w c"], scale: Float[Array, " n"] | None) -> Float[Array, "n h w c"]:
    """Multiply each image's map by its factor; None: 1."""
    return y if scale is None else y * scale.astype(y.dtype)[:, None, None, None]


def projection(spec: BlockSpec, *, rngs: nnx.Rngs) -> ConvNorm:
    """Create the projection shortcut of a block that changes the number of channels or the size."""
    pooled = spec.pooled_shortcut and spec.strides == 2
    conv = spec.options.conv(
        spec.in_features, spec.out_features, 1, strides=1 if pooled else spec.strides, rngs=rngs
    )
    join = PooledConvNorm if pooled else ConvNorm
    return join(conv, spec.options.norm(spec.out_features))


class BottleneckA(Residual):
    """C branches of 1x1, 3x3, 1x1, summed (paper Figure 3a).

    The last batch norm comes after the sum, before the shortcut is added.
    """

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        """Make the block."""
        self.aggregation = Aggregation(
            [Branch(spec, returns_to_width=True, rngs=rngs) for _ in range(spec.cardinality)]
        )
        self.norm3 = spec.options.norm(spec.out_features)
        super().__init__(spec, rngs=rngs)

    def transform(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Sum the branches."""
        return self.norm3(self.aggregation(x))


class BottleneckB(Residual):
    """C branches of 1x1, 3x3, concatenated, and one 1x1 (paper Figure 3b)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        """Make the block."""
        self.branches = nnx.List(
            [Branch(spec, returns_to_width=False, rngs=rngs) for _ in range(spec.cardinality)]
        )
        self.conv3 = spec.options.conv(spec.width, spec.out_features, 1, rngs=rngs)
        self.norm3 = spec.options.norm(spec.out_features)
        super().__init__(spec, rngs=rngs)

    def transform(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Concatenate the branches and map them back to the block's width."""
        y = jnp.concatenate([branch(x) for branch in self.branches], axis=-1)
        return self.norm3(self.conv3(y))


class BottleneckC(Residual):
    """1x1, grouped 3x3, 1x1 (paper Figure 3c)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        """Make the block."""
        options, width = spec.options, spec.width
        self.conv1 = options.conv(spec.in_features, width, 1, rngs=rngs)
        self.norm1 = options.norm(width)
        self.conv2 = options.conv(
            width, width, 3, strides=spec.strides, groups=spec.cardinality, rngs=rngs
        )
        self.norm2 = options.norm(width)
        self.conv3 = options.conv(width, spec.out_features, 1, rngs=rngs)
        self.norm3 = options.norm(spec.out_features)
        super().__init__(spec, rngs=rngs)

    def transform(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply the three convolutions."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        return self.norm3(self.conv3(y))


class Basic(Residual):
    """3x3, 3x3, both with the block's output channels (ResNet-18 and 34, He et al. 2016)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        """Make the block; the first convolution has the stride."""
        options, width = spec.options, spec.out_features
        self.conv1 = options.conv(spec.in_features, width, 3, strides=spec.strides, rngs=rngs)
        self.norm1 = options.norm(width)
        self.conv2 = options.conv(width, width, 3, rngs=rngs)
        self.norm2 = options.norm(width)
        super().__init__(spec, rngs=rngs)

    def transform(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply the two convolutions."""
        return self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))


class SqueezeExcitation(nnx.Module):
    """Squeeze-and-excitation (Hu et al. 2018): scale each channel by a gate between 0 and 1.

    The gates are computed from the channels' spatial means by two linear layers, with a sixteenth
    of the channels in between.
    """

    def __init__(self, features: int, options: LayerOptions, *, rngs: nnx.Rngs):
        """Make the two layers, which compute at least in float32."""
        self.fc1 = options.linear(features, squeezed(features), he_fan_out, rngs=rngs)
        self.fc2 = options.linear(squeezed(features), features, he_fan_out, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Scale the channels of `[N, H, W, features]`."""
        mean = x.astype(self.fc1.dtype).mean(axis=(1, 2))
        gate = nnx.sigmoid(self.fc2(nnx.relu(self.fc1(mean))))
        return x * gate[:, None, None].astype(x.dtype)


def squeezed(features: int) -> int:
    """Width between the two layers: a sixteenth, rounded to a multiple of 8 above 0, as in timm."""
    return max(8, (features // 16 + 4) // 8 * 8)


class WithSqueezeExcitation(Residual):
    """Mixin: squeeze-and-excitation after the last batch norm, before the sum."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        """Make the block and its squeeze-and-excitation."""
        super().__init__(spec, rngs=rngs)
        self.se = SqueezeExcitation(spec.out_features, spec.options, rngs=rngs)

    def transform(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply the block's residual function, and scale its channels."""
        return self.se(super().transform(x))


class SEBottleneckA(WithSqueezeExcitation, BottleneckA):
    """`BottleneckA` with squeeze-and-excitation."""


class SEBottleneckB(WithSqueezeExcitation, BottleneckB):
    """`BottleneckB` with squeeze-and-excitation."""


class SEBottleneckC(WithSqueezeExcitation, BottleneckC):
    """`BottleneckC` with squeeze-and-excitation."""


class SEBasic(WithSqueezeExcitation, Basic):
    """`Basic` with squeeze-and-excitation."""


class BlockForms(NamedTuple):
    """A kind of block: the classes of its forms, with the signature of `BottleneckC`."""

    c: type[Residual]
    a: type[Residual] | None = None
    b: type[Residual] | None = None

    def of(self, form: Form) -> type[Residual]:
        """Return the class of a form.

        Raises:
          ValueError: the block does not exist in this form.
        """
        block: type[Residual] | None = getattr(self, form)
        if block is None:
            raise ValueError(f"{self.c.__name__} blocks do not exist in form {form!r}; use 'c'.")
        return block


BLOCKS: dict[Form, type[Residual]] = {"a": BottleneckA, "b": BottleneckB, "c": BottleneckC}
BOTTLENECK = BlockForms(**BLOCKS)
BASIC = BlockForms(Basic)
SE_BOTTLENECK = BlockForms(SEBottleneckC, SEBottleneckA, SEBottleneckB)
SE_BASIC = BlockForms(SEBasic)


class TwoLayerA(nnx.Module):
    """C branches of 3x3, 3x3, summed: an aggregation of depth 2 (paper Figure 4, left).

    Only the residual function, without shortcut: batch norm and ReLU after the
    first convolution, batch norm after the sum.
    """

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        """Make the block; the first convolution has the stride."""
        self.spec = spec
        self.aggregation = Aggregation(
            [_TwoLayers(spec, spec.group_width, rngs=rngs) for _ in range(spec.cardinality)]
        )
        self.norm2 = spec.options.norm(spec.out_features)

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Map `[N, H, W, in_features]` to `[N, H / strides, W / strides, out_features]`."""
        return self.norm2(self.aggregation(x))


class TwoLayerDense(nnx.Module):
    """3x3, 3x3 of width C * d: the "wider, dense module" equivalent to `TwoLayerA` (Figure 4)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        """Make the block."""
        self.spec = spec
        self.wide = _TwoLayers(spec, spec.width, rngs=rngs)
        self.norm2 = spec.options.norm(spec.out_features)

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Map `[N, H, W, in_features]` to `[N, H / strides, W / strides, out_features]`."""
        return self.norm2(self.wide(x))


class _TwoLayers(nnx.Module):
    """3x3 to `width`, batch norm, ReLU, 3x3 to the block's output width."""

    def __init__(self, spec: BlockSpec, width: int, *, rngs: nnx.Rngs):
        options = spec.options
        self.conv1 = options.conv(spec.in_features, width, 3, strides=spec.strides, rngs=rngs)
        self.norm1 = options.norm(width)
        self.conv2 = options.conv(width, spec.out_features, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply both layers."""
        return self.conv2(nnx.relu(self.norm1(self.conv1(x))))
