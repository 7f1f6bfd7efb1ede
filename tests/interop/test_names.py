"""The table of names: the one part where a wrong line would go unseen by shapes alone."""

import dataclasses
import math

import numpy as np
import pytest

from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.names import TORCH7, TORCHVISION, ArrayRow, counters, table
from resnext_jax.models import create_model, list_models
from resnext_jax.models.blocks import BlockForms, SEBottleneckC
from resnext_jax.models.registry import model_name, network_spec, parse_name
from resnext_jax.models.resnext import NetworkSpec
from resnext_jax.models.variables import skeleton, split


@pytest.mark.parametrize(
    ("name", "residual"),
    [
        ("resnet50", True),
        ("resnext50_32x4d", True),
        ("resnext101_64x4d", True),
        ("resnext29_8x64d", True),
        ("resnext11_4x8d", False),
        ("resnet18", True),
        ("seresnet18", False),
        ("resnet26d", True),
        ("seresnext26d_32x4d", True),
    ],
)
def test_rows_are_the_networks_arrays(name: str, residual: bool) -> None:
    model = skeleton(lambda rngs: create_model(name, rngs=rngs, residual=residual, stem_width=32))
    _, params, batch_stats = split(model)
    for scheme in (TORCHVISION, TORCH7):
        rows = table(model.spec, scheme)
        for collection, arrays in (("params", params), ("batch_stats", batch_stats)):
            told = {row.ours: row.shape for row in rows if row.collection == collection}
            assert told == {ours: array.shape for ours, array in arrays.items()}
        assert len({row.theirs for row in rows}) == len(rows)


# From PyTorch's documentation of torchvision's models.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnet50_1x128d", 68_883_240),  # wide_resnet50_2
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
    ],
)
def test_torchvisions_parameters(name: str, parameters: int) -> None:
    rows = table(NetworkSpec(parse_name(name)))
    assert sum(np.prod(row.shape) for row in rows if row.collection == "params") == parameters


def test_torchvisions_names() -> None:
    rows = table(NetworkSpec(parse_name("resnext50_32x4d")))
    shapes = {row.theirs: row.torch_shape for row in rows}
    assert list(shapes)[:6] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "layer1.0.conv1.weight",
    ]
    assert list(shapes)[-2:] == ["fc.weight", "fc.bias"]
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.conv2.weight"] == (128, 4, 3, 3)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.downsample.1.running_var"] == (512,)
    assert shapes["layer4.2.conv3.weight"] == (2048, 1024, 1, 1)
    assert shapes["fc.weight"] == (1000, 2048)
    assert "layer1.1.downsample.0.weight" not in shapes
    assert len(shapes) + len(counters(rows)) == 320  # entries of torchvision's state dict
    assert {"bn1.num_batches_tracked", "layer3.0.downsample.1.num_batches_tracked"} < counters(rows)


def test_torch7s_names() -> None:
    """As in pretrainedmodels/models/resnext_features/resnext101_32x4d_features.py of Cadene's."""
    rows = table(NetworkSpec(parse_name("resnext101_32x4d")), TORCH7)
    shapes = {row.theirs: row.torch_shape for row in rows}
    assert shapes["features.0.weight"] == (64, 3, 7, 7)
    assert shapes["features.1.running_mean"] == (64,)
    assert shapes["features.4.0.0.0.0.0.weight"] == (128, 64, 1, 1)
    assert shapes["features.4.0.0.0.0.1.weight"] == (128,)
    assert shapes["features.4.0.0.0.0.3.weight"] == (128, 4, 3, 3)
    assert shapes["features.4.0.0.0.0.4.bias"] == (128,)
    assert shapes["features.4.0.0.0.1.weight"] == (256, 128, 1, 1)
    assert shapes["features.4.0.0.0.2.running_var"] == (256,)
    assert shapes["features.4.0.0.1.0.weight"] == (256, 64, 1, 1)
    assert shapes["features.4.0.0.1.1.bias"] == (256,)
    assert shapes["features.6.22.0.0.1.weight"] == (1024, 512, 1, 1)
    assert shapes["last_linear.weight"] == (1000, 2048)


def test_layouts() -> None:
    kernel = np.arange(2 * 3 * 5 * 7).reshape(7, 5, 2, 3)  # OIHW
    row = ArrayRow("conv1.kernel", "conv1.weight", (2, 3, 5, 7))
    assert row.torch_shape == kernel.shape
    ours = row.from_torch(kernel)
    assert ours.shape == row.shape
    assert ours[1, 2, 3, 4] == kernel[4, 3, 1, 2]
    np.testing.assert_array_equal(row.to_torch(ours), kernel)

    matrix = np.arange(6).reshape(2, 3)
    row = ArrayRow("fc.kernel", "fc.weight", (3, 2))
    assert row.torch_shape == (2, 3)
    assert row.from_torch(matrix)[2, 1] == matrix[1, 2]
    back = row.to_torch(np.ascontiguousarray(row.from_torch(matrix)))
    np.testing.assert_array_equal(back, matrix)
    assert back.flags.c_contiguous


# What timm 1.0.31's networks count themselves. Rounded to two places of a million, they are those
# of its results/benchmark-infer-amp-nchw-pt113-cu117-rtx3090.csv (param_count), where resnext101's
# 32x16d to 32x48d stand as ig_resnext101; timm has 32x48d no more, whose count is torchvision's.
TIMMS_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet26d": 16_014_408,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "resnet200d": 64_693_064,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50d_32x4d": 25_048_136,
    "resnext101_32x16d": 194_026_792,
    "resnext101_32x32d": 468_530_472,
    "resnext101_32x48d": 828_411_176,
    "seresnet18": 11_779_624,
    "seresnet34": 21_960_416,
    "seresnet50": 28_088_024,
    "seresnet152d": 66_841_080,
    "seresnet200d": 71_855_096,
    "seresnet269d": 113_672_760,
    "seresnext26d_32x4d": 16_809_512,
    "seresnext50_32x4d": 27_559_896,
    "seresnext101_32x4d": 48_955_416,
    "seresnext101_32x8d": 93_569_048,
    "seresnext101_64x4d": 88_232_984,
    "seresnext101d_32x8d": 93_588_280,
}


@pytest.mark.parametrize(("name", "count"), TIMMS_PARAMETERS.items())
def test_parameters_are_timms(name: str, count: int) -> None:
    rows = table(network_spec(name))
    assert sum(math.prod(row.shape) for row in rows if row.collection == "params") == count


def test_names_of_deep_stems_pooled_shortcuts_and_squeezes() -> None:
    rows = {row.theirs: row for row in table(network_spec("seresnext50d_32x4d"))}
    assert rows["conv1.0.weight"].shape == (3, 3, 3, 32)
    assert rows["conv1.6.weight"].ours == "stem.conv.kernel"
    assert rows["bn1.running_var"].ours == "stem.norm.var"
    assert rows["layer1.0.downsample.1.weight"].ours == "stages.conv2.0.shortcut.conv.kernel"
    assert rows["layer2.0.se.fc1.weight"].torch_shape == (32, 512, 1, 1)
    kernel = np.arange(32 * 512, dtype=np.float32).reshape(32, 512, 1, 1)
    ours = rows["layer2.0.se.fc1.weight"].from_torch(kernel)
    assert ours[3, 5] == kernel[5, 3, 0, 0]
    np.testing.assert_array_equal(rows["layer2.0.se.fc1.weight"].to_torch(ours), kernel)


def test_blocks_of_one_s_own_are_refused() -> None:
    with pytest.raises(WeightsError, match="SEBottleneckC blocks have no usual names"):
        table(network_spec("resnet50", block=BlockForms(SEBottleneckC)))


def test_model_names_are_found_again() -> None:
    for name in list_models():
        architecture = parse_name(name)
        if not architecture.preactivation:
            assert model_name(architecture) == name
            assert model_name(dataclasses.replace(architecture, stem_width=8)) == name
    unlisted = dataclasses.replace(parse_name("resnet50"), blocks=(3, 4, 5, 4))
    assert model_name(unlisted) is None
    assert model_name(dataclasses.replace(parse_name("resnet50"), blocks=(2, 2, 2, 1))) is None


def test_preactivation_is_refused() -> None:
    model = skeleton(lambda rngs: create_model("resnext11_2x2d", preactivation=True, rngs=rngs))
    with pytest.raises(WeightsError, match="pre-activation networks have no usual names"):
        table(model.spec)
