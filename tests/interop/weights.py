"""Weights and images that are the same wherever they are drawn."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from resnext_jax.interop.names import TORCHVISION, Scheme, counters, table
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.registry import network_spec
from resnext_jax.models.resnext import Architecture, NetworkSpec, ResNeXt
from resnext_jax.models.variables import skeleton

# Golden networks (see make_golden): with ImageNet's stem, and with CIFAR's.
IMAGENET_SPEC = network_spec("resnext50_4x1d", stem_width=8, template_width=8, num_classes=5)
CIFAR_SPEC = network_spec("resnext11_2x1d", stem_width=4, template_width=4, num_classes=3)

# Relatives that timm's golden logits are of; plain stems are 64 wide there. The size has odd maps,
# on which pooling meets a border.
FAMILY_SIZE = 70
_WIDTHS: dict[str, dict[str, Any]] = {
    "resnet18": {"template_width": 8},
    "resnet34d": {"stem_width": 8, "template_width": 8},
    "resnet26d_1x4d": {"stem_width": 8, "template_width": 16, "in_channels": 1},
    "seresnet18": {"template_width": 8},
    "seresnext14_4x1d": {"template_width": 16},
    "seresnext26d_2x2d": {"stem_width": 8, "template_width": 16},
}
FAMILY = {name: network_spec(name, num_classes=5, **widths) for name, widths in _WIDTHS.items()}


def small_spec(dtype: str = "float32", num_classes: int = 5) -> NetworkSpec:
    """Make a network with all that a network has, and as few blocks as that takes."""
    architecture = Architecture(
        "imagenet", (2, 1, 1), cardinality=4, group_width=2, stem_width=8, template_width=16
    )
    options = LayerOptions(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    return NetworkSpec(architecture, num_classes, options=options)


def empty_model(spec: NetworkSpec) -> ResNeXt:
    """Make a network in testing mode whose arrays are shapes only, which takes no compiling."""
    model = skeleton(lambda rngs: ResNeXt(spec, rngs=rngs))
    model.eval()
    return model


def random_state_dict(
    spec: NetworkSpec, seed: int = 0, dtype: str = "float32", scheme: Scheme = TORCHVISION
) -> dict[str, np.ndarray]:
    """Draw weights and statistics at which nothing vanishes or explodes, with the counters.

    `RandomState` and not `default_rng`: NumPy keeps its numbers for ever.
    """
    rng = np.random.RandomState(seed)
    state_dict = {}
    for row in table(spec, scheme):
        draw, shape = rng.standard_normal(row.torch_shape), row.torch_shape
        if len(shape) > 1:
            array = draw * np.sqrt(2.0 / np.prod(shape[1:]))
        elif row.ours.endswith(("scale", "var")):
            array = np.exp(0.3 * draw)
        else:
            array = 0.2 * draw
        state_dict[row.theirs] = array.astype(dtype)
    for name in sorted(counters(table(spec, scheme))):
        state_dict[name] = np.array(7, np.int64)
    return state_dict


def random_images(
    count: int, size: int, seed: int = 1, dtype: str = "float32", channels: int = 3
) -> np.ndarray:
    """Draw normalised images `[N, H, W, channels]`."""
    draw = np.random.RandomState(seed).standard_normal((count, size, size, channels))
    return draw.astype(dtype)
