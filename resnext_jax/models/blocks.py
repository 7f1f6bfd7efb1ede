"""Residual blocks of the paper.

`BottleneckC` is Figure 3c, the form to train with: 1x1, grouped 3x3, 1x1. With
cardinality 1 it is the bottleneck block of ResNet.
"""

from functools import partial

import jax
from flax import nnx

from resnext_jax.models.layers import Conv, ConvNorm
from resnext_jax.ops.batch_norm import BatchNorm


class BottleneckC(nnx.Module):
    """Bottleneck block with a grouped 3x3 convolution (paper Figure 3c, Sec. 3.3).

    Batch norm and ReLU follow each convolution, the last ReLU the addition.
    Where width or size change, the shortcut is a 1x1 projection with batch norm
    (type B of He et al. 2016); the stride sits on the 3x3 convolution.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        cardinality: int,
        group_width: int,
        strides: int,
        residual: bool,
        conv: partial[Conv],
        norm: partial[BatchNorm],
    ):
        """Make the block.

        Args:
          in_features: channels of the input.
          out_features: channels of the result.
          cardinality: C, the number of groups.
          group_width: d, channels a group; the bottleneck has C * d.
          strides: 1, or 2 in the first block of a stage.
          residual: False leaves the shortcut out (the ablation of Sec. 5.1).
          conv: `Conv` with dtypes, implementation and rngs set.
          norm: `BatchNorm` with groups and dtypes set.
        """
        width = cardinality * group_width
        self.conv1 = conv(in_features, width, 1)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3, strides=strides, groups=cardinality)
        self.norm2 = norm(width)
        self.conv3 = conv(width, out_features, 1)
        self.norm3 = norm(out_features)
        self.residual = residual
        projects = residual and (strides != 1 or in_features != out_features)
        self.shortcut = (
            ConvNorm(conv(in_features, out_features, 1, strides=strides), norm(out_features))
            if projects
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[N, H, W, in_features]` to `[N, H / strides, W / strides, out_features]`."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.residual:
            y = y + (x if self.shortcut is None else self.shortcut(x))
        return nnx.relu(y)
