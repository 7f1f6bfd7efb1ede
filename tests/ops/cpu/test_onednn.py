"""The convolutions of oneDNN are the same function as XLA's own, on as many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from resnext_jax.ops import grouped_conv
from tests.numerics import relative_difference
from tests.ops.test_grouped_conv import random

pytestmark = pytest.mark.usefixtures("onednn")

Pair = tuple[int, int]
Edges = tuple[Pair, Pair]

ONE: Edges = ((1, 1), (1, 1))
NONE: Edges = ((0, 0), (0, 0))


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    strides: Pair,
    padding: Edges,
    implementation: str,
) -> jax.Array:
    return grouped_conv(
        x,
        kernel,
        groups=groups,
        strides=strides,
        padding=padding,
        implementation=implementation,
    )


def loss(x: jax.Array, kernel: jax.Array, *how: object) -> jax.Array:
    """Weigh the squares of a convolution, so that every gradient depends on both operands."""
    y = convolve(x, kernel, *how)  # type: ignore[arg-type]
    return jnp.sum(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) * y * y)


def squared_gradients(x: jax.Array, kernel: jax.Array, *how: object) -> jax.Array:
    by_x, by_kernel = jax.grad(loss, argnums=(0, 1))(x, kernel, *how)
    return jnp.sum(by_x**2) + jnp.sum(by_kernel**2)


FUNCTIONS = {
    "values": convolve,
    "gradients": jax.grad(loss, argnums=(0, 1)),
    "second gradients": jax.grad(squared_gradients, argnums=(0, 1)),
}

# groups, channels of a group (in, out), image, kernel, strides, padding
CASES = {
    "ResNeXt's": (32, (4, 4), (8, 8), (3, 3), (1, 1), ONE),
    "with a stride": (32, (4, 4), (8, 8), (3, 3), (2, 2), ONE),
    "wide groups": (2, (64, 64), (9, 9), (3, 3), (2, 2), ONE),
    "odd groups, unlike strides and edges": (4, (2, 3), (7, 5), (3, 3), (2, 1), ((0, 1), (2, 0))),
    "one channel a group": (24, (1, 1), (5, 3), (3, 3), (2, 2), ONE),
    "seven groups": (7, (3, 3), (5, 3), (3, 3), (1, 1), ONE),
    "stem": (1, (3, 64), (13, 13), (7, 7), (2, 2), ((3, 3), (3, 3))),
    "windows that skip the last row": (1, (4, 8), (8, 8), (1, 3), (2, 3), NONE),
    "strides wider than the kernel": (2, (4, 4), (9, 9), (2, 2), (3, 3), NONE),
    "padding wider than the kernel": (2, (4, 4), (5, 6), (2, 4), (3, 2), ((2, 0), (5, 1))),
    "elements that no window sees": (2, (4, 4), (3, 3), (3, 3), (3, 3), ONE),
    "a window over padding alone": (2, (4, 4), (2, 2), (2, 2), (4, 4), ((3, 0), (3, 0))),
    "a row that no window sees": (1, (4, 4), (2, 4), (2, 5), (2, 1), ((1, 0), (2, 2))),
    "rows cut off": (1, (4, 4), (6, 6), (3, 3), (1, 1), ((-1, 0), (0, 0))),
    "1x1 with groups": (2, (8, 12), (5, 6), (1, 1), (2, 2), NONE),
    "1x1 without": (1, (8, 12), (5, 6), (1, 1), (2, 2), NONE),
}


@pytest.mark.parametrize(
    ("case", "function"),
    [
        # What compiles longest for three of the cases alone, and for the others with make test-all.
        pytest.param(case, function, marks=[pytest.mark.slow] * (rank > 1 and at > 2))
        for rank, function in enumerate(FUNCTIONS)
        for at, case in enumerate(CASES)
    ],
)
def test_equals_native(case: str, function: str) -> None:
    """The sums are native's in float64, to float32's rounding of sums of a thousand squares."""
    groups, (inputs, outputs), image, taps, strides, padding = CASES[case]
    shape = (2, *image, groups * inputs)
    x, kernel = random(shape, "float32"), random((*taps, inputs, groups * outputs), "float32", 1)
    run = jax.jit(FUNCTIONS[function], static_argnums=(2, 3, 4, 5))
    actual = run(x, kernel, groups, strides, padding, "onednn")
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(array), "float64") for array in (x, kernel))
        expected = run(*wide, groups, strides, padding, "native")
    for found, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert found.dtype == jnp.float32
        assert relative_difference(np.float64(found), wanted) < 2e-6


def test_vmap_is_a_loop() -> None:
    x, kernel = random((3, 2, 5, 5, 8), "float32"), random((3, 3, 2, 8), "float32", 1)
    apply = jax.vmap(lambda x: convolve(x, kernel, 4, (1, 1), ONE, "onednn"))
    expected = jnp.stack([convolve(part, kernel, 4, (1, 1), ONE, "native") for part in x])
    assert relative_difference(apply(x), expected) < 1e-6


@pytest.mark.parametrize(("images", "outputs"), [(0, 8), (2, 0)])
def test_nothing_in_nothing_out(images: int, outputs: int) -> None:
    kernel = jnp.ones((3, 3, 2, outputs))
    y = convolve(jnp.ones((images, 5, 5, 8)), kernel, 4, (1, 1), ONE, "onednn")
    assert y.shape == (images, 5, 5, outputs)


def test_explicit_sharding_is_left_to_xla() -> None:
    """A library's call would have all images on every device."""
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Explicit,))
    x, kernel = random((16, 5, 5, 8), "float32"), random((3, 3, 2, 8), "float32", 1)
    expected = convolve(x, kernel, 4, (1, 1), ONE, "native")
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, PartitionSpec("data"))
        y = jax.jit(lambda x: convolve(x, kernel, 4, (1, 1), ONE, "auto"))(sharded)
    assert jax.typeof(y).sharding.spec[0] == "data"
    assert relative_difference(y, expected) < 1e-6


@pytest.mark.parametrize("pointwise", [False, True])
def test_replicated_kernels_get_the_sum_of_all_devices_gradients(pointwise: bool) -> None:
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    groups, padding = (1, NONE) if pointwise else (8, ONE)
    x = random((16, 6, 6, 32), "float32")
    taps = (1, 1, 32, 64) if pointwise else (3, 3, 4, 64)
    kernel = random(taps, "float32", 1)

    def gradients(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(convolve(x, kernel, groups, (1, 1), padding, "onednn")))

        return jax.grad(total, argnums=(0, 1))(x, kernel)

    by_parts = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=(PartitionSpec("data"), PartitionSpec()),
    )
    expected = jax.jit(gradients)(x, kernel)
    for found, wanted in zip(jax.jit(by_parts)(x, kernel), expected, strict=True):
        assert relative_difference(found, wanted) < 2e-6
