"""Which network a state dict is of."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.names import TORCHVISION_D, Scheme, counters, scheme_of, table
from resnext_jax.interop.state_dicts import Difference, compare, kind_of_stranger
from resnext_jax.models.blocks import BASIC, BOTTLENECK, SE_BASIC, SE_BOTTLENECK
from resnext_jax.models.registry import list_models, model_name, network_spec, parse_name
from resnext_jax.models.resnext import Architecture, NetworkSpec

# Names of each kind of difference in an error's message.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Identity:
    """A network, as arguments of `create_model`.

    Attributes:
      name: of the model.
      num_classes: width of the classifier.
      stem_width, template_width, in_channels: None where they are those that the name says.
      residual: False: without shortcuts.
      scheme: whose names the state dict has, "torchvision" or "Torch7".
    """

    name: str
    num_classes: int
    stem_width: int | None
    template_width: int | None
    residual: bool
    scheme: str
    in_channels: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What to give to `create_model`, beside `rngs`; what is usual is left out."""
        widths = {
            "stem_width": self.stem_width,
            "template_width": self.template_width,
            "in_channels": self.in_channels,
        }
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            **{what: width for what, width in widths.items() if width is not None},
            **({} if self.residual else {"residual": False}),
        }


def twins(name: str) -> str:
    """Say in a line which other networks the weights of one fit, from names and shapes alone."""
    return (
        f"names and shapes do not distinguish {name} from networks that compute something "
        "else: anti-aliased (timm's resnetaa50 and resnetblur50), dilated, with other "
        "pooling, strides or activations"
    )


def identify(state_dict: Mapping[str, Any], source: str = "the state dict") -> Identity:
    """Find the network whose weights these are, from names and shapes.

    What leaves no trace in the weights cannot be seen: see `twins`.

    Args:
      state_dict: arrays by PyTorch's name, unwrapped.
      source: its name in error messages.

    Raises:
      WeightsError: no network of `create_model` fits. The sentence names the nearest, and how the
        weights differ from it.
    """
    scheme = scheme_of(state_dict)
    shapes = {name: tuple(array.shape) for name, array in state_dict.items()}
    try:
        spec = _spec(shapes, scheme)
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        spec = None
    name = None if spec is None else model_name(spec.architecture)
    nearest = None
    if spec is not None and name is not None:
        nearest = _Candidate(name, _difference(state_dict, spec, scheme))
        if not any(nearest.difference):
            ours, usual = spec.architecture, parse_name(name)
            sizes = {
                what: None if getattr(ours, what) == getattr(usual, what) else getattr(ours, what)
                for what in ("stem_width", "template_width", "in_channels")
            }
            return Identity(
                name, spec.num_classes, residual=spec.residual, scheme=scheme.name, **sizes
            )
    kind = kind_of_stranger(state_dict)
    unfit = f"no model of this package fits {source}"
    if kind is not None:
        raise WeightsError(f"{unfit}: it is of a network with {kind}.")
    preactivated = None if spec is None or name else _preactivated(spec.architecture)
    if preactivated is not None:
        raise WeightsError(
            f"{unfit}: it has the blocks of {preactivated}, which is a pre-activation network "
            "here, and batch norms after its convolutions."
        )
    nearest = nearest or _nearest(state_dict, scheme)
    if nearest is None:
        raise WeightsError(f"{unfit}, nor any part of one; check that it is of a ResNet.")
    difference = nearest.difference
    raise WeightsError(
        f"{unfit}; the nearest is {nearest.name}: {'; '.join(difference.phrases(most=_NAMED))}"
        f"{_remedy(difference, scheme)}.",
        **difference._asdict(),
    )


class _Candidate(NamedTuple):
    """A network by name, and how weights differ from it."""

    name: str
    difference: Difference


def _difference(state_dict: Mapping[str, Any], spec: NetworkSpec, scheme: Scheme) -> Difference:
    rows = table(spec, scheme)
    return compare(state_dict, rows, counters(rows))


def _nearest(state_dict: Mapping[str, Any], scheme: Scheme) -> _Candidate | None:
    """Return the listed network that most names fit, None where half of them fit none."""
    best = None
    for name in list_models():
        spec = network_spec(name)
        if not spec.architecture.preactivation:
            found = _Candidate(name, _difference(state_dict, spec, scheme))
            if best is None or _distance(found.difference) < _distance(best.difference):
                best = found
    foreign = len(best.difference.unexpected) if best else 0
    return best if 2 * foreign < len(state_dict) else None


def _distance(difference: Difference) -> tuple[int, int]:
    # What is missing counts last: the weights may be a part of a network's, one file of several.
    return len(difference.unexpected) + len(difference.misshapen), len(difference.missing)


def _preactivated(architecture: Architecture) -> str | None:
    """Return the pre-activation network that has as many blocks."""
    for name in list_models():
        named = parse_name(name)
        if named.preactivation and named.blocks == architecture.blocks:
            return name
    return None


def _remedy(difference: Difference, scheme: Scheme) -> str:
    classifier = f"{scheme.classifier}."
    if difference.missing and all(name.startswith(classifier) for name in difference.missing):
        return (
            "; without a classifier it can be loaded by load_weights(model, FILE, classifier=False)"
            " or --config.init_from=FILE"
        )
    if len(difference.missing) == sum(map(len, difference)):
        return "; if the weights are in several files, put them into one"
    return ""


def _spec(shapes: Mapping[str, tuple[int, ...]], scheme: Scheme) -> NetworkSpec:
    """Read the architecture off the shapes of a few layers; they may be of anything."""

    def layer(stage: int, block: int, name: str) -> str:
        return f"{scheme.layer(stage, block, name)}.weight"

    deep = f"{TORCHVISION_D.stem[0]}.weight" in shapes
    scheme = TORCHVISION_D if deep else scheme
    stem_width, in_channels, size, _ = shapes[f"{scheme.stem[0]}.weight"]
    if deep:
        _, in_channels, _, _ = shapes["conv1.0.weight"]
    blocks: list[int] = []
    while layer(len(blocks), 0, "conv2") in shapes:
        stage, count = len(blocks), 1
        while layer(stage, count, "conv2") in shapes:
            count += 1
        blocks.append(count)
    width, group_width, _, _ = shapes[layer(0, 0, "conv2")]
    squeezes = layer(0, 0, "se.fc1") in shapes
    bottleneck, basic = (SE_BOTTLENECK, SE_BASIC) if squeezes else (BOTTLENECK, BASIC)
    if layer(0, 0, "conv3") in shapes:
        block, template_width = bottleneck, shapes[layer(0, 0, "conv3")][0]
    else:
        # Basic blocks are as wide as `template_width` says; by name 64, or 16 for CIFAR.
        block, template_width = basic, width
        width = group_width = 64 if len(blocks) == 4 else 16
    architecture = Architecture(
        "imagenet" if size == 7 or deep else "cifar",
        tuple(blocks),
        width // group_width,
        group_width,
        stem_width=stem_width,
        template_width=template_width,
        block=block,
        deep=deep,
        in_channels=in_channels,
    )
    # Without a classifier it is still known which network is the nearest.
    (num_classes,) = shapes.get(f"{scheme.classifier}.bias", (1000,))
    # The second stage's first block halves the map, which takes a projection.
    residual = layer(1, 0, "shortcut.conv") in shapes
    return NetworkSpec(architecture, num_classes, residual=residual)
