"""Training a detector: its two stages, or both as one network (paper Sec. 5.4 and App. B).

The stages are those of Ren et al. 2015 and Girshick 2015. Both as one network is the approximate
joint training of Ren et al. 2017 (Sec. 3.2): the losses of both stages are added up, and the
proposals that the second learns from are those of the same step, taken as constants.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.checks import check_start
from resnext_jax.config.fields import config_facts
from resnext_jax.data.augment import Batch
from resnext_jax.data.pipeline import host_positions, to_devices
from resnext_jax.detection.anchors import make_anchors
from resnext_jax.detection.coco import CocoSplit, print_notes
from resnext_jax.detection.detector import Detector, propose_in_batch
from resnext_jax.detection.loading import Proposals, box_places, detection_batches, training_order
from resnext_jax.detection.losses import fast_rcnn_loss, rpn_loss
from resnext_jax.detection.models import STRIDE
from resnext_jax.detection.proposals import Proposer, StoredProposals
from resnext_jax.detection.pyramid import level_anchors
from resnext_jax.detection.setup import (
    anchor_spec,
    anchor_specs,
    build_fast_rcnn,
    build_faster_rcnn,
    build_rpn,
    check_categories,
    check_countable,
    image_spec,
    normalised,
    open_split,
    region_target_spec,
    rpn_target_spec,
    split_files,
    training_notes,
)
from resnext_jax.detection.targets import (
    BACKGROUND,
    POSITIVE,
    RegionTargets,
    RpnTargets,
    region_targets,
    rpn_targets,
)
from resnext_jax.detection.testing import (
    LOGGED,
    RECALL_AT,
    find_objects,
    logged_metrics,
    score_proposals,
)
from resnext_jax.detection.validation import validate_detector
from resnext_jax.errors import DataError
from resnext_jax.models.variables import Arrays, merge
from resnext_jax.optim.freezing import is_backbone
from resnext_jax.optim.optimizers import is_bias
from resnext_jax.parallel.distributed import check_hosts_agree, is_first_host
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from resnext_jax.runs.best import Measure
from resnext_jax.training import loop, setup
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import Loss, Metrics, make_step
from resnext_jax.training.task import Task

# The loss of each image `[N]`, and what is logged beside it, `[N]` each.
Losses = tuple[jax.Array, Metrics]
# From the network in the mode it is trained in, normalised images `[N, H, W, 3]`, and the batch of
# `loading.detection_batches`.
ImageLosses = Callable[[Any, jax.Array, Batch], Losses]
# See `training.task.Task`.
Test = Callable[[Arrays, Arrays, Callable[[], None]], dict[str, float]]

_AP = Measure("AP", "AP (%)", highest=True)
_LOGGED = {name: name for name in LOGGED}


@dataclasses.dataclass(frozen=True)
class DataVersion:
    """Which data a run is trained on; a `runs.workdir.DataSet`."""

    name: str
    version: str
    class_names: tuple[str, ...]
    former_versions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Splits:
    """A detector's data.

    Attributes:
      train, test: the images and their objects.
      num_images: of the training images, those that are trained on.
    """

    train: CocoSplit
    test: CocoSplit
    num_images: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """What differs between the stages of a detector.

    Attributes:
      title: the network, in a few words.
      network: makes it, initialised from the config's seed.
      image_losses: see `ImageLosses`.
      make_test: from the network's structure and the mesh, makes `Task.test`.
      measure: what the best checkpoint is best in.
      labels: of the numbers that are said at the end, by name.
      proposals: of the training images, if they come with the batches.
      max_proposals: how many of an image.
      data_details: what else the data is, beside images and boxes.
    """

    title: str
    network: Callable[[], nnx.Module]
    image_losses: ImageLosses
    make_test: Callable[[Any, Mesh], Test]
    measure: Measure = _AP
    labels: Mapping[str, str] = dataclasses.field(default_factory=lambda: _LOGGED)
    proposals: Proposals | None = None
    max_proposals: int = 0
    data_details: str = ""


def train(
    config: ConfigDict, workdir: str | os.PathLike[str], *, process_ends: bool = False
) -> TrainState:
    """Train a detector or a stage of one, resuming where `workdir` has a checkpoint.

    Args:
      config: from `configs/`.
      workdir: folder for config, metrics, checkpoints, TensorBoard and plots.
      process_ends: see `training.loop.run`.

    Returns:
      The final state.

    Raises:
      UserError: config, devices, data, workdir or checkpoint are unusable.
      InterruptedRunError: see `training.loop.run`.
    """
    validate_detector(config)
    mesh = training_mesh(config)
    for split in ("train", "test"):
        check_there(config, split)
    check_start(config)
    return loop.run(workdir, lambda: prepare(config, mesh), process_ends=process_ends)


def training_mesh(config: ConfigDict) -> Mesh:
    """Arrange all devices for training; no statistics are shared between images.

    Raises:
      ConfigError: batch, micro-batches and devices do not fit.
    """
    return make_mesh(config.batch_size, 1, accumulate_steps=config.accumulate_steps)


def check_there(config: ConfigDict, split: str) -> None:
    """Raise DataError if the files of "train" or "test" are not there."""
    if config.data.name == "digit_scenes":
        return  # made when they are not there
    for path in split_files(config, split):
        if not path.exists():
            raise DataError(
                f"{path} is missing; unpack COCO's images and annotations there, or name "
                "another folder with --config.data.data_dir=..."
            )


def open_splits(config: ConfigDict) -> Splits:
    """Read a config's data.

    Raises:
      DataError: it cannot be used.
    """
    train, test = (open_split(config, split) for split in ("train", "test"))
    check_categories(test, train.category_names)
    check_countable(test)
    order = training_order(
        train, image_spec(config), seed=config.seed, batch_size=config.batch_size
    )
    if is_first_host():
        print_notes(train.annotations, training_notes(config, train))
    return Splits(train, test, len(order))


def make_stage(config: ConfigDict, splits: Splits) -> Stage:
    """Return what `config.task` trains on some data; raises DataError for unusable proposals."""
    makers = {"rpn": _rpn, "fast_rcnn": _fast_rcnn, "faster_rcnn": _faster_rcnn}
    return makers[config.task](config, splits)


def prepare(config: ConfigDict, mesh: Mesh) -> tuple[Task, TrainState]:
    """Open the data, making the digit scenes if need be, and build everything of a run.

    Returns:
      The run, and a fresh state on all devices of the mesh.

    Raises:
      UserError: the data cannot be used, or the hosts disagree.
    """
    splits = open_splits(config)
    places = box_places(splits.train, config.data.max_boxes)
    stage = make_stage(config, splits)
    version = splits.train.digest(stage.data_details)
    data = DataVersion(config.data.name, version, splits.train.category_names)
    check_hosts_agree(
        lambda: {
            **config_facts(config),
            "the data set": version,
            "the classes": ", ".join(splits.train.category_names),
            **splits.train.facts("train"),
            **splits.test.facts("test"),
        }
    )
    schedule = build.build_schedule(config, splits.num_images)
    optimizer = build.build_optimizer(
        config, schedule, rate_factor=functools.partial(rate_factor, config)
    )
    graphdef, state = setup.place_state(config, stage.network(), optimizer, mesh)
    spec = setup.step_spec(config, splits.num_images)

    def batches(start_step: int, num_steps: int) -> Generator[Batch, None, None]:
        return _batches(config, splits, stage, mesh, start_step, num_steps)

    task = Task(
        config=config,
        title=f"{stage.title} on {config.data.name}",
        batch_note=f", batch norms fixed, places for {places} objects an image",
        measure=stage.measure,
        data=data,
        num_images=splits.num_images,
        mesh=mesh,
        graphdef=graphdef,
        schedule=schedule,
        train_step=make_step(
            make_loss(graphdef, stage.image_losses, config), optimizer, mesh, spec
        ),
        batches=batches,
        test=stage.make_test(graphdef, mesh),
        describe_test=functools.partial(_say_metrics, stage.labels),
    )
    return task, state


def rate_factor(config: ConfigDict, name: str) -> float:
    """Return what multiplies the rate of a parameter."""
    if is_backbone(name):
        return float(config.finetune.backbone_rate)
    return float(config.optimizer.new_bias_rate) if is_bias(name) else 1.0


def make_loss(graphdef: nnx.GraphDef, image_losses: ImageLosses, config: ConfigDict) -> Loss:
    """Make the loss of a step (see `training.step.make_step`) from a stage's losses of images."""
    freezing = build.freezing(config)

    def loss(
        params: Arrays, batch_stats: Arrays, batch: Batch
    ) -> tuple[jax.Array, tuple[Arrays, Metrics]]:
        model = merge(graphdef, freezing.stop_gradients(params), batch_stats)
        freezing.set_modes(model)
        losses, metrics = image_losses(model, normalised(batch, config), batch)
        metrics = {"loss": losses} | metrics
        return losses.mean(), (batch_stats, {name: x.mean() for name, x in metrics.items()})

    return loss


def keys_of(batch: Batch) -> jax.Array:
    """Return a `jax.random` key for each image of a batch."""
    return jax.vmap(jax.random.key)(batch["seed"])


def _batches(
    config: ConfigDict, splits: Splits, stage: Stage, mesh: Mesh, start_step: int, num_steps: int
) -> Generator[Batch, None, None]:
    sharding = batch_sharding(mesh, config.accumulate_steps)
    host_batches = detection_batches(
        splits.train,
        image_spec(config),
        seed=config.seed,
        batch_size=config.batch_size,
        positions=host_positions(sharding, config.batch_size, config.accumulate_steps),
        start_step=start_step,
        num_steps=num_steps,
        num_workers=config.data.num_workers,
        max_boxes=config.data.max_boxes,
        proposals=stage.proposals,
        max_proposals=stage.max_proposals,
    )
    return to_devices(host_batches, sharding, config.batch_size, config.accumulate_steps)


def _say_metrics(labels: Mapping[str, str], record: Mapping[str, Any]) -> Iterator[str]:
    """Say some numbers of a test record, by name and what to call them."""
    average = " of the averaged weights" if record["weights"] == "ema" else ""
    numbers = ", ".join(f"{label} {record[name]:.1f}" for name, label in labels.items())
    yield f"final test{average}: {numbers}"


def _coco_test(
    config: ConfigDict, split: CocoSplit, proposals: Proposals | None = None
) -> Callable[[Any, Mesh], Test]:
    """Return `Stage.make_test`: a detector is tested by COCO's metrics, in percent."""

    def make_test(graphdef: Any, mesh: Mesh) -> Test:
        find = functools.partial(
            find_objects, Detector(config, graphdef, mesh), split, proposals=proposals
        )
        return lambda params, batch_stats, between_batches: logged_metrics(
            split, find((params, batch_stats), between_batches)
        )

    return make_test


def _rpn(config: ConfigDict, splits: Splits) -> Stage:
    """The region proposal network (Ren et al. 2015)."""
    spec = rpn_target_spec(config.targets)

    def image_losses(model: Any, images: jax.Array, batch: Batch) -> Losses:
        logits, deltas = model(images)
        height, width = (side // STRIDE for side in images.shape[1:3])
        anchors = make_anchors(height, width, anchor_spec(config))

        def losses(key: jax.Array, *of_image: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits, deltas, boxes, valid, crowd, size = of_image
            targets = rpn_targets(key, anchors, boxes, valid, crowd, size, spec)
            class_loss, box_loss = rpn_loss(logits, deltas, targets)
            return class_loss, box_loss, (targets.labels == POSITIVE).sum()

        truth = (batch[name] for name in ("boxes", "valid", "crowd", "size"))
        class_loss, box_loss, positives = jax.vmap(losses)(keys_of(batch), logits, deltas, *truth)
        metrics = {
            "class_loss": class_loss,
            "box_loss": box_loss,
            "foreground": positives.astype(jnp.float32),
        }
        return class_loss + box_loss, metrics

    def make_test(graphdef: nnx.GraphDef, mesh: Mesh) -> Test:
        """Test by the share of objects that the best proposals cover, in percent."""
        proposer = Proposer(config, graphdef, mesh, training=False)
        return lambda params, batch_stats, between_batches: score_proposals(
            proposer, splits.test, (params, batch_stats), between_batches
        )

    return Stage(
        title=f"RPN with {config.model.name}",
        network=lambda: build_rpn(config),
        image_losses=image_losses,
        make_test=make_test,
        measure=Measure("recall100", "recall@100 at IoU .5 (%)", highest=True),
        labels={f"recall{limit}": f"recall@{limit} (%)" for limit in RECALL_AT},
    )


def _fast_rcnn(config: ConfigDict, splits: Splits) -> Stage:
    """Fast R-CNN on stored proposals (Girshick 2015); a run resumes on those it began with."""
    proposals, test_proposals = (
        StoredProposals(config.data.proposals, name, split)
        for name, split in (("train", splits.train), ("test", splits.test))
    )
    spec = region_target_spec(config.targets)

    def image_losses(model: Any, images: jax.Array, batch: Batch) -> Losses:
        names = ("proposals", "proposals_valid", "boxes", "classes", "valid", "crowd")
        targets = jax.vmap(functools.partial(region_targets, spec=spec))(
            keys_of(batch), *(batch[name] for name in names)
        )
        logits, deltas = model(images, targets.boxes)
        class_loss, box_loss = jax.vmap(fast_rcnn_loss)(logits, deltas, targets)
        foreground = (targets.labels != BACKGROUND).sum(axis=1).astype(jnp.float32)
        metrics = {"class_loss": class_loss, "box_loss": box_loss, "foreground": foreground}
        return class_loss + box_loss, metrics

    return Stage(
        title=f"Fast R-CNN with {config.model.name}",
        network=lambda: build_fast_rcnn(config, splits.train.num_classes),
        image_losses=image_losses,
        make_test=_coco_test(config, splits.test, test_proposals),
        proposals=proposals,
        max_proposals=config.data.train_proposals,
        data_details=proposals.digest,
    )


def _faster_rcnn(config: ConfigDict, splits: Splits) -> Stage:
    """Both stages as one network (Ren et al. 2017)."""

    def image_losses(model: Any, images: jax.Array, batch: Batch) -> Losses:
        """The sum of four losses."""
        features = model.features(images)
        logits, deltas = model.rpn_outputs(features)
        proposals, filled = propose_in_batch(logits, deltas, batch, config, training=True)
        targets = joint_targets(batch, proposals, filled, config)
        rpn_class_loss, rpn_box_loss = jax.vmap(rpn_loss)(logits, deltas, targets.anchors)
        logits, deltas = model.on_regions(features, targets.regions.boxes)
        class_loss, box_loss = jax.vmap(fast_rcnn_loss)(logits, deltas, targets.regions)
        foreground = (targets.regions.labels != BACKGROUND).sum(axis=1).astype(jnp.float32)
        losses = {
            "rpn_class_loss": rpn_class_loss,
            "rpn_box_loss": rpn_box_loss,
            "class_loss": class_loss,
            "box_loss": box_loss,
        }
        return sum(losses.values(), start=jnp.zeros(())), losses | {"foreground": foreground}

    pyramid = " and a feature pyramid" if config.pyramid.enabled else ""
    return Stage(
        title=f"Faster R-CNN with {config.model.name}{pyramid}",
        network=lambda: build_faster_rcnn(config, splits.train.num_classes),
        image_losses=image_losses,
        make_test=_coco_test(config, splits.test),
    )


class JointTargets(NamedTuple):
    """What a batch's images are learned from, `[N, ...]` each.

    Attributes:
      anchors: what the region proposal network should say.
      regions: those drawn among proposals and ground truth, and what the other head should say.
    """

    anchors: RpnTargets
    regions: RegionTargets


def joint_targets(
    batch: Batch, proposals: jax.Array, filled: jax.Array, config: ConfigDict
) -> JointTargets:
    """Draw what a batch's images are learned from.

    Args:
      batch: of `loading.detection_batches`.
      proposals: `[N, P, 4]`.
      filled: bool `[N, P]`, which of them are boxes and not padding.
      config: of the run.
    """
    for_anchors = rpn_target_spec(config.targets)
    for_regions = region_target_spec(config.regions)
    _, height, width, _ = batch["image"].shape
    anchors = np.concatenate(level_anchors(height, width, anchor_specs(config)))

    def of_image(
        key: jax.Array, proposals: jax.Array, filled: jax.Array, truth: Mapping[str, jax.Array]
    ) -> JointTargets:
        anchor_key, region_key = jax.random.split(key)
        boxes, valid, crowd = truth["boxes"], truth["valid"], truth["crowd"]
        return JointTargets(
            rpn_targets(anchor_key, anchors, boxes, valid, crowd, truth["size"], for_anchors),
            region_targets(
                region_key, proposals, filled, boxes, truth["classes"], valid, crowd, for_regions
            ),
        )

    truth = {name: batch[name] for name in ("boxes", "classes", "valid", "crowd", "size")}
    return jax.vmap(of_image)(keys_of(batch), proposals, filled, truth)
