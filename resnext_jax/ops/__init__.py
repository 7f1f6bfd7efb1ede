"""The arithmetic core: grouped convolution, batch normalisation and max-pooling."""

from resnext_jax.ops.batch_norm import BatchNorm
from resnext_jax.ops.grouped_conv import grouped_conv
from resnext_jax.ops.pooling import max_pool

__all__ = ["BatchNorm", "grouped_conv", "max_pool"]
