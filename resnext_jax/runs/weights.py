"""Weights to be scored: checkpoints of workdirs, PyTorch files, and published weights by name."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.checks import validate
from resnext_jax.config.fields import base_config
from resnext_jax.data.sources import Source
from resnext_jax.errors import CheckpointError, ConfigError, DataError, WorkdirError
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import read_class_names, read_state_dict
from resnext_jax.interop.files import source as file_source
from resnext_jax.interop.identify import identify
from resnext_jax.interop.pretrained import Wants, find, is_name
from resnext_jax.interop.state_dicts import weights_from_torch
from resnext_jax.models.equivalence import convert_arrays
from resnext_jax.models.registry import network_spec
from resnext_jax.models.resnext import NetworkSpec
from resnext_jax.models.variables import Arrays, Network, digest, merge
from resnext_jax.parallel.distributed import is_first_host
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs import packing
from resnext_jax.runs.best import wanted_step
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.runs.images import NO_FLAGS, set_images
from resnext_jax.runs.workdir import (
    CONFIG_FILE,
    DATA_SET_FILE,
    existing_workdir,
    stored_class_names,
    stored_config,
)


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedWeights:
    """Weights that are scored, alone or in an ensemble.

    Attributes:
      origin: workdir or file, as it was given.
      model: name of the network.
      step: of the checkpoint; None for a file.
      weights: "ema" for an average of weights, otherwise "raw".
      spec: of the network.
      network: what computes.
      labels: of the classes that the network's outputs are, those that it was trained with; None:
        in their own order.
    """

    origin: str
    model: str
    step: int | None
    weights: str
    spec: NetworkSpec
    network: Network
    labels: tuple[int, ...] | None = None

    @property
    def short_name(self) -> str:
        """What it is called where the origin is known."""
        average = ", averaged" if self.weights == "ema" else ""
        return f"{self.model if self.step is None else f'step {self.step}'}{average}"

    def hash(self) -> str:
        """Return the SHA-256 of the weights.

        Of all parameters and running statistics by name, with dtypes and shapes, in block form c:
        the same for a checkpoint, the files that were exported from it, every block form, and every
        order of the classes.
        """
        spec, params = self.spec, self.network.params
        if self.labels is not None:
            params = _with_labels(params, np.argsort(self.labels).tolist())
        trees = (params, self.network.batch_stats)
        return digest(
            *(convert_arrays(tree, spec.architecture.cardinality, spec.form, "c") for tree in trees)
        )


class WeightsSource(Protocol):
    """Where members come from: found and checked, and not yet loaded.

    Attributes:
      origin: workdir or file, as it was given.
      config: of its network.
    """

    origin: str
    config: ConfigDict

    def check_data(self, source: Source, *, any_class_names: bool = False) -> None:
        """Check that its classes are those of a data set, in whatever order.

        Args:
          source: whose order `load` gives to the network's outputs.
          any_class_names: take other names as well, by label.

        Raises:
          UserError: they are others.
        """

    def load(self, num_classes: int, mesh: Mesh) -> list[LoadedWeights]:
        """Put the weights on all devices: the raw ones, and their average where there is one.

        Raises:
          UserError: they cannot be read, or do not fit.
        """


class WorkdirWeights:
    """A checkpoint of a run."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        checkpoint: str,
        closing: contextlib.ExitStack,
        config: ConfigDict | None = None,
    ):
        """Find the checkpoint.

        Args:
          workdir: of the run.
          checkpoint: "latest", "best" (that of `best.json`), or a step.
          closing: closes what is opened.
          config: of its network; None: what `config.json` says.

        Raises:
          UserError: there is no such workdir or checkpoint.
        """
        self.origin = str(workdir)
        self.folder = existing_workdir(workdir)
        self._checkpoints = closing.enter_context(
            contextlib.closing(Checkpoints(self.folder, read_only=True))
        )
        self._labels: tuple[int, ...] | None = None
        self.step = self._checkpoints.require_step(wanted_step(checkpoint, self.folder))
        self.config = classifier_config(self.folder) if config is None else config

    def check_data(self, source: Source, *, any_class_names: bool = False) -> None:
        """See `WeightsSource`; passes where the workdir has no data_set.json."""
        if (self.folder / DATA_SET_FILE).exists():
            self._labels = _labels_of(
                source,
                stored_class_names(self.folder),
                f"the run in {self.folder}",
                any_class_names=any_class_names,
            )

    def load(self, num_classes: int, mesh: Mesh) -> list[LoadedWeights]:
        """See `WeightsSource`."""
        graphdef, *shapes = build.abstract_weights(self.config, num_classes, mesh)
        spec: NetworkSpec = merge(graphdef, *shapes).spec
        members = []
        for weights in ("raw", "ema"):
            average = weights == "ema"
            if average and not self._checkpoints.has_ema(self.step):
                continue
            arrays = self._checkpoints.restore_weights(*shapes, step=self.step, ema=average)
            network = _network(graphdef, *arrays, self._labels)
            name = str(self.config.model.name)
            members.append(
                LoadedWeights(self.origin, name, self.step, weights, spec, network, self._labels)
            )
        return members


class FileWeights:
    """PyTorch's weights: a file, or published weights by name.

    A file's network is identified from names and shapes.

    Attributes:
      wants: of published weights; None of a file.
      num_classes: of the network.
      class_names: theirs, in label order; None where the file has none.
    """

    def __init__(self, config: ConfigDict, path: str | os.PathLike[str], *, ema: bool = False):
        """Read the file, and find its network.

        Args:
          config: its block form and dtypes count, its network does not.
          path: `.safetensors` or `.pth`; or a name, see `interop.pretrained`.
          ema: the average that a training saved beside the weights.

        Raises:
          WeightsError: it cannot be read, no network fits, or it has not the config's form.
        """
        self.origin, self._source = str(path), file_source(path)
        self._weights = "ema" if ema else "raw"
        self.wants: Wants | None = None
        if is_name(str(path)):
            published = find(str(path))
            path, self.origin, self._source = published.file, published.name, published.source
            self.wants = published.wants
            if not self.wants.num_classes:
                raise WeightsError(f"{self._source} have no classifier; choose other weights.")
        self._state_dict = read_state_dict(path, ema=ema)
        self.config = config.copy_and_resolve_references()
        model = self.config.model
        identity = identify(self._state_dict, self._source)
        if identity.in_channels is not None:
            raise WeightsError(
                f"{self._source} is of a network with in_channels={identity.in_channels}; images "
                "are read in RGB here, so give weights for 3 channels."
            )
        try:
            network_spec(identity.name, form=model.form)
        except ValueError as error:
            raise WeightsError(f"{self._source} is of {identity.name}: {error}") from error
        model.name, model.residual, model.preactivation = identity.name, identity.residual, None
        model.stem_width, model.template_width = identity.stem_width, identity.template_width
        self.num_classes = identity.num_classes
        self._labels: tuple[int, ...] | None = None
        names = read_class_names(path) or (self.wants and self.wants.class_names)
        # Of a file whose classifier was changed they are another's.
        self.class_names = names if names and len(names) == self.num_classes else None

    @property
    def is_foreign(self) -> bool:
        """Whether it is from elsewhere: what is exported from a run here has names of classes."""
        return self.wants is not None or self.class_names is None

    def check_data(self, source: Source, *, any_class_names: bool = False) -> None:
        """See `WeightsSource`."""
        if self.num_classes != source.num_classes:
            raise WeightsError(
                f"{self._source} is for {self.num_classes} classes, but data set {source.name!r} "
                f"has {source.num_classes}; give weights that were trained on its classes."
            )
        if self.class_names is not None:
            self._labels = _labels_of(
                source, self.class_names, self._source, any_class_names=any_class_names
            )

    def load(self, num_classes: int, mesh: Mesh) -> list[LoadedWeights]:
        """See `WeightsSource`."""
        graphdef, *shapes = build.abstract_weights(self.config, num_classes, mesh)
        spec: NetworkSpec = merge(graphdef, *shapes).spec
        arrays = weights_from_torch(self._state_dict, spec, source=self._source)
        placed = [
            packing.place(jax.device_get(tree), like)
            for tree, like in zip(arrays, shapes, strict=True)
        ]
        network = _network(graphdef, placed[0], placed[1], self._labels)
        name = str(self.config.model.name)
        return [LoadedWeights(self.origin, name, None, self._weights, spec, network, self._labels)]


def _labels_of(
    source: Source, names: Sequence[str], origin: str, *, any_class_names: bool
) -> tuple[int, ...] | None:
    """Return the labels that weights have for a data set's classes; None where they are the same.

    Args:
      source: the data set.
      names: of the weights' classes, in label order.
      origin: what a sentence calls the weights.
      any_class_names: see `WeightsSource.check_data`.

    Raises:
      DataError: they are other classes.
    """
    wanted = source.class_names
    labels = {name: label for label, name in enumerate(names)}
    # A name that two classes have maps nothing.
    if tuple(names) == wanted or (len(labels) < len(names) and sorted(names) == sorted(wanted)):
        return None
    if labels.keys() == set(wanted) and len(names) == len(wanted):
        if is_first_host():
            print(
                f"note: {origin} has the classes of data set {source.name!r} in another order; "
                "they are mapped by their names",
                file=sys.stderr,
            )
        return tuple(labels[name] for name in wanted)
    others = [name for name in names if name not in wanted]
    reason = f"{others[0]!r} is not among them" if others else f"it has {len(names)}"
    if len(names) != len(wanted):
        remedy = "use the run's data"
    elif any_class_names:
        return None
    else:
        remedy = "use the run's data, or compare labels by number, with --any_class_names"
    raise DataError(
        f"{origin} was trained on other classes than the {len(wanted)} that data set "
        f"{source.name!r} has now ({reason}); {remedy}."
    )


def _network(
    graphdef: nnx.GraphDef, params: Arrays, batch_stats: Arrays, labels: tuple[int, ...] | None
) -> Network:
    """Make a network whose outputs are in the order of `labels`."""
    if labels is not None:
        params = _with_labels(params, labels)
    return Network(graphdef, params, batch_stats)


def _with_labels(params: Arrays, labels: Sequence[int]) -> Arrays:
    """Put a classifier's outputs into another order."""
    order = np.array(labels)
    return {
        name: jax.jit(lambda array: array[..., order], out_shardings=array.sharding)(array)
        if name.startswith("fc.")
        else array
        for name, array in params.items()
    }


def foreign_images(config: ConfigDict) -> ConfigDict:
    """Return a config whose test images are made as torchvision's, where it leaves that open."""
    config = config.copy_and_resolve_references()
    config.data.eval_centre = config.data.eval_centre or "torchvision"
    return config


def classifier_config(workdir: Path) -> ConfigDict:
    """Read the config of a classifier's run; raises WorkdirError."""
    config = stored_config(workdir)
    try:
        validate(config)
    except ConfigError as error:
        raise WorkdirError(f"{workdir / CONFIG_FILE} cannot be used: {error}") from error
    return config


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """One network with its weights, on one device, and what its run says of images and classes.

    Attributes:
      member: the weights.
      config: of its network, and of how its images are made.
      class_names: of a workdir's data, or of a file that has some, in label order.
      wants: of published weights; None of a file or a run.
    """

    member: LoadedWeights
    config: ConfigDict
    class_names: tuple[str, ...] | None
    wants: Wants | None = None


def load_network(
    *,
    workdir: str | os.PathLike[str] | None = None,
    file: str | os.PathLike[str] | None = None,
    checkpoint: str = "latest",
    ema: bool = False,
) -> LoadedNetwork:
    """Load a run's weights or a file's.

    Args:
      workdir: of a run; or
      file: of PyTorch's weights. It does not say how images are preprocessed: as the paper's, in
        the network's usual size. Or the name of published weights, which say it.
      checkpoint: of the workdir, see `WorkdirWeights`.
      ema: the average of the weights.

    Raises:
      UserError: they cannot be read, or fit no network; or there is no average.
    """
    mesh = make_mesh(1, None, jax.local_devices()[:1])
    if workdir is None:
        assert file is not None
        found = FileWeights(base_config(), file, ema=ema)
        (member,) = found.load(found.num_classes, mesh)
        architecture = member.spec.architecture
        found.config.data.image_size = architecture.usual_image_size
        if architecture.stem == "cifar":
            found.config.data.crop = "whole"
        config = found.config
        if found.is_foreign:
            config = foreign_images(config)
            config.data.exif = "follow"  # images of anybody's, which other programs show upright
        if found.wants is not None:
            set_images(config, found.wants, NO_FLAGS)
        return LoadedNetwork(member, config, found.class_names, found.wants)
    with contextlib.ExitStack() as closing:
        run = WorkdirWeights(workdir, checkpoint, closing)
        names = stored_class_names(run.folder)
        members = {one.weights: one for one in run.load(len(names), mesh)}
    weights = "ema" if ema else "raw"
    if weights not in members:
        raise CheckpointError(
            f"step {run.step} of {run.folder} has no average of the weights (ema); leave --ema out."
        )
    return LoadedNetwork(members[weights], run.config, names)
