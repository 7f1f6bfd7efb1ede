"""The layers that networks are built from, and their options."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from resnext_jax.ops.batch_norm import BatchNorm
from resnext_jax.ops.grouped_conv import Implementation, grouped_conv


class Conv(nnx.Module):
    """Convolution without bias, zero padding of half the kernel on every side.

    Weights are initialised from a normal distribution with standard deviation sqrt(2 / (k * k *
    n_out)), where n_out are all output channels, as in the authors' code (He et al. 2015, fan-out).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        implementation: Implementation = "auto",
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Make the layer; `groups` must divide both channel counts."""
        self.strides = strides
        self.groups = groups
        self.implementation = implementation
        self.dtype = dtype
        stddev = math.sqrt(2.0 / (kernel_size**2 * out_features))
        shape = (kernel_size, kernel_size, in_features // groups, out_features)
        self.kernel = nnx.Param(nnx.initializers.normal(stddev)(rngs.params(), shape, param_dtype))

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Map `[N, H, W, Cin]` to `[N, ceil(H / strides), ceil(W / strides), Cout]`."""
        pad = self.kernel.shape[0] // 2
        return grouped_conv(
            x.astype(self.dtype),
            self.kernel.get_value().astype(self.dtype),
            groups=self.groups,
            strides=(self.strides, self.strides),
            padding=((pad, pad), (pad, pad)),
            implementation=self.implementation,
        )


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """Options of all layers of a network.

    Attributes:
      bn_group_size: images that share batch-norm statistics, None for all.
      bn_axis_name: mesh axis of the devices that share one batch-norm group.
      conv_implementation: lowering of the convolutions, see `ops.grouped_conv`.
      dtype: compute dtype.
      param_dtype: dtype of the stored parameters.
    """

    bn_group_size: int | None = None
    bn_axis_name: str | None = None
    conv_implementation: Implementation = "auto"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def conv(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        rngs: nnx.Rngs,
    ) -> Conv:
        """Make a convolution."""
        return Conv(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            groups=groups,
            implementation=self.conv_implementation,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def norm(self, num_features: int) -> BatchNorm:
        """Make a batch normalisation."""
        return BatchNorm(
            num_features,
            group_size=self.bn_group_size,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def classifier(self, in_features: int, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
        """Make the last layer, which computes in float32 at least."""
        return self.linear(in_features, num_classes, uniform_fan_in, rngs=rngs)

    def linear(
        self,
        in_features: int,
        out_features: int,
        kernel_init: nnx.Initializer,
        *,
        rngs: nnx.Rngs,
    ) -> nnx.Linear:
        """Make a linear layer, which computes in float32 at least; its bias starts at zero."""
        return nnx.Linear(
            in_features,
            out_features,
            dtype=jnp.promote_types(jnp.float32, self.param_dtype),
            param_dtype=self.param_dtype,
            kernel_init=kernel_init,
            rngs=rngs,
        )


class ConvNorm(nnx.Module):
    """A convolution followed by batch normalisation: the stem and the projections."""

    def __init__(self, conv: Conv, norm: BatchNorm):
        """Combine the two layers."""
        self.conv = conv
        self.norm = norm

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply both, without ReLU."""
        return self.norm(self.conv(x))


class PooledConvNorm(ConvNorm):
    """2x2 average pooling, convolution and batch norm: the projections of ResNet-D."""

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Map `[N, H, W, Cin]` to `[N, ceil(H / 2), ceil(W / 2), Cout]`."""
        # For odd sizes, the last windows average existing positions only; edge padding does that.
        odd = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = jnp.pad(x, odd, mode="edge")
        return super().__call__(nnx.avg_pool(x, (2, 2), strides=(2, 2)))


class DeepStem(ConvNorm):
    """ResNet-D's stem: three 3x3 convolutions instead of one 7x7, the first two half as wide.

    `conv` and `norm` are the last layers (He, T. et al. 2019, "Bag of Tricks for Image
    Classification with Convolutional Neural Networks", Figure 2).
    """

    def __init__(self, in_features: int, width: int, options: LayerOptions, *, rngs: nnx.Rngs):
        """Make the layers; the first one has stride 2."""
        half = width // 2
        self.first = ConvNorm(
            options.conv(in_features, half, 3, strides=2, rngs=rngs), options.norm(half)
        )
        self.second = ConvNorm(options.conv(half, half, 3, rngs=rngs), options.norm(half))
        super().__init__(options.conv(half, width, 3, rngs=rngs), options.norm(width))

    def __call__(self, x: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply all three, without the last ReLU."""
        return super().__call__(nnx.relu(self.second(nnx.relu(self.first(x)))))


def he_fan_out(
    key: PRNGKeyArray, shape: Sequence[int], dtype: jax.typing.DTypeLike
) -> Float[Array, "inputs outputs"]:
    """Draw weights `[in, out]` as those of the convolutions are, see `Conv`."""
    return math.sqrt(2.0 / shape[1]) * jax.random.normal(key, shape, dtype)


def uniform_fan_in(
    key: PRNGKeyArray, shape: Sequence[int], dtype: jax.typing.DTypeLike
) -> Float[Array, "inputs outputs"]:
    """Draw a classifier's weights `[in, out]` uniformly from +-1/sqrt(in), as Torch does."""
    bound = 1.0 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class PooledFeatures(nnx.Module):
    """In place of a classifier: gives the pooled features as they are."""

    def __init__(self, param_dtype: jax.typing.DTypeLike):
        """Pool in `param_dtype`, in float32 at least."""
        self.param_dtype = param_dtype

    def __call__(self, features: Float[Array, "n c"]) -> Float[Array, "n c"]:
        """Return the features."""
        return features


@jax.named_scope("classifier")
def pool_and_classify(
    features: Float[Array, "n h w c"], classifier: nnx.Linear | PooledFeatures
) -> Float[Array, "n k"]:
    """Average `[N, H, W, C]` over positions, and map it to logits `[N, K]`, float32 at least."""
    wide = jnp.promote_types(jnp.float32, classifier.param_dtype)
    return classifier(features.astype(wide).mean(axis=(1, 2)))


@jax.named_scope("classifier")
def pool_and_classify_densely(
    features: Float[Array, "n h w c"], classifier: nnx.Linear | PooledFeatures, window: int
) -> Float[Array, "n k"]:
    """Average and classify every window of a feature map, and average the logits.

    The classifier is linear, so it is applied once, to the mean of the windows' means. In it, the
    weight of a position is proportional to the number of windows that contain it.

    Args:
      features: `[N, H, W, C]`.
      classifier: maps C channels to K logits.
      window: height and width of the windows, which lie at every position inside the map.

    Returns:
      `[N, K]`, float32 at least.

    Raises:
      ValueError: the window does not fit into the map.
    """
    wide = jnp.promote_types(jnp.float32, classifier.param_dtype)
    rows, columns = (_share_of_windows(size, window) for size in features.shape[1:3])
    weights = jnp.asarray(rows[:, None, None] * columns[:, None], wide)
    # Not a matrix product, which may run in lower precision.
    return classifier((features.astype(wide) * weights).sum(axis=(1, 2)))


def _share_of_windows(size: int, window: int) -> np.ndarray:
    """Weight `[size]` of each position of an axis in the mean of the windows' means."""
    if not 1 <= window <= size:
        raise ValueError(f"a window of {window} does not fit into a feature map of side {size}.")
    windows_over = np.convolve(np.ones(size - window + 1), np.ones(window))
    return windows_over / windows_over.sum()
