"""Scanned and recomputed blocks are the same function, with the same names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.models import create_model
from resnext_jax.models.variables import Arrays, merge, split
from tests.numerics import worst_difference

MODEL = "resnext29_2x4d"  # stages of three blocks: a first, and two equal ones


def build(
    *,
    name: str = MODEL,
    scan_blocks: bool = False,
    remat: bool = False,
    preactivation: bool = False,
) -> nnx.Module:
    return create_model(
        name,
        num_classes=3,
        rngs=nnx.Rngs(0),
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        stem_width=8,
        template_width=16,
        scan_blocks=scan_blocks,
        remat=remat,
        preactivation=preactivation,
    )


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3)))


def step(model: nnx.Module, x: jax.Array) -> tuple[Arrays, Arrays, Arrays]:
    """Return logits, gradients and new running statistics of one training step."""
    graphdef, params, batch_stats = split(model)

    def loss(params: Arrays) -> tuple[jax.Array, tuple[jax.Array, Arrays]]:
        model = merge(graphdef, params, batch_stats)
        model.train()
        logits = model(x)
        return jnp.square(logits).sum(), (logits, split(model)[2])

    gradients, (logits, statistics) = jax.jit(jax.grad(loss, has_aux=True))(params)
    return {"logits": logits}, gradients, statistics


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "scan_blocks", "remat", "preactivation"),
    [
        pytest.param(MODEL, True, False, False, marks=pytest.mark.slow),
        pytest.param(MODEL, False, True, False, marks=pytest.mark.slow),
        (MODEL, True, True, True),
        *(
            pytest.param(name, True, True, False, marks=pytest.mark.slow)
            for name in ("cifar_resnet20", "seresnext29_2x4d", "seresnext26d_2x4d")
        ),
    ],
)
def test_same_step_with_same_names(
    name: str, scan_blocks: bool, remat: bool, preactivation: bool
) -> None:
    x = images()
    plain = step(build(name=name, preactivation=preactivation), x)
    other = step(
        build(name=name, preactivation=preactivation, scan_blocks=scan_blocks, remat=remat), x
    )
    for expected, found in zip(plain, other, strict=True):
        assert found.keys() == expected.keys()
        assert worst_difference(found, expected) < 1e-9


@pytest.mark.usefixtures("float64")
def test_evaluation_leaves_statistics_alone() -> None:
    model = build(scan_blocks=True)
    model.eval()
    before = split(model)[2]
    plain = build()
    plain.eval()
    np.testing.assert_allclose(model(images()), plain(images()), rtol=1e-10)
    after = split(model)[2]
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def lowered(*, name: str = MODEL, scan_blocks: bool = False, remat: bool = False) -> str:
    model = nnx.eval_shape(lambda: build(name=name, scan_blocks=scan_blocks, remat=remat))
    graphdef, params, batch_stats = split(model)

    def loss(params: Arrays, batch_stats: Arrays, x: jax.Array) -> jax.Array:
        return merge(graphdef, params, batch_stats)(x).sum()

    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(params, batch_stats, x).as_text()


def convolutions(program: str) -> int:
    return program.count("stablehlo.convolution") + program.count("stablehlo.dot_general")


@pytest.mark.usefixtures("float64")
def test_scanned_blocks_are_compiled_once() -> None:
    scanned = lowered(scan_blocks=True)
    # Of a stage's three blocks, the two equal ones are written once.
    assert convolutions(scanned) < 0.8 * convolutions(lowered())
    assert scanned.count("stablehlo.while") == 6  # three stages, forward and backward


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["cifar_resnet20", "seresnext29_2x4d"])
def test_basic_blocks_and_squeezes_are_compiled_once_too(name: str) -> None:
    assert lowered(name=name, scan_blocks=True).count("stablehlo.while") == 6


@pytest.mark.usefixtures("float64")
def test_remat_computes_blocks_again() -> None:
    assert convolutions(lowered(remat=True)) > 1.2 * convolutions(lowered())
