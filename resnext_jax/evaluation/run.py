"""Evaluation of runs and of weights from elsewhere: the test set, as a config says."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config.checks import validate
from resnext_jax.config.fields import config_facts, field_names
from resnext_jax.data.sources import Source, open_split
from resnext_jax.errors import ConfigError
from resnext_jax.evaluation.crops import CropEvaluation
from resnext_jax.evaluation.dense import DenseEvaluation
from resnext_jax.evaluation.evaluator import Ensemble, each_network
from resnext_jax.evaluation.images import EvalResult
from resnext_jax.evaluation.protocol import Protocol
from resnext_jax.interop.pretrained import Wants
from resnext_jax.models.variables import Arrays, Network
from resnext_jax.parallel.distributed import check_hosts_agree, is_first_host
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs.images import NO_FLAGS, ImageFlags, set_images
from resnext_jax.runs.weights import (
    FileWeights,
    LoadedWeights,
    WeightsSource,
    WorkdirWeights,
    foreign_images,
)
from resnext_jax.runs.workdir import check_same_run

# What of a run's data an ensemble's members share: they see the same pixels.
_SHARED = frozenset({"data.name", "data.mean", "data.std"})


class Evaluation:
    """A test set, ready to score weights again and again, as `config.data.eval_crops` says."""

    def __init__(
        self, config: ConfigDict, source: Source, graphdef: nnx.GraphDef | None, mesh: Mesh
    ):
        """Prepare the steps (they compile when first run).

        Args:
          config: of the data and the protocol.
          source: the test set.
          graphdef: of the network that `run` scores; None where only `score` is called, whose
            networks have their own.
          mesh: of the devices.

        Raises:
          UserError: the config does not fit the data, or the data cannot be read.
        """
        first_classes = config.data.eval_first_classes
        if first_classes is not None and first_classes > source.num_classes:
            raise ConfigError(
                f"config.data.eval_first_classes={first_classes} is more than the "
                f"{source.num_classes} classes of {source.name!r}; lower it, or set it to None."
            )
        self._graphdef = graphdef
        protocol = DenseEvaluation if config.data.eval_crops == "dense" else CropEvaluation
        self._evaluation = protocol(config, source, mesh)

    def run(
        self,
        params: Arrays,
        batch_stats: Arrays,
        between_batches: Callable[[], None] = lambda: None,
    ) -> EvalResult:
        """Score every test image once; what `between_batches` raises ends that."""
        assert self._graphdef is not None, "only `score` can do without a graph definition"
        network = Network(self._graphdef, params, batch_stats)
        (result,) = self.score([network], between_batches=between_batches)
        return result

    def score(
        self,
        networks: Sequence[Network],
        ensembles: Sequence[Ensemble] | None = None,
        *,
        between_batches: Callable[[], None] = lambda: None,
    ) -> list[EvalResult]:
        """Score every test image once, by several networks; images are decoded once for all.

        Args:
          networks: of as many classes as the data has.
          ensembles: of each result, which networks: one, or several whose probabilities are
            averaged (see `metrics.ensemble`; a network's own logits are averaged over crops,
            positions and scales before that). None: each network separately.
          between_batches: called before each batch; what it raises ends the scoring.

        Returns:
          A result for each ensemble.
        """
        return self._evaluation.score(
            networks,
            each_network(networks) if ensembles is None else ensembles,
            between_batches=between_batches,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A result, and whose it is.

    Attributes:
      members: one, or those of an ensemble.
      result: of the test set.
    """

    members: tuple[LoadedWeights, ...]
    result: EvalResult


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationReport:
    """What an evaluation found.

    Attributes:
      source: the test set.
      protocol: how it was scored.
      rows: the results: of each member, and then of the ensemble of all, where there
        are several workdirs or files.
    """

    source: Source
    protocol: Protocol
    rows: tuple[Scored, ...]


def evaluate_all(
    config: ConfigDict,
    workdirs: Sequence[str | os.PathLike[str]] = (),
    files: Sequence[str | os.PathLike[str]] = (),
    *,
    checkpoint: str = "latest",
    ema: bool = False,
    any_class_names: bool = False,
    images: ImageFlags = NO_FLAGS,
) -> EvaluationReport:
    """Score checkpoints of workdirs and files of PyTorch's weights, and their ensemble.

    In an ensemble a workdir takes part with its averaged weights, if it has some.

    Args:
      config: of data and protocol. A single workdir's run must have been started with it; of
        several, each network is what its workdir says, and likewise each file's.
      workdirs: of runs.
      files: `.safetensors` or `.pth`, or names of published weights. Where there are no workdirs,
        images are made as the published weights want them.
      checkpoint: of the workdirs: "latest", "best" (that of `best.json`), or a step.
      ema: of the files, the average that a training saved beside the weights.
      any_class_names: score by label where the weights' classes have other names than the data's.
      images: how test images are made, whatever config and weights say.

    Raises:
      UserError: config, data, workdirs, checkpoints or files are unusable.
    """
    validate(config)
    # No training batch is split here, so that any number of devices will do.
    mesh = make_mesh(batch_size=jax.device_count(), bn_group_size=1)
    weights_sources: list[WeightsSource] = []
    with contextlib.ExitStack() as closing:
        several = len(workdirs) + len(files) > 1
        for workdir in workdirs:
            weights = WorkdirWeights(workdir, checkpoint, closing, None if several else config)
            sections = ("data",) if several else ("model", "data")
            ignored = frozenset(field_names(config)) - _SHARED if several else frozenset[str]()
            check_same_run(config, weights.folder, sections, ignored=ignored)
            weights_sources.append(weights)
        from_files = [FileWeights(config, path, ema=ema) for path in files]
        weights_sources += from_files
        if not workdirs and all(found.is_foreign for found in from_files):
            config = foreign_images(config)
        config = _with_images(config, () if workdirs else from_files, images)
        source = open_split(config, "test")
        check_hosts_agree(lambda: config_facts(config) | source.facts())
        for found in weights_sources:
            found.check_data(source, any_class_names=any_class_names)
        loaded = [found.load(source.num_classes, mesh) for found in weights_sources]
    members = [member for group in loaded for member in group]
    check_hosts_agree(lambda: {f"weights {n}": one.hash() for n, one in enumerate(members, 1)})
    networks = [member.network for member in members]
    ensembles = each_network(networks)
    if several:
        # The last of each group: averaged weights follow the raw ones.
        ensembles.append(tuple(members.index(group[-1]) for group in loaded))
    results = Evaluation(config, source, None, mesh).score(networks, ensembles)
    scored = [
        Scored(tuple(members[index] for index in ensemble), result)
        for ensemble, result in zip(ensembles, results, strict=True)
    ]
    return EvaluationReport(source, Protocol.of(config), tuple(scored))


def _with_images(
    config: ConfigDict, weights: Sequence[FileWeights], flags: ImageFlags
) -> ConfigDict:
    """Return a config whose test images are as published weights and flags say.

    Raises:
      ConfigError: the weights want different images, and no flags decide.
    """
    named = [(found.origin, found.wants) for found in weights if found.wants is not None]
    wanted: list[Wants | None] = [wants for _, wants in named]
    made = []
    for wants in wanted or [None]:
        one = config.copy_and_resolve_references()
        if wants is not None or flags != NO_FLAGS:
            set_images(one, wants, flags)
        made.append(one)
    for (name, wants), one in zip(named, made, strict=False):
        if is_first_host():
            print(f"note: {name} wants {wants}", file=sys.stderr)
        if one != made[0]:
            raise ConfigError(
                f"{named[0][0]} and {name} want different images, and all networks are scored on "
                "the same; score them separately, or set --image_size, --short_side, "
                "--interpolation, --mean and --std."
            )
    return made[0]


def evaluate_workdir(
    config: ConfigDict, workdir: str | os.PathLike[str], checkpoint: str = "latest"
) -> tuple[int, dict[str, EvalResult]]:
    """Score a checkpoint of a workdir.

    Args:
      config: of the run.
      workdir: its folder.
      checkpoint: "latest", "best" (that of `best.json`), or a step.

    Returns:
      The checkpoint's step, and the result by weights: "raw", and "ema" where
      the run averaged them.

    Raises:
      UserError: config, data, workdir or checkpoint are unusable.
    """
    rows = evaluate_all(config, [workdir], checkpoint=checkpoint).rows
    scored = [(member, row.result) for row in rows for member in row.members]
    step = scored[0][0].step
    assert step is not None
    return step, {member.weights: result for member, result in scored}
