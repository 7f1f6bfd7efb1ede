"""Published weights by name, such as "timm/resnext50_32x4d.a1_in1k".

A name is a network's and, after a dot, the tag of a training. It names a repository of timm's on
the Hugging Face Hub, of which `config.json` and `model.safetensors` are read. torchvision's weights
are there as copies, with the tags `tv_in1k` and `tv2_in1k`.
"""

import csv
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, Unpack

from flax import nnx

from resnext_jax.interop import hub
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import read_state_dict
from resnext_jax.interop.state_dicts import Network, load_arrays
from resnext_jax.models import registry
from resnext_jax.models.layers import PooledFeatures
from resnext_jax.models.registry import NetworkOptions, network_spec, parse_name
from resnext_jax.models.variables import skeleton

_OWNER = "timm"
_NAME = re.compile(rf"(?:{_OWNER}/)?([a-z0-9_]*resne[a-z0-9_]+)(?:\.([a-z0-9_]+))?")
# Endings of files, which are no tags.
_SUFFIXES = {
    "pth",
    "pt",
    "bin",
    "ckpt",
    "safetensors",
    "npz",
    "npy",
    "h5",
    "onnx",
    "t7",
    "tar",
    "json",
}

# A row of published.csv, by its columns.
Row = dict[str, str]

_FILES = ("config.json", "model.safetensors")


@dataclasses.dataclass(frozen=True)
class Wants:
    """What published weights say of their network and of its images.

    Attributes:
      architecture: name of the network.
      num_classes: of its classifier; 0: they have none.
      image_size: side of the images, in pixels.
      crop_pct: that side, relative to the short side that an image is resized to before the crop.
      interpolation: of resizing, "bicubic" or "bilinear".
      mean, std: per channel, of pixels from 0 to 1.
      licence: as the publisher names it, "" where it does not.
      class_names: in label order; None where they are not given, as for ImageNet-1K.
    """

    architecture: str
    num_classes: int
    image_size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str = ""
    class_names: tuple[str, ...] | None = None

    @property
    def short_side(self) -> int:
        """Short side that an image is resized to before the crop, in pixels."""
        return math.floor(self.image_size / self.crop_pct)

    @property
    def is_non_commercial(self) -> bool:
        """Whether the licence forbids commercial use, as that of the WSL and SSL weights does."""
        return "-nc" in self.licence.lower()

    def __str__(self) -> str:
        """Return one line for people."""
        mean, std = (", ".join(f"{x:g}" for x in numbers) for numbers in (self.mean, self.std))
        licence = self.licence or "not given"
        return (
            f"images of {self.image_size}x{self.image_size} from a short side of "
            f"{self.short_side} ({self.interpolation}), mean {mean}, std {std}; "
            f"{self.num_classes:,} classes; licence {licence}"
            f"{': not for commercial use' if self.is_non_commercial else ''}"
        )


@dataclasses.dataclass(frozen=True)
class Published:
    """Published weights in the cache, checked.

    Attributes:
      name: in full, as in "timm/resnext50_32x4d.a1_in1k".
      file: the weights.
      wants: what `config.json` says.
    """

    name: str
    file: Path
    wants: Wants

    @property
    def source(self) -> str:
        """What errors call the weights."""
        return f"weights {self.name}"


def is_name(text: str) -> bool:
    """Whether a text names published weights, and not a file or a folder: those come first."""
    match = _NAME.fullmatch(text)
    if match is None or match[2] in _SUFFIXES or Path(text).exists():
        return False
    return match[2] is not None or text.startswith(f"{_OWNER}/")


def find(name: str) -> Published:
    """Return published weights, which are fetched where the cache does not have them.

    Args:
      name: with or without "timm/".

    Raises:
      WeightsError: it is no such name, its network is not built here, or the files cannot be had.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise WeightsError(
            f"{name!r} names no published weights; a name is one such as "
            "'timm/resnext50_32x4d.a1_in1k', and list_models(pretrained=True) lists them."
        )
    architecture, tag = match.groups()
    try:
        parse_name(architecture)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    if tag is None:
        tagged = [row["name"] for row in published() if row["name"].startswith(f"{architecture}.")]
        remedy = f"choose one of {', '.join(tagged)}" if tagged else "none are known"
        raise WeightsError(f"{name!r} names a network and no weights; {remedy}.")
    full = f"{_OWNER}/{architecture}.{tag}"
    config, weights = hub.fetch(full, _FILES)
    wants = read_wants(config, f"config.json of {full}")
    if wants.architecture != architecture:
        raise WeightsError(
            f"config.json of {full} is of {wants.architecture!r}, not of {architecture!r}; choose "
            "other weights."
        )
    return Published(full, weights, wants)


def read_wants(path: Path, source: str) -> Wants:
    """Read a `config.json` as timm writes it.

    Args:
      path: of the file.
      source: what errors call it.

    Raises:
      WeightsError: it cannot be read, or describes what is not built here.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        images: dict[str, Any] = config["pretrained_cfg"]
        channels, height, width = images["input_size"]
        names = config.get("label_names")
        wants = Wants(
            architecture=str(config["architecture"]),
            num_classes=int(config.get("num_classes", images.get("num_classes", 1000))),
            image_size=int(height),
            crop_pct=float(images["crop_pct"]),
            interpolation=str(images["interpolation"]),
            mean=tuple(map(float, images["mean"])),
            std=tuple(map(float, images["std"])),
            licence=str(images.get("license") or ""),
            class_names=tuple(map(str, names)) if isinstance(names, list) else None,
        )
        crop_mode, more = images.get("crop_mode", "center"), config.get("model_args")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{source} is not one that timm writes ({type(error).__name__}: {error}); choose "
            "other weights."
        ) from error
    unfit = None
    if more:
        unfit = f"model_args={more}"
    elif (channels, height) != (3, width):
        unfit = f"images of {channels}x{height}x{width}"
    elif crop_mode != "center":
        unfit = f"crop_mode={crop_mode!r}"
    elif wants.interpolation not in ("bicubic", "bilinear"):
        unfit = f"interpolation={wants.interpolation!r}"
    elif not 0 < wants.crop_pct <= 1:
        unfit = f"crop_pct={wants.crop_pct}"
    if unfit is not None:
        raise WeightsError(f"{source} asks for {unfit}, which is not built; choose other weights.")
    return wants


def create_model(
    name: str,
    *,
    rngs: nnx.Rngs | None = None,
    pretrained: bool = False,
    **options: Unpack[NetworkOptions],
) -> Network:
    """Build a network by name, freshly initialised or with published weights.

    Published weights replace the initialisation, which is then not computed. Where `num_classes`
    is not their number of classes, the classifier is new.

    Args:
      name: of a network (`models.create_model`); with `pretrained`, of weights, such as
        "timm/resnext50_32x4d.a1_in1k", with or without "timm/".
      rngs: `nnx.Rngs`, whose `params` stream draws the weights; None only where nothing is drawn.
      pretrained: load published weights, from the cache or the Hugging Face Hub.
      **options: of `models.create_model`. With `num_classes=0` there is no classifier:
        `model(images)` gives the pooled features `[N, C]`, float32.

    Returns:
      The network, in training mode.

    Raises:
      ValueError: unknown name or form, or an impossible size.
      TypeError: weights are drawn, and `rngs` is None.
      WeightsError: the weights cannot be had, or do not fit.
    """
    found = find(name) if pretrained else None
    if found is not None:
        options.setdefault("num_classes", found.wants.num_classes)
    classes = options.get("num_classes")
    headless = classes == 0
    if headless:
        options["num_classes"] = 1
    if found is None:
        if rngs is None:
            raise TypeError("rngs is missing: give nnx.Rngs(seed), which draws the weights.")
        model = registry.create_model(name, rngs=rngs, **options)
    else:
        wants = found.wants
        keeps = classes == wants.num_classes and not headless
        if rngs is None and not (keeps or headless):
            raise TypeError("rngs is missing: give nnx.Rngs(seed), which draws the classifier.")
        network_spec(wants.architecture, **options)  # raises here, not inside a trace
        model = skeleton(
            lambda each: registry.create_model(wants.architecture, rngs=each, **options)
        )
        state_dict = read_state_dict(found.file)
        load_arrays(model, state_dict, classifier=keeps, source=found.source)
        if not keeps and rngs is not None:
            model.fc = model.spec.options.classifier(
                model.fc.in_features, options["num_classes"], rngs=rngs
            )
    if headless:
        model.fc = PooledFeatures(model.fc.param_dtype)  # type: ignore[assignment]
    return model


def published() -> list[Row]:
    """Return the table of published weights whose networks are built (docs/weights.md)."""
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def list_models(*, pretrained: bool = False) -> list[str]:
    """Names for `create_model`: of networks, or of published weights."""
    return [row["name"] for row in published()] if pretrained else registry.list_models()
