"""Export networks with their weights: StableHLO, an Orbax checkpoint, or a repository for the hub.

    python -m resnext_jax.export --workdir=runs/flowers --out=flowers.stablehlo --batch=any
    python -m resnext_jax.export --weights=resnext50_32x4d.pth --out=resnext50.stablehlo --batch=8
    python -m resnext_jax.export --workdir=runs/flowers --out=flowers --format=orbax
    python -m resnext_jax.export --workdir=runs/flowers --out=flowers --format=hub

StableHLO is for programs without this package. The file is one serialized by `jax.export`: a
function from images to logits that runs with JAX alone:

    exported = jax.export.deserialize(open("flowers.stablehlo", "rb").read())
    logits = exported.call(images)
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax import export as jax_export

from resnext_jax.config import build
from resnext_jax.data.augment import DeviceTransform
from resnext_jax.errors import (
    CommandParser,
    UserError,
    one_line,
    positive_int,
    reports_user_errors,
)
from resnext_jax.evaluation.outputs import check_writable, write_output
from resnext_jax.files import path_argument, user_path
from resnext_jax.interop.state_dicts import spec_of
from resnext_jax.models.equivalence import convert_arrays
from resnext_jax.models.layers import Conv
from resnext_jax.models.variables import merge, split
from resnext_jax.ops.target import compiling_for
from resnext_jax.runs.hub import export_hub
from resnext_jax.runs.weights import LoadedNetwork, load_network

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# Number of images that an export of any batch size is checked with.
_CHECKED = 3


def export(
    model: nnx.Module,
    *,
    image_size: int,
    batch_size: int | None = None,
    preprocess: Callable[[dict[str, jax.Array]], jax.Array] | None = None,
    platforms: Sequence[str] | None = None,
) -> jax_export.Exported:
    """Export a network as a function from images to logits that does not need its Python code.

    On each platform, convolutions use that platform's "portable" lowering. An export for several
    platforms contains the network's operations once per platform, and its weights once.

    Args:
      model: returned by `create_model`; exported in evaluation mode, and not modified.
      image_size: S, side of the images in pixels.
      batch_size: N; None exports a function of any batch size.
      preprocess: maps `{"image": uint8 [N, S, S, 3]}` to normalised images, as
        `DeviceTransform.test` does; the exported function then takes uint8 RGB pixels. None: it
        takes normalised float32 images.
      platforms: target platforms, of `PLATFORMS`; None: the current one.

    Returns:
      The exported function, from images `[N, S, S, 3]` (or with the network's `in_channels`) to
      logits `[N, K]`.

    Raises:
      ValueError: an unknown platform.
    """
    unknown = [name for name in platforms or () if name not in PLATFORMS]
    if unknown:
        raise ValueError(f"unknown platform {unknown[0]!r}; choose of {', '.join(PLATFORMS)}.")
    graphdef, params, batch_stats = split(model)

    def logits(platform: str, images: jax.Array) -> jax.Array:
        network = merge(graphdef, params, batch_stats)
        network.eval()
        for _, layer in nnx.iter_graph(network):
            if isinstance(layer, Conv):
                layer.implementation = "portable"
        with compiling_for(platform):
            found: jax.Array = network(preprocess({"image": images}) if preprocess else images)
        return found

    platforms = platforms or [jax_export.default_export_platform()]

    def chosen(images: jax.Array) -> jax.Array:
        if len(platforms) == 1:
            return logits(platforms[0], images)
        each = {name: functools.partial(logits, name) for name in platforms}
        found: jax.Array = jax.lax.platform_dependent(images, **each)
        return found

    count = "n" if batch_size is None else str(batch_size)
    channels = spec_of(model).architecture.in_channels
    shape = jax_export.symbolic_shape(f"{count}, {image_size}, {image_size}, {channels}")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8 if preprocess else jnp.float32)
    return jax_export.export(jax.jit(chosen), platforms=platforms)(images)


def read_export(path: str | os.PathLike[str]) -> jax_export.Exported:
    """Read a file written by this command or by `Exported.serialize`.

    Raises:
      UserError: the file cannot be read, or is not an export.
    """
    try:
        data = user_path(path, "the export").read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path.") from error
    try:
        return jax_export.deserialize(bytearray(data))
    except Exception as error:  # damaged bytes make the reader raise anything
        raise UserError(
            f"{path} is damaged or was not written by jax.export ({one_line(error)}); export it "
            "again."
        ) from error


@dataclasses.dataclass(frozen=True)
class Check:
    """The difference between an export, read back from its file, and its network.

    Attributes:
      images: number of random images that were compared.
      difference: largest absolute difference of the logits.
      largest: largest absolute logit.
    """

    images: int
    difference: float
    largest: float


def check(exported: jax_export.Exported, model: nnx.Module, transform: DeviceTransform) -> Check:
    """Compare an export that takes uint8 pixels with its network, on random images.

    Raises:
      UserError: they differ by more than rounding.
    """
    (images,) = exported.in_avals
    count = images.shape[0] if isinstance(images.shape[0], int) else _CHECKED
    pixels = np.random.default_rng(0).integers(0, 256, (count, *images.shape[1:]), np.uint8)
    graphdef, params, batch_stats = split(model)

    @jax.jit
    def logits(images: jax.Array) -> jax.Array:
        network = merge(graphdef, params, batch_stats)
        network.eval()
        found: jax.Array = network(transform.test({"image": images}))
        return found

    expected, actual = (np.asarray(run(pixels)) for run in (logits, exported.call))
    found = Check(count, float(np.max(abs(actual - expected))), float(np.max(abs(expected))))
    # The two programs use different lowerings, which sum in different orders.
    if not found.difference <= 1e-3 * max(found.largest, 1.0):
        raise UserError(
            f"the export's logits differ from the network's by {found.difference:.3g} of "
            f"{found.largest:.3g}; check that its weights are finite."
        )
    return found


def export_orbax(found: LoadedNetwork, folder: Path) -> None:
    """Write weights as a checkpoint that `orbax.checkpoint` reads without this package.

    `params` and `batch_stats` are dictionaries of arrays keyed by the dotted names of form c,
    whatever the network's form (a run's own checkpoints pack the arrays). The checkpoint's custom
    metadata are the arguments of `create_model` except `rngs`.

    Args:
      found: the weights.
      folder: the folder to create.

    Raises:
      UserError: the folder exists already, or cannot be written.
    """
    spec, network = found.member.spec, found.member.network
    cardinality = spec.architecture.cardinality
    tree = {
        name: convert_arrays(arrays, cardinality, spec.form, "c")
        for name, arrays in (("params", network.params), ("batch_stats", network.batch_stats))
    }
    model, chosen = found.config.model, ("stem_width", "template_width", "preactivation")
    arguments = {"name": model.name, "num_classes": spec.num_classes}
    arguments |= {name: model[name] for name in chosen if model[name] is not None}
    arguments |= {} if model.residual else {"residual": False}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            args = ocp.args.PyTreeSave(jax.device_get(tree), custom_metadata=arguments)
            checkpointer.save(folder.absolute(), args=args)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} cannot be written ({one_line(error)}); name another folder with "
                "--out=FOLDER."
            ) from error


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the export command."""
    options = _parse(argv)
    check_writable(options.out, "--out")
    found = load_network(
        workdir=options.workdir,
        file=options.weights,
        checkpoint=options.checkpoint,
        ema=options.ema,
    )
    if options.format == "orbax":
        export_orbax(found, options.out)
        print(f"network: {found.member.origin}, {found.member.short_name}")
        print(f"folder: {options.out}, arrays with the names of form c, for orbax.checkpoint")
        return
    if options.format == "hub":
        export_hub(found, options.out)
        print(f"network: {found.member.origin}, {found.member.short_name}")
        print(f"folder: {options.out}, with config.json, model.safetensors and README.md, for timm")
        return
    network = found.member.network
    model = merge(network.graphdef, network.params, network.batch_stats)
    transform = build.device_transform(found.config)
    exported = export(
        model,
        image_size=options.image_size or build.eval_transform(found.config).image_size,
        batch_size=options.batch,
        preprocess=transform.test,
        platforms=options.platforms,
    )
    write_output(options.out, bytes(exported.serialize()), "--out")
    (images,), (logits,) = exported.in_avals, exported.out_avals
    print(f"network: {found.member.origin}, {found.member.short_name}")
    mean, std = (", ".join(map(str, numbers)) for numbers in (transform.mean, transform.std))
    print(f"takes: {images.str_short()}, pixels in RGB (inside: less {mean}, then by {std})")
    print(f"gives: {logits.str_short()}, logits")
    if found.wants is not None:
        print(f"wants: {found.wants}")
    print(f"runs on: {', '.join(exported.platforms)}")
    print(f"file: {options.out}, {options.out.stat().st_size:,} bytes")
    here = jax_export.default_export_platform()
    if here not in exported.platforms:
        print(f"not checked: this machine has {here}")
        return
    checked = check(read_export(options.out), model, transform)
    print(
        f"checked: read again, its logits of {checked.images} random images differ from the "
        f"network's by at most {checked.difference:.2g} (the largest is {checked.largest:.3g})"
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m resnext_jax.export",
        description="Export a network with its weights, for programs without this package.",
        allow_abbrev=False,
    )
    parser.add_network()
    parser.add_argument(
        "--out", required=True, metavar="FILE", type=path_argument, help="file or folder to write"
    )
    parser.add_argument(
        "--format",
        choices=("stablehlo", "orbax", "hub"),
        default="stablehlo",
        help="stablehlo, a program with weights (default); orbax, a folder of weights only; or "
        "hub, a repository that timm reads",
    )
    parser.add_argument(
        "--batch", type=_batch, default=None, metavar="N", help="batch size, or any (default)"
    )
    parser.add_argument(
        "--image_size",
        type=positive_int,
        metavar="S",
        help="side of the images, in pixels (default: that of the test images)",
    )
    parser.add_argument(
        "--platforms",
        type=_platforms,
        metavar="NAMES",
        help=f"of {', '.join(PLATFORMS)}, separated by commas (default: this machine's)",
    )
    return parser.parse_args(argv)


def _batch(text: str) -> int | None:
    return None if text == "any" else positive_int(text)


def _platforms(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PLATFORMS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(PLATFORMS)}")
    return names
