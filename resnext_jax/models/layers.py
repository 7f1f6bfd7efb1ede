"""Convolution as the networks use it: no bias, explicit padding, the paper's initialisation."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from resnext_jax.ops.batch_norm import BatchNorm
from resnext_jax.ops.grouped_conv import Implementation, grouped_conv


class Conv(nnx.Module):
    """Convolution without bias, zero padding of half the kernel on every side.

    Weights start normal with standard deviation sqrt(2 / (k * k * n_out)), n_out
    being all output channels, as in the authors' code (He et al. 2015, by fan-out).
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

    def __call__(self, x: jax.Array) -> jax.Array:
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


class ConvNorm(nnx.Module):
    """A convolution and the batch normalisation that follows it: the stem and the projections."""

    def __init__(self, conv: Conv, norm: BatchNorm):
        """Join the two."""
        self.conv = conv
        self.norm = norm

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply both, without ReLU."""
        return self.norm(self.conv(x))


def uniform_fan_in(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Draw a classifier's weights `[in, out]` uniformly from +-1/sqrt(in), as Torch does."""
    bound = 1.0 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -bound, bound)
