"""Which model a state dict fits."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.identify import Identity, identify
from resnext_jax.interop.names import TORCH7, TORCHVISION, Scheme, table
from resnext_jax.models.blocks import BOTTLENECK
from resnext_jax.models.registry import network_spec
from resnext_jax.models.resnext import NetworkSpec
from tests.interop.weights import (
    CIFAR_SPEC,
    IMAGENET_SPEC,
    STRANGERS,
    random_state_dict,
    small_spec,
    stranger,
)


def shapes_only(spec: NetworkSpec, scheme: Scheme = TORCHVISION) -> dict[str, np.ndarray]:
    """Make arrays that take no memory."""
    zero = np.zeros((), np.float32)
    return {row.theirs: np.broadcast_to(zero, row.torch_shape) for row in table(spec, scheme)}


@pytest.mark.parametrize(
    ("name", "options", "classes"),
    [
        ("resnet50", {}, 1000),
        ("resnet101", {"residual": False}, 21),
        ("wide_resnet50_2", {}, 1000),
        ("resnet18", {}, 1000),
        ("resnet34", {"in_channels": 1, "template_width": 16}, 10),
        ("resnet18d", {}, 1000),
        ("resnet101d", {"residual": False}, 1000),
        ("resnext50d_32x4d", {"in_channels": 1}, 7),
        ("seresnet18", {"residual": False}, 1000),
        ("seresnext101d_32x8d", {}, 1000),
        ("resnext101_32x48d", {}, 1000),
        ("cifar_resnet56", {}, 10),
        ("cifar_resnet20", {"stem_width": 8, "template_width": 8}, 10),
        ("seresnext29_8x64d", {}, 10),
        ("resnext50_32x4d", {}, 1000),
        ("resnext101_64x4d", {}, 5000),
        ("resnext152_2x40d", {"stem_width": 32, "template_width": 128}, 10),
        ("resnext29_8x64d", {}, 100),
        ("resnet29", {}, 10),
        ("resnext50_16x1d", {}, 7),
    ],
)
def test_networks_are_found(name: str, options: dict[str, Any], classes: int) -> None:
    spec = network_spec(name, num_classes=classes, **options)
    identity = identify(shapes_only(spec))
    assert identity.arguments == {"name": name, "num_classes": classes, **options}
    assert identity.scheme == "torchvision"
    architecture = spec.architecture
    if (
        architecture.stem == "imagenet"
        and architecture.block is BOTTLENECK
        and not architecture.deep
    ):
        found = identify(shapes_only(spec, TORCH7))
        assert found == dataclasses.replace(identity, scheme="Torch7")


def test_golden_networks_are_found() -> None:
    assert identify(random_state_dict(CIFAR_SPEC)) == Identity(
        "resnext11_2x1d", 3, stem_width=4, template_width=4, residual=True, scheme="torchvision"
    )
    assert identify(random_state_dict(IMAGENET_SPEC)).name == "resnext50_4x1d"


def strangers() -> dict[str, dict[str, np.ndarray]]:
    plain = random_state_dict(CIFAR_SPEC)
    return {
        "nothing": {},
        "of something else": {"weight": np.zeros((2, 2)), "bias": np.zeros(2)},
        "missing": {name: array for name, array in plain.items() if name != "layer2.0.bn1.bias"},
        "unexpected": plain | {"layer1.0.gate.weight": np.zeros(1)},
        "misshapen": plain | {"layer3.0.conv1.weight": np.zeros((8, 8, 3, 3))},
        "stem": plain | {"conv1.weight": np.zeros((4, 3, 5, 5))},
        "odd": plain | {"layer1.0.conv2.weight": np.zeros((2, 0, 3, 3))},
        "flat": plain | {"layer1.0.conv2.weight": np.zeros(2), "fc.bias": np.zeros(())},
        "unnamed depth": random_state_dict(small_spec()),
    }


@pytest.mark.parametrize("kind", strangers())
def test_others_are_not(kind: str) -> None:
    with pytest.raises(WeightsError, match="no model of this package fits FILE"):
        identify(strangers()[kind], "FILE")


@pytest.mark.parametrize("kind", STRANGERS)
def test_known_strangers_are_named(kind: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(f": it is of a network with {kind}")):
        identify(stranger(kind))


def changed(name: str, change: str, **options: Any) -> dict[str, np.ndarray]:
    """Weights of a network that is nearly ours."""
    arrays = shapes_only(network_spec(name, **options))
    head = {part: arrays[f"fc.{part}"] for part in ("weight", "bias")}
    if change in ("no head", "head in a list"):
        arrays = {key: array for key, array in arrays.items() if not key.startswith("fc.")}
    if change == "head in a list":
        arrays |= {f"fc.1.{part}": array for part, array in head.items()}
    if change == "first shard":
        arrays = dict(list(arrays.items())[: len(arrays) // 2])
    if change == "other stem":
        arrays["conv1.weight"] = np.zeros((64, 3, 3, 3))
    if change == "gate":
        arrays["layer1.0.gate.weight"] = np.zeros(1)
    return arrays


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (
            "resnext50_32x4d",
            "no head",
            "the nearest is resnext50_32x4d: 2 names missing (fc.weight, fc.bias); without a "
            "classifier it can be loaded by load_weights(model, FILE, classifier=False)",
        ),
        (
            "resnet101",
            "head in a list",
            "the nearest is resnet101: 2 names missing (fc.weight, fc.bias); 2 names unexpected "
            "(fc.1.weight, fc.1.bias); without a classifier it can",
        ),
        (
            "resnet50",
            "first shard",
            "the nearest is resnet50: 134 names missing (layer3.0.bn3.running_mean, "
            "layer3.0.bn3.running_var, layer3.0.downsample.0.weight, and 131 more); if the weights "
            "are in several files, put them into one.",
        ),
        (
            "seresnext101_32x8d",
            "gate",
            "the nearest is seresnext101_32x8d: 1 name unexpected (layer1.0.gate.weight).",
        ),
        (
            "resnet34",
            "other stem",
            "the nearest is resnet34: 1 array of another shape (conv1.weight is (64, 3, 3, 3), not "
            "(64, 3, 7, 7)).",
        ),
    ],
)
def test_the_nearest_network_is_named(name: str, change: str, told: str) -> None:
    with pytest.raises(WeightsError, match="no model of this package fits FILE; ") as error:
        identify(changed(name, change), "FILE")
    assert told in str(error.value)
    assert error.value.missing or error.value.unexpected or error.value.misshapen


def test_resnet200_with_norms_behind_its_convolutions_is_named() -> None:
    spec = network_spec("resnet200d")
    plain = dataclasses.replace(spec.architecture, deep=False)
    with pytest.raises(WeightsError, match="blocks of resnet200, which is a pre-activation"):
        identify(shapes_only(dataclasses.replace(spec, architecture=plain)))
