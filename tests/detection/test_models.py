"""The two networks: parts of the classifier, in its names, and heads as the papers start them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.detection.models import RPN, STRIDE, FastRCNN, RoiSpec
from resnext_jax.models import create_model
from resnext_jax.models.layers import Conv
from resnext_jax.models.registry import network_spec
from resnext_jax.models.variables import merge, skeleton, split
from tests.numerics import relative_difference

SPEC = network_spec("resnext14_2x4d", num_classes=8, stem_width=8, template_width=16)
PAPER = network_spec("resnext50_32x4d", num_classes=81)


@pytest.fixture(scope="module")
def rpn() -> RPN:
    return RPN(SPEC, anchors_per_position=3, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def detector() -> FastRCNN:
    return FastRCNN(SPEC, roi=RoiSpec("align"), rngs=nnx.Rngs(5))


def test_the_trunk_conv5_and_the_classifier_are_the_classifier(detector: FastRCNN) -> None:
    """On 224x224, with running statistics as a training leaves them."""
    classifier = create_model(
        "resnext14_2x4d", num_classes=7, stem_width=8, template_width=16, rngs=nnx.Rngs(0)
    )
    graphdef, params, batch_stats = split(classifier)
    rng = np.random.default_rng(1)
    batch_stats = {
        name: jnp.asarray(np.exp(0.2 * rng.standard_normal(x.shape)), x.dtype)
        for name, x in batch_stats.items()
    }
    own_graphdef, own, _ = split(detector)
    assert {name for name in own if name not in params} == {
        "cls.kernel",
        "cls.bias",
        "box.kernel",
        "box.bias",
    }
    trained = merge(own_graphdef, own | {n: params[n] for n in own if n in params}, batch_stats)
    classifier = merge(graphdef, params, batch_stats)
    trained.eval()
    classifier.eval()
    images = jnp.asarray(rng.standard_normal((1, 224, 224, 3)), jnp.float32)

    @jax.jit
    def both(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = trained.region_features(trained.shared_map(images))
        return classifier.fc(features), classifier(images)

    assert relative_difference(*both(images)) <= 1e-4


def test_shapes_are_the_paper_s() -> None:
    """Table 8's ResNeXt-50 on a canvas of 608x1008: 28,728 anchors, 81 classes."""
    rpn = skeleton(lambda rngs: RPN(PAPER, anchors_per_position=12, rngs=rngs))
    detector = skeleton(lambda rngs: FastRCNN(PAPER, rngs=rngs))
    images = jax.ShapeDtypeStruct((2, 608, 1008, 3), jnp.float32)
    boxes = jax.ShapeDtypeStruct((2, 64, 4), jnp.float32)
    for model in (rpn, detector):
        model.eval()
    logits, deltas = nnx.eval_shape(lambda model, x: model(x), rpn, images)
    assert (logits.shape, deltas.shape) == ((2, 28_728, 2), (2, 28_728, 4))
    logits, deltas = nnx.eval_shape(lambda model, *x: model(*x), detector, images, boxes)
    assert (logits.shape, deltas.shape) == ((2, 64, 81), (2, 64, 81, 4))
    sizes = {name: array.shape for name, array in split(rpn)[1].items() if "rpn." in name}
    assert sizes == {
        "rpn.conv.kernel": (3, 3, 1024, 512),
        "rpn.conv.bias": (512,),
        "rpn.cls.kernel": (1, 1, 512, 24),
        "rpn.cls.bias": (24,),
        "rpn.box.kernel": (1, 1, 512, 48),
        "rpn.box.bias": (48,),
    }


def test_heads_start_as_the_papers_say(rpn: RPN, detector: FastRCNN) -> None:
    for layer, stddev in (
        (rpn.rpn.conv, 0.01),
        (rpn.rpn.cls, 0.01),
        (rpn.rpn.box, 0.01),
        (detector.cls, 0.01),
        (detector.box, 0.001),
    ):
        # Of a thousand numbers or more.
        assert np.std(layer.kernel.get_value()) == pytest.approx(stddev, rel=0.1)
        assert layer.bias is not None
        assert not np.any(layer.bias.get_value())


def test_convolutions_are_the_project_s_grouped_ones() -> None:
    """In the trunk and in conv5, so that cardinality costs on the CPU what it should."""
    detector = skeleton(lambda rngs: FastRCNN(PAPER, rngs=rngs))
    grouped = [
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(detector)
        if isinstance(module, Conv) and module.groups == 32
    ]
    assert len(grouped) == 16
    assert "stages.conv5.2.conv2" in grouped


def test_positions_of_the_map_are_in_the_order_of_the_anchors(rpn: RPN) -> None:
    """A head that copies channel 0 shows where each output comes from."""
    shared = jnp.arange(2 * 3, dtype=jnp.float32).reshape(1, 2, 3, 1)
    shared = jnp.broadcast_to(shared, (1, 2, 3, 64))
    head = nnx.clone(rpn.rpn)
    width = head.conv.kernel.get_value().shape[-1]
    head.conv.kernel.set_value(jnp.zeros((3, 3, 64, width)).at[1, 1, 0, 0].set(1.0))
    for layer in (head.cls, head.box):
        outputs = layer.kernel.get_value().shape[-1]
        layer.kernel.set_value(jnp.zeros((1, 1, width, outputs)).at[0, 0, 0].set(1.0))
        assert layer.bias is not None
        layer.bias.set_value(100.0 * jnp.arange(outputs))
    logits, deltas = head(shared)
    expected = np.arange(6)[:, None, None] + 100.0 * np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(logits[0], expected.reshape(18, 2))
    expected = np.arange(6)[:, None, None] + 100.0 * np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(deltas[0], expected.reshape(18, 4))


@pytest.mark.parametrize("name", ["resnext29_8x64d", "resnet200"])
def test_other_networks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a network of ImageNet's design"):
        skeleton(lambda rngs: FastRCNN(network_spec(name), rngs=rngs))
    assert STRIDE == 16
