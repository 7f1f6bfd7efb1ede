"""Names, the networks behind them, and their golden parameter counts."""

import functools

import jax
import pytest
from flax import nnx

from resnext_jax.models import create_model, list_models
from resnext_jax.models.registry import parse_name
from resnext_jax.models.variables import Arrays, split


def abstract_model(name: str, num_classes: int = 1000, **options: object) -> nnx.Module:
    """Build a model without making an array."""
    return nnx.eval_shape(
        lambda: create_model(name, num_classes=num_classes, rngs=nnx.Rngs(0), **options)  # type: ignore[arg-type]
    )


@functools.cache
def shapes(name: str, num_classes: int = 1000) -> Arrays:
    return split(abstract_model(name, num_classes))[1]


def parameters(name: str, num_classes: int = 1000) -> int:
    return sum(array.size for array in shapes(name, num_classes).values())


IMAGENET_PARAMETERS = [
    ("resnet50", 25_557_032),
    ("resnext50_2x40d", 25_425_000),
    ("resnext50_4x24d", 25_292_968),
    ("resnext50_8x14d", 25_603_016),
    ("resnext50_32x4d", 25_028_904),
    ("resnet101", 44_549_160),
    ("resnext101_2x40d", 44_456_296),
    ("resnext101_4x24d", 44_363_432),
    ("resnext101_8x14d", 45_104_328),
    ("resnext101_32x4d", 44_177_704),
    ("resnext101_2x64d", 84_198_184),
    ("resnext101_64x4d", 83_455_272),
    ("resnext101_32x8d", 88_791_336),
    ("resnet101_1x100d", 85_611_336),
    ("resnet152", 60_192_808),
    ("resnet200", 64_666_152),
]


@pytest.mark.parametrize(("name", "count"), IMAGENET_PARAMETERS)
def test_golden_parameter_counts_of_imagenet_networks(name: str, count: int) -> None:
    assert parameters(name) == count


CIFAR_PARAMETERS = [
    ("resnext29_8x64d", 10, 34_426_698),
    ("resnext29_16x64d", 10, 68_155_210),
    ("resnext29_32x4d", 10, 4_775_754),
    ("wide_resnet28_10", 10, 36_479_194),
    ("wide_resnet28_10", 100, 36_536_884),
    ("resnext29_8x64d", 100, 34_518_948),
    ("resnext29_16x64d", 100, 68_247_460),
]


@pytest.mark.parametrize(("name", "classes", "count"), CIFAR_PARAMETERS)
def test_golden_parameter_counts_of_cifar_networks(name: str, classes: int, count: int) -> None:
    assert parameters(name, classes) == count


@pytest.mark.parametrize(
    ("cardinality", "width", "count"),
    [(1, 64, 69_632), (2, 40, 69_760), (4, 24, 69_888), (8, 14, 71_456), (32, 4, 70_144)],
)
def test_table_2_block_parameters(cardinality: int, width: int, count: int) -> None:
    """Convolution weights of conv2's second block: 256 channels in and out."""
    kind = "resnet" if cardinality == 1 else "resnext"
    kernels = [
        array.size
        for name, array in shapes(f"{kind}50_{cardinality}x{width}d").items()
        if name.startswith("stages.conv2.1.") and name.endswith("kernel")
    ]
    assert sum(kernels) == count


@pytest.mark.parametrize("name", list_models())
def test_every_listed_name_is_a_model(name: str) -> None:
    architecture = parse_name(name)
    layers = 2 + 3 * sum(architecture.blocks)
    if architecture.basic:
        # Wide ResNet counts two layers a block and the three projections, not the classifier.
        layers = 1 + 2 * sum(architecture.blocks) + 3
    assert name.startswith((f"resnet{layers}", f"resnext{layers}", f"wide_resnet{layers}"))


def test_the_list_cannot_be_changed_from_outside() -> None:
    list_models().clear()
    assert list_models()


@pytest.mark.parametrize(
    ("name", "stem", "blocks", "cardinality", "width"),
    [
        ("resnext50_32x4d", "imagenet", (3, 4, 6, 3), 32, 4),
        ("resnext152_3x7d", "imagenet", (3, 8, 36, 3), 3, 7),
        ("resnet101_1x100d", "imagenet", (3, 4, 23, 3), 1, 100),
        ("resnet50", "imagenet", (3, 4, 6, 3), 1, 64),
        ("resnext29_16x64d", "cifar", (3, 3, 3), 16, 64),
        ("resnext38_2x2d", "cifar", (4, 4, 4), 2, 2),
        ("resnet29_1x200d", "cifar", (3, 3, 3), 1, 200),
    ],
)
def test_names_are_read(
    name: str, stem: str, blocks: tuple[int, ...], cardinality: int, width: int
) -> None:
    architecture = parse_name(name)
    assert architecture.stem == stem
    assert architecture.blocks == blocks
    assert (architecture.cardinality, architecture.group_width) == (cardinality, width)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnext50_32x4", "nearest: resnext50_32x4d"),
        ("resnxt50_32x4d", "nearest: resnext50_32x4d"),
        ("resnext50", "as in 'resnext50_32x4d'"),
        ("vgg", "unknown model 'vgg'"),
        ("", "unknown model ''"),
        ("resnext50_0x4d", "must both be at least 1"),
        ("resnext50_32x0d", "must both be at least 1"),
        ("resnet50_32x4d", "it is 'resnext50_32x4d'"),
        ("resnext51_32x4d", "neither 14, 26, 50, 101 or 152"),
        ("resnext2_32x4d", "nor 9n"),
    ],
)
def test_wrong_names_are_told_in_a_sentence(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_name(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "d"}, "unknown block form 'd'"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"stem_width": 0}, "stem_width must be at least 1"),
        ({"template_width": -1}, "template_width must be at least 1"),
        ({"form": "a", "preactivation": True}, "form 'a' does not exist for the pre-activation"),
    ],
)
def test_impossible_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("resnet50", rngs=nnx.Rngs(0), **options)  # type: ignore[arg-type]


def test_the_seed_decides_the_weights() -> None:
    def kernel(seed: int) -> jax.Array:
        model = create_model("resnext11_2x4d", rngs=nnx.Rngs(seed), template_width=16)
        return split(model)[1]["stages.conv3.0.conv2.kernel"]

    assert (kernel(0) == kernel(0)).all()
    assert (kernel(0) != kernel(1)).any()


@pytest.mark.parametrize("name", ["resnet200", "wide_resnet28_10"])
def test_preactivation_networks_have_no_other_kind(name: str) -> None:
    with pytest.raises(ValueError, match="it has no other kind"):
        create_model(name, rngs=nnx.Rngs(0), preactivation=False)
