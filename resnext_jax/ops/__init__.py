"""The arithmetic core: grouped convolution and batch normalisation."""

from resnext_jax.ops.batch_norm import BatchNorm
from resnext_jax.ops.grouped_conv import grouped_conv

__all__ = ["BatchNorm", "grouped_conv"]
