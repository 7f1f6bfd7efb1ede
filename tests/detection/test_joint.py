"""The networks of both stages: their parts are those of the two networks, in the same names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.detection.models import (
    RPN,
    FastRCNN,
    JointFasterRCNN,
    PyramidFasterRCNN,
    PyramidSpec,
    RoiSpec,
)
from resnext_jax.models.registry import network_spec
from resnext_jax.models.variables import Arrays, merge, skeleton, split
from resnext_jax.optim.freezing import is_backbone
from tests.numerics import relative_difference

SPEC = network_spec("resnext14_2x4d", num_classes=4, stem_width=8, template_width=16)
PAPER = network_spec("resnext50_32x4d", num_classes=81)
SMALL = PyramidSpec(width=8, roi_size=2, head_width=16, canonical_side=64)


def drawn(model: nnx.Module) -> tuple[Any, Arrays, Arrays]:
    """Draw weights by name, so that two networks have the same where they have the same names."""
    graphdef, *shapes = split(model)

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        rng = np.random.default_rng([len(name), *name.encode()])
        if name.endswith((".scale", ".var")):
            return jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32)
        spread = np.sqrt(2 / np.prod(shape[:-1])) if name.endswith(".kernel") else 0.1
        return jnp.asarray(rng.normal(0, spread, shape), jnp.float32)

    params, batch_stats = (
        {name: draw(name, leaf.shape) for name, leaf in tree.items()} for tree in shapes
    )
    return graphdef, params, batch_stats


def in_testing(model: nnx.Module) -> Any:
    network = merge(*drawn(model))
    network.eval()
    return network


def test_one_network_says_what_the_two_say() -> None:
    """With their weights, by name; so a classifier's weights go in by name too."""
    roi = RoiSpec("align", size=4)
    skeletons = [
        skeleton(
            lambda rngs: JointFasterRCNN(
                SPEC, anchors_per_position=3, rpn_width=8, roi=roi, rngs=rngs
            )
        ),
        skeleton(lambda rngs: RPN(SPEC, anchors_per_position=3, width=8, rngs=rngs)),
        skeleton(lambda rngs: FastRCNN(SPEC, roi=roi, rngs=rngs)),
    ]
    names = [set(split(model)[1]) for model in skeletons]
    assert names[0] == names[1] | names[2]
    joint, rpn, detector = map(in_testing, skeletons)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((2, 48, 64, 3)), jnp.float32)
    corners = rng.uniform(0, 40, (2, 5, 2))
    boxes = jnp.asarray(np.concatenate([corners, corners + 20], axis=-1), jnp.float32)

    @jax.jit
    def run(images: jax.Array, boxes: jax.Array) -> Any:
        features = joint.features(images)
        one = joint.rpn_outputs(features), joint.on_regions(features, boxes)
        return one, (rpn(images), detector(images, boxes))

    one, two = run(images, boxes)
    for found, expected in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.any(expected)
        assert relative_difference(found, expected) <= 1e-5


def test_shapes_at_the_size_of_coco_s_images() -> None:
    """Of the shared map 28,728 anchors; of the pyramid 51,042 positions of three."""
    joint = skeleton(lambda rngs: JointFasterRCNN(PAPER, anchors_per_position=12, rngs=rngs))
    pyramid = skeleton(lambda rngs: PyramidFasterRCNN(PAPER, anchors_per_position=3, rngs=rngs))
    images = jax.ShapeDtypeStruct((2, 608, 1008, 3), jnp.float32)
    boxes = jax.ShapeDtypeStruct((2, 64, 4), jnp.float32)

    def run(model: Any, images: jax.Array, boxes: jax.Array) -> Any:
        features = model.features(images)
        return features, model.rpn_outputs(features), model.on_regions(features, boxes)

    for model, number in ((joint, 28_728), (pyramid, 153_126)):
        model.eval()
        features, anchors, regions = nnx.eval_shape(run, model, images, boxes)
        assert [x.shape for x in anchors] == [(2, number, 2), (2, number, 4)]
        assert [x.shape for x in regions] == [(2, 64, 81), (2, 64, 81, 4)]
        assert {x.dtype for x in (*anchors, *regions)} == {jnp.dtype(jnp.float32)}
        if model is joint:
            assert features.shape == (2, 38, 63, 1024)
        else:
            sizes = [(152, 252), (76, 126), (38, 63), (19, 32)]
            assert [x.shape for x in features] == [(2, *size, 256) for size in sizes]
    params = split(pyramid)[1]
    heads = {n: x.shape for n, x in params.items() if not n.startswith(("stem.", "stages."))}
    assert {name: shape for name, shape in heads.items() if name.endswith("kernel")} == {
        **{f"fpn.lateral.{i}.kernel": (1, 1, 256 * 2**i, 256) for i in range(4)},
        **{f"fpn.smooth.{i}.kernel": (3, 3, 256, 256) for i in range(4)},
        "rpn.conv.kernel": (3, 3, 256, 256),
        "rpn.cls.kernel": (1, 1, 256, 6),
        "rpn.box.kernel": (1, 1, 256, 12),
        "fc1.kernel": (12544, 1024),
        "fc2.kernel": (1024, 1024),
        "cls.kernel": (1024, 81),
        "box.kernel": (1024, 324),
    }


@pytest.fixture(scope="module")
def pyramid() -> Any:
    return in_testing(
        skeleton(
            lambda rngs: PyramidFasterRCNN(
                SPEC, anchors_per_position=2, rpn_width=8, pyramid=SMALL, rngs=rngs
            )
        )
    )


def test_the_pyramid_stands_on_the_ends_of_all_stages(pyramid: Any) -> None:
    """Each lateral convolution gets the map of its stage, and the smoothing what it makes."""
    images = jnp.asarray(np.random.default_rng(1).standard_normal((1, 80, 112, 3)), jnp.float32)

    @jax.jit
    def run(images: jax.Array) -> Any:
        maps, x = [], pyramid.spec.architecture.apply_stem(pyramid.stem, images)
        for stage in ("conv2", "conv3", "conv4", "conv5"):
            for block in pyramid.stages[stage]:
                x = block(x)
            maps.append(x)
        return pyramid.features(images), pyramid.fpn(maps)

    features, expected = run(images)
    assert [x.shape[1:3] for x in features] == [(20, 28), (10, 14), (5, 7), (3, 4)]
    for found, wanted in zip(features, expected, strict=True):
        assert relative_difference(found, wanted) <= 1e-5


def test_one_head_scores_all_levels_p6_among_them(pyramid: Any) -> None:
    rng = np.random.default_rng(2)
    sizes = ((5, 6), (3, 3), (2, 2), (1, 2))
    features = tuple(jnp.asarray(rng.standard_normal((1, *size, 8)), jnp.float32) for size in sizes)
    found = jax.jit(pyramid.rpn_outputs)(features)
    levels = (*features, features[-1][:, :1, :1])
    head = jax.jit(pyramid.rpn)
    for each, parts in zip(found, zip(*map(head, levels), strict=True), strict=True):
        assert each.shape[1] == 2 * (30 + 9 + 4 + 2 + 1)
        np.testing.assert_allclose(each, jnp.concatenate(parts, axis=1), rtol=1e-5, atol=1e-6)


def test_regions_have_a_head_of_two_layers(pyramid: Any) -> None:
    """In plain NumPy, on levels that are constant, by image and by region."""
    boxes = np.array([[[0, 0, 20, 20], [0, 0, 64, 64]], [[8, 0, 50, 30], [0, 0, 128, 128]]])
    values = np.random.default_rng(3).standard_normal((4, 2, 8)).astype(np.float32)
    features = tuple(
        jnp.broadcast_to(each[:, None, None], (2, 128 // stride, 128 // stride, 8))
        for each, stride in zip(values, (4, 8, 16, 32), strict=True)
    )
    logits, deltas = jax.jit(pyramid.on_regions)(features, jnp.asarray(boxes, jnp.float32))
    assert (logits.shape, deltas.shape) == ((2, 2, 4), (2, 2, 4, 4))
    # Sides of 20, 64, 35 and 128 pixels, and a canonical one of 64.
    for image, region, level in ((0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 3)):
        x = np.tile(values[level, image], 4)
        for layer in (pyramid.fc1, pyramid.fc2):
            x = np.maximum(x @ np.asarray(layer.kernel) + np.asarray(layer.bias), 0)
        for layer, given in ((pyramid.cls, logits), (pyramid.box, deltas)):
            expected = x @ np.asarray(layer.kernel) + np.asarray(layer.bias)
            np.testing.assert_allclose(given[image, region].ravel(), expected, rtol=1e-4, atol=1e-5)


def test_new_layers_start_as_their_papers_say() -> None:
    spec = network_spec("resnext14_2x4d", num_classes=81, stem_width=8, template_width=16)
    pyramid = PyramidSpec(width=64, roi_size=2, head_width=128)

    @jax.jit
    def heads() -> Arrays:
        rngs = nnx.Rngs(0)
        model = PyramidFasterRCNN(
            spec, anchors_per_position=3, rpn_width=64, pyramid=pyramid, rngs=rngs
        )
        return {name: x for name, x in split(model)[1].items() if not is_backbone(name)}

    params = heads()
    for layer, stddev in (
        ("fpn.lateral.3", 128**-0.5),
        ("fpn.smooth.0", (9 * 64) ** -0.5),
        ("fc1", 256**-0.5),
        ("fc2", 128**-0.5),
        ("rpn.conv", 0.01),
        ("cls", 0.01),
        ("box", 0.001),
    ):
        assert np.std(params[f"{layer}.kernel"]) == pytest.approx(stddev, rel=0.1)
        assert not np.any(params[f"{layer}.bias"])
