"""Parameters and multiply-adds against the golden numbers and an independent count."""

import functools
import subprocess
import sys

import pytest

from resnext_jax import models
from resnext_jax.models import width_for_cardinality
from tests.models.test_registry import CIFAR_PARAMETERS, IMAGENET_PARAMETERS, parameters

# Several tests ask of one network, and tracing it takes long.
complexity = functools.cache(models.complexity)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("resnet50", 4.089),
        ("resnext50_2x40d", 4.125),
        ("resnext50_4x24d", 4.160),
        ("resnext50_8x14d", 4.267),
        ("resnext50_32x4d", 4.230),
        ("resnet101", 7.801),
        ("wide_resnet101_2", 22.753),
        ("resnext101_32x4d", 7.970),
        ("resnext101_64x4d", 15.460),
        ("resnext29_8x64d", 5.387),
        ("resnext29_16x64d", 10.689),
    ],
)
def test_golden_multiply_adds(name: str, billions: float) -> None:
    assert round(complexity(name).macs / 1e9, 3) == billions


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [*((name, 1000, count) for name, count in IMAGENET_PARAMETERS), *CIFAR_PARAMETERS],
)
def test_golden_parameters(name: str, classes: int, count: int) -> None:
    usual = classes in (10, 1000)
    cost = complexity(name) if usual else complexity(name, num_classes=classes)
    assert cost.params == count


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet18", 1_814_073_344),
        ("resnet26d", 2_581_897_216),
        pytest.param("seresnext50_32x4d", 4_232_994_816, marks=pytest.mark.slow),
        pytest.param("resnext50d_32x4d", 4_470_120_448, marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_of_timms_networks(name: str, macs: int) -> None:
    """Counted in timm 1.0.31's own modules, by hooks on their convolutions and linear layers."""
    assert complexity(name).macs == macs


def test_table_1_as_the_paper_rounds_it() -> None:
    """25.5 and 25.0 million parameters; 4.1 and 4.2 billion FLOPs."""
    rounded = [
        (round(cost.params / 1e6, 1), round(cost.macs / 1e9, 1))
        for cost in (complexity("resnet50"), complexity("resnext50_32x4d"))
    ]
    # The paper truncates 25.557 to 25.5.
    assert rounded == [(25.6, 4.1), (25.0, 4.2)]
    assert complexity("resnet50").params // 100_000 == 255


def block_macs(
    inputs: int, outputs: int, cardinality: int, width: int, side: int, stride: int
) -> int:
    """Multiply-adds of a bottleneck block, from its definition."""
    bottleneck = cardinality * width
    small = -(-side // stride)
    macs = side * side * inputs * bottleneck
    macs += small * small * 9 * width * bottleneck
    macs += small * small * bottleneck * outputs
    if stride != 1 or inputs != outputs:
        macs += small * small * inputs * outputs
    return macs


def network_macs(
    blocks: tuple[int, ...],
    cardinality: int,
    width: int,
    image_size: int,
    classes: int,
    *,
    cifar: bool,
) -> int:
    if cifar:
        side = image_size
        macs = side * side * 27 * 64
    else:
        side = -(-image_size // 2)
        macs = side * side * 147 * 64
        side = -(-side // 2)
    features = 64
    for stage, count in enumerate(blocks):
        for index in range(count):
            stride = 2 if stage and index == 0 else 1
            outputs = 256 * 2**stage
            macs += block_macs(features, outputs, cardinality, width * 2**stage, side, stride)
            side, features = -(-side // stride), outputs
    return macs + features * classes


@pytest.mark.parametrize(
    ("name", "image_size", "blocks", "cardinality", "width"),
    [
        ("resnext50_16x6d", 224, (3, 4, 6, 3), 16, 6),
        ("resnext50_4x48d", 320, (3, 4, 6, 3), 4, 48),
        ("resnext101_32x4d", 320, (3, 4, 23, 3), 32, 4),
        ("resnet50", 225, (3, 4, 6, 3), 1, 64),
        ("resnext38_8x64d", 32, (4, 4, 4), 8, 64),
        ("resnet29_1x96d", 33, (3, 3, 3), 1, 96),
    ],
)
def test_independent_count_of_templates_that_no_table_names(
    name: str, image_size: int, blocks: tuple[int, ...], cardinality: int, width: int
) -> None:
    cifar = len(blocks) == 3
    classes = 10 if cifar else 1000
    cost = complexity(name, image_size=image_size)
    assert cost.macs == network_macs(blocks, cardinality, width, image_size, classes, cifar=cifar)
    assert cost.params == parameters(name, classes)


def test_by_layer_and_by_stage_add_up() -> None:
    cost = complexity("resnext50_32x4d")
    assert sum(params for params, _ in cost.by_stage.values()) == cost.params
    assert sum(macs for _, macs in cost.by_stage.values()) == cost.macs
    assert list(cost.by_stage) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc"]
    layers = {layer.name: layer for layer in cost.by_layer}
    grouped = layers["stages.conv3.0.conv2"]
    assert grouped.output_shape == (28, 28, 256)
    assert (grouped.params, grouped.macs) == (9 * 8 * 256, 28 * 28 * 9 * 8 * 256)
    assert layers["fc"].output_shape == (1000,)
    assert layers["fc"].macs == 2048 * 1000
    assert layers["stem.norm"].params == 128
    assert layers["stem.norm"].macs == 0
    order = [layer.stage for layer in cost.by_layer]
    assert order == sorted(order)
    blocks = [layer.name for layer in complexity("resnet101").by_layer if "conv4" in layer.name]
    assert blocks[-1].startswith("stages.conv4.22.")


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        complexity("resnet50", image_size=0)


def test_options_of_the_model_are_counted() -> None:
    whole, bare = complexity("resnet50"), complexity("resnet50", residual=False)
    projections = [layer for layer in whole.by_layer if ".shortcut." in layer.name]
    assert whole.macs - bare.macs == sum(layer.macs for layer in projections)
    assert complexity("resnet50", num_classes=10).by_layer != whole.by_layer


def test_preactivation_networks_are_counted_too() -> None:
    assert complexity("wide_resnet28_10").params == 36_479_194
    # He et al. 2016b give no count; other implementations say about 64.7 M.
    assert round(complexity("resnet200").params / 1e6, 1) == 64.7


def test_table_2_parameters_are_about_70_thousand() -> None:
    """Eqn. 4 as the complexity of conv2's second block, and 0.22 billion FLOPs of it."""
    for cardinality, width, count in (
        (1, 64, 69_632),
        (2, 40, 69_760),
        (4, 24, 69_888),
        (8, 14, 71_456),
        (32, 4, 70_144),
    ):
        kind = "resnet" if cardinality == 1 else "resnext"
        layers = complexity(f"{kind}50_{cardinality}x{width}d").by_layer
        block = [layer for layer in layers if layer.name.startswith("stages.conv2.1.conv")]
        assert sum(layer.params for layer in block) == count
        assert count // 1000 in (69, 70, 71)
        assert round(sum(layer.macs for layer in block) / 1e9, 2) == 0.22


def test_table_2() -> None:
    """Cardinality against width at preserved complexity, and the bottleneck's width below it."""
    assert [width_for_cardinality(c) for c in (1, 2, 4, 8, 32)] == [64, 40, 24, 14, 4]
    assert [c * width_for_cardinality(c) for c in (1, 2, 4, 8, 32)] == [64, 80, 96, 112, 128]


@pytest.mark.parametrize("cardinality", [0, -3, 256])
def test_impossible_cardinalities(cardinality: int) -> None:
    with pytest.raises(ValueError, match="cardinality"):
        width_for_cardinality(cardinality)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "resnext_jax.models", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_prints_a_table() -> None:
    done = command("resnext29_8x64d", "--stages")
    assert done.returncode == 0, done.stderr
    assert "34,426,698" in done.stdout
    assert "5.387 G" in done.stdout
    assert "conv4" in done.stdout


def test_command_tells_a_wrong_name_in_a_sentence() -> None:
    done = command("resnext50")
    assert done.returncode == 2
    assert done.stderr.startswith("error: incomplete model name 'resnext50'")
    assert len(done.stderr.splitlines()) == 1
