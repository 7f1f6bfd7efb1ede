"""Model names and the networks they denote."""

import dataclasses
import re
from typing import Any, TypedDict, Unpack

import jax
from flax import nnx

from resnext_jax.errors import did_you_mean
from resnext_jax.models.blocks import (
    BASIC,
    BOTTLENECK,
    FORMS,
    SE_BASIC,
    SE_BOTTLENECK,
    BlockForms,
    Form,
)
from resnext_jax.models.equivalence import convert_form
from resnext_jax.models.execution import Execution
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.preact import PreActResNeXt
from resnext_jax.models.resnext import Architecture, NetworkSpec, ResNeXt
from resnext_jax.ops.grouped_conv import Implementation

# Blocks per stage of the ImageNet networks, by depth: the stem, two or three layers per block, and
# the classifier. Depths 14 and 26 are not in the paper; they are for small data.
_BASIC_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK_BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
# Depths that exist as ResNet-D only; resnet200 is the name of a pre-activation network.
_VERY_DEEP = (200, 269)

# Prefixes of names (lower-case letters), and the bottleneck and basic blocks they select.
BLOCKS = {"": (BOTTLENECK, BASIC), "se": (SE_BOTTLENECK, SE_BASIC)}

# Other names, of torchvision and timm.
_ALIASES = {"wide_resnet50_2": "resnet50_1x128d", "wide_resnet101_2": "resnet101_1x128d"}

# The networks of the paper's tables (Tables 3, 4, 5 and 7), and relatives that others
# released. Any other cardinality and width works too.
_LISTED = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet101_1x100d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_2x40d",
    "resnext50_4x24d",
    "resnext50_8x14d",
    "resnext50_32x4d",
    "resnext101_2x40d",
    "resnext101_4x24d",
    "resnext101_8x14d",
    "resnext101_32x4d",
    "resnext101_2x64d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext101_32x16d",
    "resnext101_32x32d",
    "resnext101_32x48d",
    "resnext152_32x4d",
    "resnet18d",
    "resnet34d",
    "resnet26d",
    "resnet50d",
    "resnet101d",
    "resnet152d",
    "resnet200d",
    "resnext50d_32x4d",
    "seresnet50",
    "seresnext50_32x4d",
    "seresnext101_32x4d",
    "seresnext101_32x8d",
    "resnet200",
    "resnet29",
    "resnext29_32x4d",
    "resnext29_8x64d",
    "resnext29_16x64d",
    "wide_resnet28_10",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
)

_NAME = re.compile(r"([a-z]*?)(resnet|resnext)(\d+)(d?)(?:_(\d+)x(\d+)d)?")
# More layers, branches or channels (of the first stage's bottlenecks) than anybody can build.
_LONG_NUMBER = re.compile(r"\d{5,}")
_MOST_CHANNELS = 2**16
_CIFAR_NAME = re.compile(r"cifar_resnet(\d+)")

# Related networks that are not implemented, as regular expressions of their names, and why.
_FOREIGN = {
    r"(se|eca)?resne[xt]+(aa|blur).*": "it filters before downsampling (anti-aliasing)",
    r"(eca|ese|gc|sk).*": "its attention is not squeeze-and-excitation as in seresnet50; blocks of "
    "your own can have it (docs/extending.md)",
    r"senet.*|legacy_se.*": "the first SENets differ from seresnet50 in stem, strides or shortcuts",
    r"resnetrs.*": "ResNet-RS has another stem and another squeeze",
    r"resnest.*": "ResNeSt's blocks split their attention",
    r"(se)?resne[xt]+\d+[cest]+n?(_.*)?": "of the deep stems and averaging shortcuts, only "
    "ResNet-D's are built (such as resnet50d)",
    r"resnetv2.*": "its pre-activation blocks differ from resnet200's in stem and order",
    r"resnet\d+_gn.*": "it has group norm",
}


def list_models() -> list[str]:
    """Names of the paper's networks and their best-known relatives.

    The grammar is wider than the list:

    - `resnext{depth}_{C}x{d}d` takes any cardinality C and width d, and
      `resnet{depth}_1x{d}d` any width, for depths 14, 26, 50, 101 and 152
      (ImageNet) and 9n + 2 (CIFAR: 20, 29, 38, ...); `resnet18` and `resnet34`
      have basic blocks.
    - A `d` after an ImageNet network's depth makes it ResNet-D: `resnext50d_32x4d`.
      These may be 200 and 269 layers deep too.
    - `se` in front adds squeeze-and-excitation: `seresnext50_32x4d`.
    - `cifar_resnet{6n+2}` is He et al.'s CIFAR network of basic blocks with 16, 32
      and 64 channels: `cifar_resnet20`, where `resnet20` has bottleneck blocks.
    """
    return list(_LISTED)


def parse_name(name: str) -> Architecture:
    """Turn a model name into its architecture, at the paper's widths.

    Raises:
      ValueError: no such model; the message names the nearest valid ones, or
        says which part of the name is impossible.
    """
    if not isinstance(name, str):
        raise ValueError(f"a model's name is a string such as 'resnext50_32x4d', not {name!r}.")
    if number := _LONG_NUMBER.search(name):
        raise ValueError(f"impossible model {name!r}: {number[0]} is too large for any network.")
    if name == "resnet200":
        blocks = _BOTTLENECK_BLOCKS[200]
        return Architecture("imagenet", blocks, 1, 64, preactivation=True)
    if name == "wide_resnet28_10":
        # 28 layers: the stem, three stages of four blocks of two, the projections' three.
        return Architecture(
            "cifar",
            (4, 4, 4),
            1,
            160,
            preactivation=True,
            block=BASIC,
            stem_width=16,
            template_width=160,
        )
    if match := _CIFAR_NAME.fullmatch(name):
        blocks_each, rest = divmod(int(match[1]) - 2, 6)
        if blocks_each < 1 or rest:
            raise ValueError(f"impossible model {name!r}: its depth must be 6n + 2 (20, 32, ...).")
        return Architecture(
            "cifar", (blocks_each,) * 3, 1, 16, block=BASIC, stem_width=16, template_width=16
        )
    match = _NAME.fullmatch(_ALIASES.get(name, name))
    if match is None or match[1] not in BLOCKS:
        raise _unknown(name)
    kind, depth, deep = match[2], int(match[3]), bool(match[4])
    bottleneck, basic = BLOCKS[match[1]]
    if kind == "resnet" and depth in _BASIC_BLOCKS and match[5] is None:
        stages = _BASIC_BLOCKS[depth]
        return Architecture("imagenet", stages, 1, 64, template_width=64, block=basic, deep=deep)
    if kind == "resnext" and match[5] is None:
        raise ValueError(
            f"incomplete model name {name!r}: a ResNeXt needs its cardinality and width, "
            f"as in '{name}_32x4d'."
        )
    cardinality, width = (int(match[5]), int(match[6])) if match[5] else (1, 64)
    if cardinality < 1 or width < 1:
        raise ValueError(
            f"impossible model {name!r}: cardinality C={cardinality} and width d={width} "
            "must both be at least 1."
        )
    if cardinality * width > _MOST_CHANNELS:
        raise ValueError(
            f"impossible model {name!r}: C * d = {cardinality * width:,} channels are more than "
            f"{_MOST_CHANNELS:,}."
        )
    if kind == "resnet" and cardinality != 1:
        resnext = name.replace("resnet", "resnext")
        raise ValueError(
            f"impossible model {name!r}: a ResNet has cardinality 1; with C={cardinality} "
            f"it is {resnext!r}."
        )
    if depth in _BASIC_BLOCKS:
        raise ValueError(
            f"impossible model {name!r}: depth {depth} has basic blocks, without groups or "
            f"bottleneck; it is 'resnet{depth}'."
        )
    if depth in _BOTTLENECK_BLOCKS and (deep or depth not in _VERY_DEEP):
        stages = _BOTTLENECK_BLOCKS[depth]
        return Architecture("imagenet", stages, cardinality, width, block=bottleneck, deep=deep)
    if depth > 2 and (depth - 2) % 9 == 0 and not deep:
        return Architecture("cifar", ((depth - 2) // 9,) * 3, cardinality, width, block=bottleneck)
    raise ValueError(
        f"impossible model {name!r}: depth {depth} is neither 14, 26, 50, 101 or 152 "
        "(ImageNet; 18 and 34 without groups, 200 and 269 as ResNet-D) nor 9n + 2 "
        "(CIFAR: 20, 29, 38, ..., not as ResNet-D)."
    )


def model_name(architecture: Architecture) -> str | None:
    """Return the name of an architecture for `create_model`; None if it has none.

    `stem_width`, `template_width` and `in_channels` are ignored: they are arguments of
    `create_model`.
    """
    cardinality, width = architecture.cardinality, architecture.group_width
    kind = "resnet" if cardinality == 1 else "resnext"
    size = "" if (cardinality, width) == (1, 64) else f"_{cardinality}x{width}d"
    depth = 2 + (2 if architecture.basic else 3) * sum(architecture.blocks)
    found = [
        f"{prefix}{kind}{depth}{'d' * architecture.deep}{size}"
        for prefix, blocks in BLOCKS.items()
        if architecture.block in blocks
    ]
    names = {name: alias for alias, name in _ALIASES.items()}
    for name in (*(names.get(each, each) for each in found), f"cifar_resnet{depth}"):
        try:
            named = parse_name(name)
        except ValueError:
            continue
        usual = dataclasses.replace(
            architecture,
            stem_width=named.stem_width,
            template_width=named.template_width,
            in_channels=named.in_channels,
        )
        if usual == named:
            return name
    return None


def _unknown(name: str) -> ValueError:
    base, _, tag = name.partition(".")
    if tag:
        parse_name(base)
        return ValueError(
            f"{name!r} names weights by its tag {tag!r}; leave the tag out for the network: "
            f"{base!r}."
        )
    for pattern, reason in _FOREIGN.items():
        if re.fullmatch(pattern, name):
            return ValueError(f"{name!r} is not implemented: {reason}.")
    hint = did_you_mean(name, _LISTED, "see resnext_jax.models.list_models().", cutoff=0.3)
    return ValueError(f"unknown model {name!r}; {hint}")


class NetworkOptions(TypedDict, total=False):
    """Options of a network in addition to its name; `create_model` documents each."""

    num_classes: int
    form: Form
    dtype: jax.typing.DTypeLike
    param_dtype: jax.typing.DTypeLike
    residual: bool
    preactivation: bool | None
    bn_group_size: int | None
    bn_axis_name: str | None
    stem_width: int | None
    template_width: int | None
    in_channels: int | None
    block: BlockForms | None
    conv_implementation: Implementation
    scan_blocks: bool
    remat: bool


def network_spec(name: str, **options: Unpack[NetworkOptions]) -> NetworkSpec:
    """Return the specification of the network that `create_model` builds from these arguments.

    Raises:
      ValueError: as `create_model` does.
      TypeError: there is no such option.
    """
    given: dict[str, Any] = dict(options)
    unknown = given.keys() - NetworkOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"a network has no option {min(unknown)!r}.")
    for what in ("num_classes", "stem_width", "template_width", "in_channels"):
        if given.get(what) is not None and given[what] < 1:
            raise ValueError(f"{what} must be at least 1, got {given[what]}.")

    def those_of(part: type) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(part)}
        return {what: value for what, value in given.items() if what in names}

    named = parse_name(name)
    changes = {what: value for what, value in those_of(Architecture).items() if value is not None}
    architecture = dataclasses.replace(named, **changes)
    layers, execution = LayerOptions(**those_of(LayerOptions)), Execution(**those_of(Execution))
    spec = NetworkSpec(architecture, options=layers, execution=execution, **those_of(NetworkSpec))
    if spec.form not in FORMS:
        raise ValueError(f"unknown block form {spec.form!r}; choose one of {', '.join(FORMS)}.")
    if named.preactivation and not architecture.preactivation:
        raise ValueError(f"{name!r} is a pre-activation network; it has no other variant.")
    if architecture.preactivation and spec.form != "c":
        raise ValueError(
            f"form {spec.form!r} does not exist for the pre-activation network {name!r}: "
            "use form 'c'."
        )
    if architecture.preactivation and (
        architecture.deep or architecture.block not in (BOTTLENECK, BASIC)
    ):
        raise ValueError(
            f"{name!r} has no pre-activation variant: only plain bottleneck and basic blocks do."
        )
    if architecture.deep and architecture.stem_width < 2:
        raise ValueError("stem_width must be at least 2 for ResNet-D, half of it for two layers.")
    architecture.block.of(spec.form)  # raises if the form does not exist
    return spec


def create_model(
    name: str, *, rngs: nnx.Rngs, **options: Unpack[NetworkOptions]
) -> ResNeXt | PreActResNeXt:
    """Build a network by name, initialised as the authors did.

    `model.train()` and `model.eval()` switch batch normalisation; a new model
    is in training mode. `model(images)` maps `[N, H, W, in_channels]` normalised
    images to `[N, num_classes]` logits.

    Args:
      name: see `list_models`.
      rngs: `nnx.Rngs`, whose `params` stream draws the weights.
      **options: any of the following.

    Options:
      num_classes: width of the classifier, 1000 by default.
      form: block form of Figure 3, "c" by default. Forms a and b are the conversion
        of form c with the same `rngs`: the same function from the start.
      dtype: compute dtype of convolutions and activations; float32 by default.
      param_dtype: dtype of the stored parameters; float32 by default.
      residual: False leaves the shortcuts out (ablation, Sec. 5.1).
      preactivation: batch norm and ReLU before each convolution, as in an older
        preprint on CIFAR; None: decided by the name (only `resnet200` and
        `wide_resnet28_10` are pre-activation networks).
      bn_group_size: images that share batch-norm statistics, None for all
        (see `ops.BatchNorm`).
      bn_axis_name: mesh axis of the devices that share one batch-norm group;
        only valid inside `shard_map`.
      stem_width: output channels of the stem; None: decided by the name, the paper's
        64 for most networks.
      template_width: output channels of the first stage's blocks; None:
        decided by the name, the paper's 256 for most networks. The bottleneck widths,
        C * d * 2**stage, do not depend on it.
      in_channels: channels of the images; None: 3. Use 1 for greyscale images.
      block: kind of block, your own or one of `models.blocks`; None: decided by the
        name (docs/extending.md).
      conv_implementation: lowering of every convolution, see `ops.grouped_conv`.
      scan_blocks: compile the identical blocks of a stage once, with `lax.scan`: the
        same function and the same array names. The deepest networks compile faster,
        ResNeXt-152 in two thirds of the time.
      remat: keep only each block's input for the backward pass, and recompute the
        block: less memory for a third more computation.

    Raises:
      ValueError: unknown name or form, or an impossible size.
    """
    spec = network_spec(name, **options)
    if spec.architecture.preactivation:
        return PreActResNeXt(spec, rngs=rngs)
    if spec.form == "c":
        return ResNeXt(spec, rngs=rngs)
    return convert_form(ResNeXt(dataclasses.replace(spec, form="c"), rngs=rngs), spec.form)
