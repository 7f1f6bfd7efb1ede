"""The two networks: parts of the classifier, in its names, and heads as the papers start them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.detection.models import RPN, STRIDE, FastRCNN, RoiSpec, RPNHead
from resnext_jax.models import create_model
from resnext_jax.models.layers import Conv
from resnext_jax.models.registry import network_spec
from resnext_jax.models.variables import merge, skeleton, split
from tests.numerics import relative_difference

SPEC = network_spec("resnext14_2x4d", num_classes=8, stem_width=8, template_width=16)
PAPER = network_spec("resnext50_32x4d", num_classes=81)


def drawn(arrays: dict[str, Any], seed: int, *, positive: bool = False) -> dict[str, jax.Array]:
    """Draw arrays of these shapes: making them as a network does compiles each."""
    rng = np.random.default_rng(seed)
    normal = {name: 0.2 * rng.standard_normal(x.shape) for name, x in sorted(arrays.items())}
    return {
        name: jnp.asarray(np.exp(x) if positive else x, jnp.float32) for name, x in normal.items()
    }


def test_the_trunk_conv5_and_the_classifier_are_the_classifier() -> None:
    """On 224x224, with running statistics as a training leaves them."""
    classifier = skeleton(
        lambda rngs: create_model(
            "resnext14_2x4d", num_classes=7, stem_width=8, template_width=16, rngs=rngs
        )
    )
    detector = skeleton(lambda rngs: FastRCNN(SPEC, rngs=rngs))
    for model in (classifier, detector):
        model.eval()
    graphdef, params, batch_stats = split(classifier)
    own_graphdef, own, own_stats = split(detector)
    assert own_stats.keys() == batch_stats.keys()
    assert {name for name in own if name not in params} == {
        "cls.kernel",
        "cls.bias",
        "box.kernel",
        "box.bias",
    }
    params, batch_stats = drawn(params, 1), drawn(batch_stats, 2, positive=True)
    own = drawn(own, 3) | {name: params[name] for name in own if name in params}
    trained = merge(own_graphdef, own, batch_stats)
    classifier = merge(graphdef, params, batch_stats)
    images = jnp.asarray(np.random.default_rng(4).standard_normal((1, 224, 224, 3)), jnp.float32)

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


def test_in_bfloat16_the_maps_are_and_what_losses_see_is_not() -> None:
    spec = network_spec(
        "resnext14_2x4d", num_classes=8, stem_width=8, template_width=16, dtype=jnp.bfloat16
    )
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    boxes = jax.ShapeDtypeStruct((1, 4, 4), jnp.float32)
    for model, arguments in (
        (skeleton(lambda rngs: RPN(spec, anchors_per_position=3, rngs=rngs)), (images,)),
        (skeleton(lambda rngs: FastRCNN(spec, rngs=rngs)), (images, boxes)),
    ):
        model.eval()
        shared = nnx.eval_shape(lambda model: model.shared_map(jnp.zeros((1, 64, 64, 3))), model)
        assert shared.dtype == jnp.bfloat16
        outputs = nnx.eval_shape(lambda model, *x: model(*x), model, *arguments)
        assert [output.dtype for output in outputs] == [jnp.float32] * 2
        assert {x.dtype for x in split(model)[1].values()} == {jnp.dtype(jnp.float32)}


def test_heads_start_as_the_papers_say() -> None:
    @jax.jit
    def heads() -> dict[str, jax.Array]:
        networks = (
            RPN(SPEC, anchors_per_position=3, rngs=nnx.Rngs(0)),
            FastRCNN(SPEC, roi=RoiSpec("align"), rngs=nnx.Rngs(5)),
        )
        params = [split(network)[1] for network in networks]
        new = ("rpn.", "cls.", "box.")
        return {n: x for some in params for n, x in some.items() if n.startswith(new)}

    started = heads()
    deviations = {name: np.std(x) for name, x in started.items() if name.endswith("kernel")}
    # Of a thousand numbers or more.
    assert deviations == pytest.approx(
        {
            "rpn.conv.kernel": 0.01,
            "rpn.cls.kernel": 0.01,
            "rpn.box.kernel": 0.01,
            "cls.kernel": 0.01,
            "box.kernel": 0.001,
        },
        rel=0.1,
    )
    assert not any(np.any(x) for name, x in started.items() if name.endswith("bias"))


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


def test_positions_of_the_map_are_in_the_order_of_the_anchors() -> None:
    """A head that copies channel 0 shows where each output comes from."""
    shared = jnp.arange(2 * 3, dtype=jnp.float32).reshape(1, 2, 3, 1)
    shared = jnp.broadcast_to(shared, (1, 2, 3, 64))
    head = RPNHead(SPEC, 64, 3, 512, rngs=nnx.Rngs(0))
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


@pytest.mark.parametrize(
    ("name", "shared", "region"),
    [("resnet18", 256, 512), ("resnet34d", 256, 512), ("seresnext50_32x4d", 1024, 2048)],
)
def test_other_backbones(name: str, shared: int, region: int) -> None:
    detector = skeleton(lambda rngs: FastRCNN(network_spec(name, num_classes=81), rngs=rngs))
    detector.eval()
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    found = nnx.eval_shape(lambda model, x: model.shared_map(x), detector, images)
    assert found.shape == (1, 4, 6, shared)
    assert detector.cls.kernel.shape == (region, 81)
    classifier = skeleton(lambda rngs: create_model(name, rngs=rngs))
    (own, _), (params, _) = split(detector)[1:], split(classifier)[1:]
    assert {each for each in own if each not in params} == {
        "cls.kernel",
        "cls.bias",
        "box.kernel",
        "box.bias",
    }


@pytest.mark.parametrize("name", ["resnext29_8x64d", "resnet200", "cifar_resnet20"])
def test_other_networks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a network of ImageNet's design"):
        skeleton(lambda rngs: FastRCNN(network_spec(name), rngs=rngs))
    assert STRIDE == 16
