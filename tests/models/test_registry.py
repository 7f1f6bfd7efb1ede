"""Names, the networks behind them, and their golden parameter counts."""

import functools
import re
from typing import Any

import jax
import pytest
from flax import nnx

from resnext_jax.models import create_model, list_models
from resnext_jax.models.blocks import BASIC, BOTTLENECK, SE_BASIC, SE_BOTTLENECK, BlockForms
from resnext_jax.models.registry import network_spec, parse_name
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
    ("resnet18", 11_689_512),
    ("resnet34", 21_797_672),
    ("wide_resnet50_2", 68_883_240),
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
    ("cifar_resnet20", 10, 272_474),
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
    layers = 2 + (2 if architecture.basic else 3) * sum(architecture.blocks)
    if architecture.basic and architecture.preactivation:
        # Wide ResNet counts two layers a block and the three projections, not the classifier.
        layers = 1 + 2 * sum(architecture.blocks) + 3
    kind = re.match(r"(wide_|cifar_|se)?(resnet|resnext)(\d+)(d?)(_|$)", name)
    assert kind is not None
    assert int(kind[3]) == layers
    assert bool(kind[4]) == architecture.deep
    assert (kind[1] == "se") == (architecture.block in (SE_BASIC, SE_BOTTLENECK))


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
        ("resnext50d_32x4d", "imagenet", (3, 4, 6, 3), 32, 4),
        ("resnet200d", "imagenet", (3, 24, 36, 3), 1, 64),
        ("seresnext101_32x8d", "imagenet", (3, 4, 23, 3), 32, 8),
        ("wide_resnet101_2", "imagenet", (3, 4, 23, 3), 1, 128),
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
    ("name", "blocks", "block", "widths"),
    [
        ("resnet18", (2, 2, 2, 2), BASIC, (64, 64)),
        ("seresnet34", (3, 4, 6, 3), SE_BASIC, (64, 64)),
        ("cifar_resnet20", (3, 3, 3), BASIC, (16, 16)),
        ("cifar_resnet110", (18, 18, 18), BASIC, (16, 16)),
        ("resnet20", (2, 2, 2), BOTTLENECK, (64, 256)),
        ("seresnext29_8x64d", (3, 3, 3), SE_BOTTLENECK, (64, 256)),
    ],
)
def test_blocks_of_names(
    name: str, blocks: tuple[int, ...], block: BlockForms, widths: tuple[int, int]
) -> None:
    architecture = parse_name(name)
    assert (architecture.blocks, architecture.block) == (blocks, block)
    assert (architecture.stem_width, architecture.template_width) == widths


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnext50_32x4", r"did you mean resnext50_32x4d or .*\?$"),
        ("resnxt50_32x4d", "did you mean resnext50_32x4d"),
        ("resnext50", "as in 'resnext50_32x4d'"),
        ("vgg", "unknown model 'vgg'"),
        ("zzz", r"unknown model 'zzz'; see resnext_jax.models.list_models\(\)\.$"),
        ("", "unknown model ''"),
        ("resnext50_0x4d", "must both be at least 1"),
        ("resnext50_32x0d", "must both be at least 1"),
        ("resnet50_32x4d", "it is 'resnext50_32x4d'"),
        ("resnext51_32x4d", "neither 14, 26, 50, 101 or 152"),
        ("resnext2_32x4d", "nor 9n"),
        ("resnext18_32x4d", "depth 18 has basic blocks"),
        ("resnet34_1x32d", "it is 'resnet34'"),
        ("resnet29d", "not as ResNet-D"),
        ("resnext50d", "as in 'resnext50d_32x4d'"),
        ("seresnet50_32x4d", "it is 'seresnext50_32x4d'"),
        ("cifar_resnet21", "must be 6n"),
        ("cifar_resnet2", "must be 6n"),
        ("resnet50.a1_in1k", "leave the tag out for the network: 'resnet50'"),
        ("ecaresnet50d.miil_in1k", "not squeeze-and-excitation"),
        ("resnet50.", "unknown model 'resnet50.'"),
        ("ecaresnet26t", r"blocks of your own can have it \(docs/extending.md\)"),
        ("skresnext50_32x4d", "not squeeze-and-excitation"),
        ("seresnextaa101d_32x8d", "anti-aliasing"),
        ("resnetblur50", "anti-aliasing"),
        ("resnet50t", "only ResNet-D's are built"),
        ("seresnext26tn_32x4d", "only ResNet-D's are built"),
        ("resnet101s", "only ResNet-D's are built"),
        ("resnet50c", "only ResNet-D's are built"),
        ("resnetrs50", "ResNet-RS"),
        ("resnest50d", "ResNeSt"),
        ("resnetv2_50", "differ from resnet200's"),
        ("resnet50_gn", "group norm"),
        ("legacy_seresnext50_32x4d", "the first SENets"),
        ("senet154", "the first SENets"),
        (None, "a string such as 'resnext50_32x4d', not None"),
        (50, "not 50"),
        ("resnext50_32x99999999d", "99999999 is too large"),
        ("resnext50_99999999x4d", "99999999 is too large"),
        ("resnext90000002_1x4d", "90000002 is too large"),
        ("cifar_resnet60000002", "60000002 is too large"),
        ("resnext50_9999x9999d", "99,980,001 channels are more than 65,536"),
    ],
)
def test_wrong_names_are_told_in_a_sentence(name: Any, message: str) -> None:
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
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"form": "b", "block": BASIC}, "Basic blocks do not exist in form 'b'; use 'c'"),
        ({"block": SE_BOTTLENECK, "preactivation": True}, "only plain bottleneck and basic blocks"),
    ],
)
def test_impossible_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("resnet50", rngs=nnx.Rngs(0), **options)  # type: ignore[arg-type]


def test_a_deep_stem_has_two_channels_at_least() -> None:
    with pytest.raises(ValueError, match="stem_width must be at least 2"):
        network_spec("resnet50d", stem_width=1)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="a network has no option 'stem'"):
        create_model("resnet50", rngs=nnx.Rngs(0), stem="cifar")  # type: ignore[call-arg]


def test_a_block_can_be_given() -> None:
    assert network_spec("resnet50", block=SE_BOTTLENECK) == network_spec("seresnet50")
    assert network_spec("resnet50", block=None) == network_spec("resnet50")


def test_grey_images() -> None:
    grey = shapes("resnet18") | {}
    for name, array in split(abstract_model("resnet18", in_channels=1))[1].items():
        plain = grey.pop(name).shape
        assert array.shape == ((7, 7, 1, 64) if name == "stem.conv.kernel" else plain)
    assert not grey


def test_the_seed_decides_the_weights() -> None:
    def kernel(seed: int) -> jax.Array:
        model = create_model("resnext11_2x4d", rngs=nnx.Rngs(seed), template_width=16)
        return split(model)[1]["stages.conv3.0.conv2.kernel"]

    assert (kernel(0) == kernel(0)).all()
    assert (kernel(0) != kernel(1)).any()


@pytest.mark.parametrize("name", ["resnet200", "wide_resnet28_10"])
def test_preactivation_networks_have_no_other_kind(name: str) -> None:
    with pytest.raises(ValueError, match="it has no other variant"):
        create_model(name, rngs=nnx.Rngs(0), preactivation=False)
