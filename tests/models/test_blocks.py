"""The bottleneck block is Figure 3c's composition of its parts."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from resnext_jax.models.blocks import BottleneckC
from resnext_jax.models.layers import Conv
from resnext_jax.ops import BatchNorm
from tests.numerics import relative_difference


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("strides", "inputs"), [(1, 16), (1, 8), (2, 16)])
def test_block_is_the_figure(strides: int, inputs: int) -> None:
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    block = BottleneckC(
        inputs,
        16,
        cardinality=4,
        group_width=2,
        strides=strides,
        residual=True,
        conv=partial(Conv, rngs=nnx.Rngs(0), **dtypes),
        norm=partial(BatchNorm, **dtypes),
    )
    x = np.random.default_rng(0).normal(size=(3, 6, 6, inputs))

    def convolve(x: np.ndarray, layer: Conv, stride: int) -> np.ndarray:
        kernel = layer.kernel.get_value()
        pad = kernel.shape[0] // 2
        y = lax.conv_general_dilated(
            jnp.asarray(x),
            kernel,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[3] // kernel.shape[2],
        )
        return np.asarray(y)

    def normalise(x: np.ndarray) -> np.ndarray:
        return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)

    y = np.maximum(normalise(convolve(x, block.conv1, 1)), 0)
    y = np.maximum(normalise(convolve(y, block.conv2, strides)), 0)
    y = normalise(convolve(y, block.conv3, 1))
    shortcut = x
    if strides != 1 or inputs != 16:
        assert block.shortcut is not None
        shortcut = normalise(convolve(x, block.shortcut.conv, strides))
    else:
        assert block.shortcut is None
    expected = np.maximum(y + shortcut, 0)
    assert relative_difference(block(jnp.asarray(x)), expected) < 1e-12
