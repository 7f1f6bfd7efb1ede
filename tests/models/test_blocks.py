"""The block forms are the compositions that the paper's Figures 3 and 4 draw."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from resnext_jax.models.blocks import (
    BLOCKS,
    FORMS,
    Aggregation,
    Basic,
    BlockSpec,
    Branch,
    Form,
    SqueezeExcitation,
    TwoLayerA,
    TwoLayerDense,
)
from resnext_jax.models.layers import Conv, DeepStem, LayerOptions, PooledConvNorm
from resnext_jax.models.variables import merge, split
from tests.numerics import relative_difference

DOUBLE = LayerOptions(dtype=jnp.float64, param_dtype=jnp.float64)


def convolve(x: np.ndarray, layer: Conv, stride: int = 1) -> np.ndarray:
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
    """Batch norm as initialised: scale 1, shift 0."""
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def figure_a(block: nnx.Module, x: np.ndarray, stride: int) -> np.ndarray:
    results = []
    for branch in block.aggregation.branches:  # type: ignore[attr-defined]
        y = relu(normalise(convolve(x, branch.conv1)))
        y = relu(normalise(convolve(y, branch.conv2, stride)))
        results.append(convolve(y, branch.conv3))
    return normalise(np.sum(results, axis=0))


def figure_b(block: nnx.Module, x: np.ndarray, stride: int) -> np.ndarray:
    parts = []
    for branch in block.branches:  # type: ignore[attr-defined]
        y = relu(normalise(convolve(x, branch.conv1)))
        parts.append(relu(normalise(convolve(y, branch.conv2, stride))))
    return normalise(convolve(np.concatenate(parts, axis=-1), block.conv3))  # type: ignore[attr-defined]


def figure_c(block: nnx.Module, x: np.ndarray, stride: int) -> np.ndarray:
    y = relu(normalise(convolve(x, block.conv1)))  # type: ignore[attr-defined]
    y = relu(normalise(convolve(y, block.conv2, stride)))  # type: ignore[attr-defined]
    return normalise(convolve(y, block.conv3))  # type: ignore[attr-defined]


FIGURES: dict[Form, Callable[[nnx.Module, np.ndarray, int], np.ndarray]] = {
    "a": figure_a,
    "b": figure_b,
    "c": figure_c,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("stride", "inputs", "residual"), [(1, 16, True), (1, 8, True), (2, 16, True), (2, 8, False)]
)
def test_each_form_is_its_figure(form: Form, stride: int, inputs: int, residual: bool) -> None:
    spec = BlockSpec(inputs, 16, 4, 2, strides=stride, residual=residual, options=DOUBLE)
    block = BLOCKS[form](spec, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, 6, 6, inputs))
    expected = FIGURES[form](block, x, stride)
    if residual and (stride != 1 or inputs != 16):
        assert block.shortcut is not None
        expected = expected + normalise(convolve(x, block.shortcut.conv, stride))
    else:
        assert block.shortcut is None
        expected = expected + x if residual else expected
    assert relative_difference(block(jnp.asarray(x)), relu(expected)) < 1e-12


@pytest.mark.parametrize(("form", "branched"), [("a", 3), ("b", 2), ("c", 0)])
def test_forms_a_and_b_compile_to_separate_convolutions(form: Form, branched: int) -> None:
    """C of them in each branched layer, and no grouped one; form c has one grouped convolution."""
    cardinality = 4
    options = LayerOptions(conv_implementation="native")
    block = BLOCKS[form](BlockSpec(16, 16, cardinality, 2, options=options), rngs=nnx.Rngs(0))
    block.eval()  # in training, batch norm's sums are products too
    graphdef, params, batch_stats = split(block)

    def apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return merge(graphdef, params, batch_stats)(x)

    compiled = jax.jit(apply).lower(params, jnp.ones((2, 5, 5, 16))).compile().as_text()
    # One line a convolution; XLA's CPU code may call a 1x1 one a dot.
    operations = re.findall(r"= \S+ (?:convolution|dot)\(.*", str(compiled))
    grouped = [line for line in operations if "feature_group_count" in line]
    assert len(operations) == branched * cardinality + (3 - branched)
    assert len(grouped) == (form == "c")


def test_unlike_branches_are_summed_and_train() -> None:
    """Eqn. 3 in its general form: any transformations, of any topology."""
    options = LayerOptions()
    rngs = nnx.Rngs(0)
    aggregation = Aggregation(
        [
            Branch(BlockSpec(6, 6, 1, 2), returns_to_width=True, rngs=rngs),
            options.conv(6, 6, 5, rngs=rngs),
            options.norm(6),
        ]
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 5, 6)), jnp.float32)
    parts = [np.asarray(branch(x)) for branch in aggregation.branches]
    assert relative_difference(aggregation(x), sum(parts[1:], parts[0])) < 1e-6

    graphdef, params, batch_stats = split(aggregation)

    @jax.jit
    def step(params: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        def loss(params: dict[str, jax.Array]) -> jax.Array:
            return jnp.mean(jnp.square(merge(graphdef, params, batch_stats)(x) - jnp.cos(x)))

        value, gradient = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)

    losses = []
    for _ in range(30):
        value, params = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]


def test_an_empty_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one branch"):
        Aggregation([])


@pytest.mark.usefixtures("float64")
def test_two_layer_blocks_are_figure_4() -> None:
    spec = BlockSpec(6, 8, 3, 4, strides=2, options=DOUBLE)
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 6))
    block = TwoLayerA(spec, rngs=nnx.Rngs(0))
    results = []
    for branch in block.aggregation.branches:
        conv1, conv2 = branch.conv1, branch.conv2  # type: ignore[attr-defined]
        results.append(convolve(relu(normalise(convolve(x, conv1, 2))), conv2))
    expected = normalise(np.sum(results, axis=0))
    assert relative_difference(block(jnp.asarray(x)), expected) < 1e-12

    dense = TwoLayerDense(spec, rngs=nnx.Rngs(0))
    assert dense.wide.conv1.kernel.shape == (3, 3, 6, 12)
    y = convolve(relu(normalise(convolve(x, dense.wide.conv1, 2))), dense.wide.conv2)
    assert relative_difference(dense(jnp.asarray(x)), normalise(y)) < 1e-12


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("stride", [1, 2])
def test_the_basic_block_is_two_convolutions_and_a_shortcut(stride: int) -> None:
    block = Basic(BlockSpec(4, 6, 1, 4, strides=stride, options=DOUBLE), rngs=nnx.Rngs(0))
    x = draw(2, 6, 6, 4)
    y = normalise(convolve(relu(normalise(convolve(x, block.conv1, stride))), block.conv2))
    assert block.shortcut is not None
    expected = relu(y + normalise(convolve(x, block.shortcut.conv, stride)))
    assert relative_difference(block(jnp.asarray(x)), expected) < 1e-12


@pytest.mark.usefixtures("float64")
def test_squeeze_and_excitation_scales_channels() -> None:
    layer = SqueezeExcitation(256, DOUBLE, rngs=nnx.Rngs(0))
    x = draw(2, 3, 5, 256)
    hidden = relu(x.mean((1, 2)) @ np.asarray(layer.fc1.kernel))
    assert hidden.shape == (2, 16)
    gate = 1 / (1 + np.exp(-hidden @ np.asarray(layer.fc2.kernel)))
    assert relative_difference(layer(jnp.asarray(x)), x * gate[:, None, None]) < 1e-12


def test_squeeze_and_excitation_keeps_half_precision() -> None:
    options = LayerOptions(dtype=jnp.bfloat16)
    layer = SqueezeExcitation(64, options, rngs=nnx.Rngs(0))
    assert layer.fc1.kernel.shape == (64, 8)
    assert layer(jnp.ones((1, 2, 2, 64), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [(4, 6), (5, 6), (7, 3)])
def test_pooled_projections_average_the_positions_that_exist(size: tuple[int, int]) -> None:
    conv = Conv(2, 3, 1, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = draw(2, *size, 2)
    rows, columns = (range(0, side, 2) for side in size)
    pooled = np.stack(
        [
            np.stack([x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in columns], axis=1)
            for i in rows
        ],
        axis=1,
    )
    actual = PooledConvNorm(conv, DOUBLE.norm(3))(jnp.asarray(x))
    assert relative_difference(actual, normalise(convolve(pooled, conv))) < 1e-12


@pytest.mark.usefixtures("float64")
def test_the_deep_stem_is_three_convolutions() -> None:
    stem = DeepStem(1, 8, DOUBLE, rngs=nnx.Rngs(0))
    x = draw(2, 9, 9, 1)
    y = relu(normalise(convolve(x, stem.first.conv, 2)))
    assert y.shape == (2, 5, 5, 4)
    y = relu(normalise(convolve(y, stem.second.conv)))
    assert relative_difference(stem(jnp.asarray(x)), normalise(convolve(y, stem.conv))) < 1e-12
