"""Every lowering of the grouped convolution is the same function."""

import importlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.ops import cpu, grouped_conv
from resnext_jax.ops.target import compiling_for
from tests.numerics import relative_difference

# By name, because the package's attribute of that name is the function.
MODULE = importlib.import_module("resnext_jax.ops.grouped_conv")

PADDING_1 = ((1, 1), (1, 1))
PADDING_0 = ((0, 0), (0, 0))


def random(shape: tuple[int, ...], dtype: str = "float64", seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def by_hand(
    x: np.ndarray,
    kernel: np.ndarray,
    groups: int,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> np.ndarray:
    """Grouped convolution as its definition, one output pixel and group at a time."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    kh, kw, inputs, outputs = kernel.shape
    per_group = outputs // groups
    height = (padded.shape[1] - kh) // strides[0] + 1
    width = (padded.shape[2] - kw) // strides[1] + 1
    y = np.zeros((x.shape[0], height, width, outputs), x.dtype)
    for row in range(height):
        for column in range(width):
            top, left = row * strides[0], column * strides[1]
            window = padded[:, top : top + kh, left : left + kw]
            for g in range(groups):
                channels = window[..., g * inputs : (g + 1) * inputs]
                weights = kernel[..., g * per_group : (g + 1) * per_group]
                y[:, row, column, g * per_group : (g + 1) * per_group] = np.einsum(
                    "nhwi,hwio->no", channels, weights
                )
    return y


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", ["native", "packed", "grouped_packs", "auto"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("padding", [PADDING_1, PADDING_0, ((0, 1), (2, 0))])
def test_is_the_definition(
    implementation: str, strides: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    x, kernel = random((2, 7, 5, 8)), random((3, 3, 2, 12), seed=1)
    actual = grouped_conv(
        x,
        kernel,
        groups=4,
        strides=strides,
        padding=padding,
        implementation=implementation,
    )
    expected = by_hand(np.asarray(x), np.asarray(kernel), 4, strides, padding)
    assert relative_difference(actual, expected) < 1e-13


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("groups", "width"),
    [(1, 64), (2, 40), (4, 24), (8, 14), (32, 4), (24, 1), (7, 3), (8, 64), (2, 64)],
)
def test_packs_equal_native_in_values_and_both_gradients(
    groups: int, width: int, stride: int
) -> None:
    channels = groups * width
    x, kernel = random((1, 5, 3, channels)), random((3, 3, width, channels), seed=1)

    def loss(x: jax.Array, kernel: jax.Array, implementation: str) -> tuple[jax.Array, jax.Array]:
        y = grouped_conv(
            x,
            kernel,
            groups=groups,
            strides=(stride, stride),
            implementation=implementation,
        )
        weights = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(weights * y), y

    gradient = jax.jit(
        jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnames="implementation"
    )
    (dx, dkernel), y = gradient(x, kernel, implementation="native")
    for implementation in ("packed", "grouped_packs"):
        (dx_packs, dkernel_packs), y_packs = gradient(x, kernel, implementation=implementation)
        assert relative_difference(y_packs, y) < 1e-13
        assert relative_difference(dx_packs, dx) < 1e-13
        assert relative_difference(dkernel_packs, dkernel) < 1e-13


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("implementation", ["native", "packed", "grouped_packs", "auto"])
def test_keeps_the_dtype(dtype: str, tolerance: float, implementation: str) -> None:
    x, kernel = random((2, 4, 4, 32), dtype), random((3, 3, 4, 32), dtype, seed=1)
    actual = grouped_conv(x, kernel, groups=8, implementation=implementation)
    assert actual.dtype == dtype
    expected = by_hand(
        np.asarray(x, "float64"), np.asarray(kernel, "float64"), 8, (1, 1), PADDING_1
    )
    assert relative_difference(np.asarray(actual, "float64"), expected) < tolerance


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", ["native", "matmul", "auto"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pointwise(implementation: str, stride: int) -> None:
    x, kernel = random((2, 5, 6, 8)), random((1, 1, 8, 12), seed=1)

    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return grouped_conv(
            x,
            kernel,
            groups=1,
            strides=(stride, stride),
            padding=PADDING_0,
            implementation=implementation,
        )

    y, pull_back = jax.vjp(apply, x, kernel)
    sampled = np.asarray(x)[:, ::stride, ::stride]
    weights = np.asarray(kernel)[0, 0]
    assert relative_difference(y, sampled @ weights) < 1e-13
    dy = random(y.shape, seed=2)
    dx, dkernel = pull_back(dy)
    expected_dx = np.zeros(x.shape)
    expected_dx[:, ::stride, ::stride] = np.asarray(dy) @ weights.T
    assert relative_difference(dx, expected_dx) < 1e-13
    expected_dkernel = np.einsum("nhwi,nhwo->io", sampled, np.asarray(dy))
    assert relative_difference(dkernel[0, 0], expected_dkernel) < 1e-13


def test_an_infinite_weight_stays_in_its_group() -> None:
    kernel = random((1, 1, 2, 16), "float32").at[..., 0].set(jnp.inf)
    y = grouped_conv(
        jnp.ones((1, 1, 1, 16)), kernel, groups=8, padding=PADDING_0, implementation="packed"
    )
    assert jnp.isfinite(y[..., 1:]).all()


def test_lowering_table_is_complete_and_names_its_command() -> None:
    table = MODULE._table()
    assert table["command"].startswith("python benchmarks/grouped_conv.py")
    assert table["platforms"].keys() == table["measured"].keys()
    assert all("default" in table["platforms"][name] for name in ("cpu", "default"))
    known = set(MODULE.LOWERINGS)
    for dtypes in table["platforms"].values():
        for row in dtypes.values():
            lowering = MODULE.Lowering(**row)
            assert {lowering.grouped, lowering.pointwise, lowering.dense} <= known
            assert lowering.pack_channels >= 1


@pytest.mark.parametrize(
    ("platform", "dtype", "has_onednn", "expected"),
    [
        ("cpu", "float32", False, ("packed", "matmul", "native", 16)),
        ("cpu", "float32", True, ("onednn", "onednn", "onednn", 16)),
        ("cpu", "float64", True, ("packed", "matmul", "native", 32)),
        ("cpu", "bfloat16", True, ("packed", "matmul", "native", 16)),
        ("tpu", "bfloat16", False, ("grouped_packs", "native", "native", 128, 256)),
        ("gpu", "bfloat16", False, ("native", "native", "native", 16)),
    ],
)
def test_lowering_of_a_platform(
    platform: str, dtype: str, has_onednn: bool, expected: tuple[Any, ...]
) -> None:
    with (
        compiling_for(platform),
        mock.patch.object(cpu, "has_onednn", return_value=has_onednn),
    ):
        assert MODULE.measured_lowering(dtype) == MODULE.Lowering(*expected)


@pytest.mark.parametrize(("channels", "pack"), [(128, 32), (256, 32), (512, 8), (1024, 4)])
def test_packs_on_tpus(channels: int, pack: int) -> None:
    """Of 32 groups: all where they are narrow, else as many as have 128 channels."""
    with compiling_for("tpu"):
        assert MODULE.pack_size(32, channels // 32, "bfloat16") == pack


def test_a_portable_lowering_calls_no_library() -> None:
    with mock.patch.object(cpu, "has_onednn", return_value=True):
        lowering = MODULE.measured_lowering("float32", portable=True)
        assert "onednn" not in (lowering.grouped, lowering.pointwise, lowering.dense)
        x, kernel = jnp.ones((1, 4, 4, 32)), jnp.ones((3, 3, 4, 32))

        def convolve(implementation: str) -> str:
            apply = jax.jit(
                lambda x: grouped_conv(x, kernel, groups=8, implementation=implementation)
            )
            return str(apply.lower(x).as_text())

        assert "onednn" in convolve("auto")
        assert "onednn" not in convolve("portable")


def test_auto_does_not_look_at_the_batch_size() -> None:
    kernel = random((3, 3, 4, 32), "float32")

    def lowered(batch: int) -> list[str]:
        x = jnp.zeros((batch, 4, 4, 32))
        jaxpr = jax.make_jaxpr(lambda x: grouped_conv(x, kernel, groups=8))(x)
        return [str(equation.primitive) for equation in jaxpr.eqns]

    assert lowered(1) == lowered(64)


def test_takes_numpys_arrays_and_numbers() -> None:
    given: Any = np.ones((1, 4, 4, 8)), np.ones((3, 3, 2, 8))
    groups: Any = np.int64(4)
    y = grouped_conv(*given, groups=groups)
    assert y.dtype == jnp.float32
    assert float(y[0, 1, 1, 0]) == 18


def test_refuses_unlike_dtypes() -> None:
    with pytest.raises(ValueError, match="x is bfloat16 and the kernel float32; cast"):
        grouped_conv(jnp.ones((1, 4, 4, 8), "bfloat16"), jnp.ones((3, 3, 2, 8)), groups=4)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "groups", "implementation", "message"),
    [
        ((1, 4, 4, 8), (3, 3, 2, 8), 3, "auto", "groups=3 must divide"),
        ((1, 4, 4, 8), (3, 3, 2, 8), 0, "auto", "groups=0 must divide"),
        ((1, 4, 4, 8), (3, 3, 8, 8), 2, "auto", "takes 16 input channels"),
        ((4, 4, 8), (3, 3, 8, 8), 1, "auto", "got shapes"),
        ((1, 4, 4, 8), (3, 3, 8, 8), 1, "fast", "unknown implementation 'fast'"),
        ((1, 4, 4, 8), (3, 3, 8, 8), 1, "matmul", "1x1 convolutions without groups"),
        ((1, 4, 4, 8), (3, 3, 8, 8), 1, "onednn", "is for float32 on the CPU"),
    ],
)
def test_refuses_what_does_not_fit(
    x_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    groups: int,
    implementation: str,
    message: str,
) -> None:
    with (
        mock.patch.object(cpu, "has_onednn", return_value=False),
        pytest.raises(ValueError, match=message),
    ):
        grouped_conv(
            jnp.ones(x_shape),
            jnp.ones(kernel_shape),
            groups=groups,
            implementation=implementation,
        )
