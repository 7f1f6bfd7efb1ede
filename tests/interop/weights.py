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

# Some arrays of timm 1.0.31's networks that are not built here and told by them, by what an error
# calls such a network.
STRANGERS: dict[str, dict[str, tuple[int, ...]]] = {
    "ECA attention in its blocks": {"layer1.0.se.conv.weight": (1, 1, 5)},  # ecaresnet50d
    "the names, stem and strides of the first SENets": {
        "layer1.0.se_module.fc1.weight": (16, 256, 1, 1)  # legacy_seresnet50
    },
    "the stages and stem of timm's ByobNet": {
        "stem.conv2.conv.weight": (32, 24, 3, 3),  # resnet33ts
        "stages.0.0.conv1_1x1.conv.weight": (64, 64, 1, 1),
    },
    "split attention (such as ResNeSt": {"layer1.0.conv2.conv.weight": (128, 32, 3, 3)},
    "split attention": {"layer1.0.conv2.attn.fc_reduce.weight": (8, 64, 1, 1)},  # skresnet50
    "ResNet-RS's stem": {  # resnetrs50
        "conv1.0.weight": (32, 3, 3, 3),
        "conv1.6.weight": (64, 32, 3, 3),
        "maxpool.0.weight": (64, 64, 3, 3),
    },
    "timm's resnetv2 blocks": {"stages.0.blocks.0.conv1.weight": (64, 64, 1, 1)},
    "a stem whose convolutions widen one by one (timm's -T)": {  # resnet50t
        "conv1.0.weight": (24, 3, 3, 3),
        "conv1.6.weight": (64, 32, 3, 3),
        "layer2.0.downsample.1.weight": (512, 256, 1, 1),
    },
    "a deep stem and plain shortcuts (timm's -C and -S": {  # resnet50s
        "conv1.0.weight": (64, 3, 3, 3),
        "conv1.6.weight": (128, 64, 3, 3),
        "layer2.0.downsample.0.weight": (512, 256, 1, 1),
    },
    "norms without running statistics (such as group norm)": {"bn1.weight": (64,)},  # resnet50_gn
}


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


def stranger(kind: str) -> dict[str, np.ndarray]:
    """Make the arrays of one of `STRANGERS`."""
    return {name: np.zeros(shape, np.float32) for name, shape in STRANGERS[kind].items()}


def random_images(
    count: int, size: int, seed: int = 1, dtype: str = "float32", channels: int = 3
) -> np.ndarray:
    """Draw normalised images `[N, H, W, channels]`."""
    draw = np.random.RandomState(seed).standard_normal((count, size, size, channels))
    return draw.astype(dtype)
