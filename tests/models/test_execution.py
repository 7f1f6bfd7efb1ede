"""Scanned and recomputed blocks are the same function, with the same names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.models import create_model
from resnext_jax.models.variables import merge, split
from tests.numerics import worst_difference

MODEL = "resnext38_2x4d"  # stages of four blocks: a first, and three equal ones


def build(name: str = MODEL, **options) -> nnx.Module:
    return create_model(
        name,
        num_classes=3,
        rngs=nnx.Rngs(0),
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        stem_width=8,
        template_width=16,
        **options,
    )


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3)))


def step(model: nnx.Module, x: jax.Array):
    """Return logits, gradients and new running statistics of one training step."""
    graphdef, params, batch_stats = split(model)

    def loss(params):
        model = merge(graphdef, params, batch_stats)
        model.train()
        logits = model(x)
        return jnp.square(logits).sum(), (logits, split(model)[2])

    gradients, (logits, statistics) = jax.jit(jax.grad(loss, has_aux=True))(params)
    return {"logits": logits}, gradients, statistics


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("scan_blocks", "remat", "name"),
    [
        (True, False, MODEL),
        (False, True, MODEL),
        (True, True, MODEL),
        (True, True, "wide_resnet28_10"),
    ],
)
def test_same_step_with_same_names(scan_blocks: bool, remat: bool, name: str):
    x = images()
    plain = step(build(name), x)
    other = step(build(name, scan_blocks=scan_blocks, remat=remat), x)
    for expected, found in zip(plain, other, strict=True):
        assert found.keys() == expected.keys()
        assert worst_difference(found, expected) < 1e-9


@pytest.mark.usefixtures("float64")
def test_evaluation_leaves_statistics_alone():
    model = build(scan_blocks=True)
    model.eval()
    before = split(model)[2]
    plain = build()
    plain.eval()
    np.testing.assert_allclose(model(images()), plain(images()), rtol=1e-10)
    after = split(model)[2]
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def lowered(**options) -> str:
    model = nnx.eval_shape(lambda: create_model(MODEL, rngs=nnx.Rngs(0), **options))
    graphdef, params, batch_stats = split(model)

    def loss(params, batch_stats, x):
        return merge(graphdef, params, batch_stats)(x).sum()

    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(params, batch_stats, x).as_text()


def test_scanned_blocks_are_compiled_once():
    convolutions = lowered(conv_implementation="native").count("stablehlo.convolution")
    scanned = lowered(conv_implementation="native", scan_blocks=True)
    # Of a stage's four blocks, the three equal ones are written once.
    assert scanned.count("stablehlo.convolution") < 0.6 * convolutions
    assert scanned.count("stablehlo.while") == 6


def test_remat_computes_blocks_again():
    convolutions = lowered(conv_implementation="native").count("stablehlo.convolution")
    assert (
        lowered(conv_implementation="native", remat=True).count("stablehlo.convolution")
        > 1.2 * convolutions
    )
