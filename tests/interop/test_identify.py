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
