"""Pre-activation networks are He et al.'s (2016b) compositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.models import create_model
from resnext_jax.models.blocks import BlockSpec
from resnext_jax.models.preact import PreActBasic, PreActBottleneck, PreActResNeXt
from resnext_jax.models.variables import split
from tests.models.test_blocks import DOUBLE, convolve, normalise, relu
from tests.models.test_registry import abstract_model
from tests.numerics import relative_difference


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [PreActBasic, PreActBottleneck])
@pytest.mark.parametrize("activates", [True, False])
@pytest.mark.parametrize(("stride", "inputs"), [(1, 16), (2, 16), (1, 8)])
def test_block_is_the_composition(
    kind: type[PreActBasic] | type[PreActBottleneck], activates: bool, stride: int, inputs: int
) -> None:
    spec = BlockSpec(inputs, 16, 4, 2, strides=stride, options=DOUBLE)
    block = kind(spec, activates=activates, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, 6, 6, inputs))
    activated = relu(normalise(x)) if activates else x
    if isinstance(block, PreActBasic):
        y = relu(normalise(convolve(activated, block.conv1, stride)))
        y = convolve(y, block.conv2)
    else:
        y = relu(normalise(convolve(activated, block.conv1)))
        y = relu(normalise(convolve(y, block.conv2, stride)))
        y = convolve(y, block.conv3)
    if stride == 1 and inputs == 16:
        assert block.shortcut is None
        expected = x + y
    else:
        assert block.shortcut is not None
        expected = convolve(activated, block.shortcut, stride) + y
    assert relative_difference(block(jnp.asarray(x)), expected) < 1e-12


def test_first_block_reads_the_stems_activation_and_projections_have_no_norm() -> None:
    _, params, _ = split(abstract_model("resnet200"))
    assert not any(name.startswith("stages.conv2.0.norm1") for name in params)
    assert "stages.conv2.1.norm1.scale" in params
    assert "stages.conv3.0.shortcut.kernel" in params
    assert not any("shortcut.norm" in name for name in params)
    assert params["norm.scale"].shape == (2048,)
    blocks = {tuple(name.split(".")[1:3]) for name in params if name.startswith("stages")}
    assert len(blocks) == 3 + 24 + 36 + 3


def test_wide_resnet_widths() -> None:
    _, params, _ = split(abstract_model("wide_resnet28_10", 10))
    assert params["stem.conv.kernel"].shape == (3, 3, 3, 16)
    assert params["stages.conv4.3.conv2.kernel"].shape == (3, 3, 640, 640)


def test_preactivation_cifar_resnext() -> None:
    """The older preprint's variant, of the same sizes."""
    model = create_model(
        "resnext11_4x2d", preactivation=True, num_classes=3, template_width=16, rngs=nnx.Rngs(0)
    )
    assert isinstance(model, PreActResNeXt)
    assert model.stages["conv3"][0].conv2.groups == 4
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    maps = model.features(x)
    assert {name: array.shape for name, array in maps.items()} == {
        "conv2": (4, 8, 8, 16),
        "conv3": (4, 4, 4, 32),
        "conv4": (4, 2, 2, 64),
    }
    assert (maps["conv4"] >= 0).all()
    assert (maps["conv3"] < 0).any()
    before = jax.tree.map(jnp.copy, split(model)[2])
    model.eval()
    assert model(x).shape == (4, 3)
    assert all((split(model)[2][name] == array).all() for name, array in before.items())


def test_without_residual_nothing_is_added() -> None:
    spec = BlockSpec(8, 8, 2, 2, residual=False)
    block = PreActBottleneck(spec, activates=True, rngs=nnx.Rngs(0))
    block.conv3.kernel.set_value(jnp.zeros((1, 1, 4, 8)))
    assert (block(jnp.ones((2, 4, 4, 8))) == 0).all()
