"""From a detector's configuration to the parts of a run, and a pass over a split's images."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.data.augment import Batch, DeviceTransform
from resnext_jax.data.pipeline import host_positions, to_devices
from resnext_jax.detection.anchors import AnchorSpec, are_reached
from resnext_jax.detection.coco import CocoSplit, print_notes, read_coco
from resnext_jax.detection.coco_fields import ProblemReport
from resnext_jax.detection.headers import check_headers
from resnext_jax.detection.loading import Proposals, eval_detection_batches
from resnext_jax.detection.models import (
    RPN,
    STRIDE,
    FastRCNN,
    JointFasterRCNN,
    PyramidFasterRCNN,
    PyramidSpec,
    RoiSpec,
)
from resnext_jax.detection.pyramid import RPN_STRIDES
from resnext_jax.detection.sizes import ImageSpec, resized_boxes, resized_shape
from resnext_jax.detection.synthetic import SceneFolder, make_scenes
from resnext_jax.detection.targets import RegionTargetSpec, RpnTargetSpec
from resnext_jax.errors import DataError, WorkdirError
from resnext_jax.files import user_path
from resnext_jax.models.variables import Arrays, merge
from resnext_jax.parallel.distributed import broadcast_from_first_host, is_first_host
from resnext_jax.parallel.mesh import BATCH, REPLICATED, batch_sharding, make_mesh
from resnext_jax.runs.best import wanted_step
from resnext_jax.runs.checkpoint import Checkpoints
from resnext_jax.runs.workdir import existing_workdir, stored_class_names, stored_config

# Where digit scenes are made, unless the config names another folder.
SCENES = Path("runs/digit_scenes")

# Batches that wait on the devices while the host reads results.
_AHEAD = 2

# From a network in testing mode, normalised images and their batch, to an array an image.
ImageResults = Callable[[Any, jax.Array, Batch], dict[str, jax.Array]]


def image_spec(config: ConfigDict) -> ImageSpec:
    """Return how a config's images are resized and padded."""
    data = config.data
    return ImageSpec(
        short_side=data.short_side,
        long_side=data.long_side,
        flip=data.flip,
        keep_empty=data.keep_empty,
    )


def split_files(config: ConfigDict, split: str) -> tuple[Path, Path]:
    """Return annotations and folder of images of "train" or "test"."""
    data = config.data
    if data.name == "digit_scenes":
        scenes = SceneFolder(_scenes_folder(config))
        return scenes.annotations(split), scenes.images(split)
    folder = user_path(data.data_dir, "config.data.data_dir")
    return folder / data[f"{split}_annotations"], folder / data[f"{split}_images"]


def _scenes_folder(config: ConfigDict) -> Path:
    folder = config.data.data_dir
    return SCENES if folder is None else user_path(folder, "config.data.data_dir")


def open_split(config: ConfigDict, split: str) -> CocoSplit:
    """Read "train" or "test" of a config's data; the digit scenes are made if they are missing.

    Raises:
      DataError: the files are missing or cannot be used.
    """
    if config.data.name == "digit_scenes":
        if is_first_host():
            make_scenes(_scenes_folder(config))
        broadcast_from_first_host(0)  # the others wait
    annotations, images = split_files(config, split)
    found = read_coco(annotations, images, quiet=not is_first_host())
    notes = check_headers(found)
    if is_first_host():
        print_notes(annotations, notes)
    return found


def check_categories(split: CocoSplit, class_names: tuple[str, ...]) -> None:
    """Check that a split has the categories of what a network is trained on.

    Args:
      split: of the test images.
      class_names: of the training images, in the order of their ids.

    Raises:
      DataError: others; a class, which is a place among them, would mean something else.
    """
    if split.category_names != class_names:
        ours, theirs = (", ".join(names[:5]) for names in (split.category_names, class_names))
        raise DataError(
            f"{split.annotations} has other categories ({ours}, ...) than the training images have "
            f"({theirs}, ...); give annotations of the same ones."
        )


def check_countable(split: CocoSplit) -> None:
    """Check that a test split has objects to score against.

    Raises:
      DataError: it has none but crowds, of which no measure counts any.
    """
    if split.objects.crowd.all():
        raise DataError(
            f"{split.annotations} has no objects to score against (crowds do not count); name a "
            "file that has some with --config.data.test_annotations=..."
        )


def anchor_spec(config: ConfigDict) -> AnchorSpec:
    """Return the anchors of an RPN's config."""
    anchors = config.anchors
    return AnchorSpec(STRIDE, anchors.base, tuple(anchors.ratios), tuple(anchors.scales))


def anchor_specs(config: ConfigDict) -> tuple[AnchorSpec, ...]:
    """Return the anchors of each level of a config: one, or a pyramid's five."""
    spec = anchor_spec(config)
    if config.task == "rpn" or not config.pyramid.enabled:
        return (spec,)
    return tuple(
        dataclasses.replace(spec, stride=stride, base=spec.base * stride // STRIDE)
        for stride in RPN_STRIDES
    )


def training_notes(config: ConfigDict, split: CocoSplit) -> list[str]:
    """Say which of the training images and objects are not learned from, a sentence each."""
    report, spec, owners = ProblemReport(), image_spec(config), split.owners
    report.note(
        "images without an object (crowds aside), "
        + ("trained on as background" if spec.keep_empty else "left out of training")
        + f" (config.data.keep_empty={spec.keep_empty})",
        np.flatnonzero(split.empty),
        lambda place: f"image id {split.image_ids[place]}",
    )
    if config.task != "fast_rcnn":
        shapes = np.stack([split.heights, split.widths], axis=1)
        sizes = np.array([resized_shape(h, w, spec) for h, w in shapes.tolist()])[owners]
        boxes = resized_boxes(split.objects.boxes, shapes[owners], sizes, mirrored=False)
        reached = [are_reached(boxes, sizes, anchors) for anchors in anchor_specs(config)]
        report.note(
            "objects that no anchor inside their image overlaps, which the RPN does not learn",
            np.flatnonzero(~np.any(reached, axis=0) & ~split.objects.crowd),
            lambda place: (
                f"{split.objects.boxes[place].tolist()} of image id "
                f"{split.image_ids[owners[place]]}"
            ),
        )
    return report.notes


def rpn_target_spec(targets: ConfigDict) -> RpnTargetSpec:
    """Return which anchors a section of a config learns from."""
    return RpnTargetSpec(
        positive=targets.positive_iou,
        negative=targets.negative_iou,
        samples=targets.samples,
        positives=targets.positives,
        crowds=targets.crowds,
    )


def region_target_spec(targets: ConfigDict) -> RegionTargetSpec:
    """Return which regions a section of a config learns from."""
    return RegionTargetSpec(
        samples=targets.samples,
        foregrounds=targets.foregrounds,
        foreground=targets.foreground_iou,
        background=targets.background_iou,
    )


def build_rpn(config: ConfigDict) -> RPN:
    """Make the network of an RPN's config, initialised from its seed."""
    return RPN(
        build.model_spec(config, num_classes=2),
        anchors_per_position=anchor_spec(config).per_position,
        width=config.proposals.width,
        rngs=nnx.Rngs(config.seed),
    )


def build_fast_rcnn(config: ConfigDict, num_classes: int) -> FastRCNN:
    """Make the network of a Fast R-CNN's config, initialised from its seed.

    Args:
      config: of the run.
      num_classes: with the background.
    """
    roi = RoiSpec(config.roi.kind, config.roi.size, config.roi.sampling_ratio)
    return FastRCNN(build.model_spec(config, num_classes), roi=roi, rngs=nnx.Rngs(config.seed))


def build_faster_rcnn(config: ConfigDict, num_classes: int) -> JointFasterRCNN | PyramidFasterRCNN:
    """Make the network of a Faster R-CNN's config, initialised from its seed.

    Args:
      config: of the run.
      num_classes: with the background.
    """
    spec, roi = build.model_spec(config, num_classes), config.roi
    shared: dict[str, Any] = {
        "anchors_per_position": anchor_spec(config).per_position,
        "rpn_width": config.proposals.width,
        "rngs": nnx.Rngs(config.seed),
    }
    if not config.pyramid.enabled:
        return JointFasterRCNN(spec, roi=RoiSpec(roi.kind, roi.size, roi.sampling_ratio), **shared)
    pyramid = PyramidSpec(
        width=config.pyramid.width,
        canonical_side=config.pyramid.canonical_side,
        roi_size=roi.size,
        sampling_ratio=roi.sampling_ratio,
        head_width=config.pyramid.head_width,
    )
    return PyramidFasterRCNN(spec, pyramid=pyramid, **shared)


def normalised(batch: Mapping[str, jax.Array], config: ConfigDict) -> jax.Array:
    """Normalise uint8 `image` `[N, H, W, 3]`; the padding beyond `size` is zero afterwards."""
    transform = DeviceTransform(tuple(config.data.mean), tuple(config.data.std))
    images = transform.test(dict(batch))
    rows, columns = (
        jnp.arange(length) < batch["size"][:, axis, None]
        for axis, length in enumerate(images.shape[1:3])
    )
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], images, 0)


@dataclasses.dataclass(frozen=True)
class StoredWeights:
    """A trained network, ready for an `ImagePass`.

    Attributes:
      step: of the checkpoint.
      graphdef: of the network, see `models.variables.split`.
      params, batch_stats: of the network.
      mesh: of the devices that they are on.
    """

    step: int
    graphdef: nnx.GraphDef
    params: Arrays
    batch_stats: Arrays
    mesh: Mesh


def stored_weights(
    workdir: str | os.PathLike[str], task: str, checkpoint: str = "latest", *, ema: bool = False
) -> tuple[ConfigDict, StoredWeights]:
    """Read the config and the weights of a detector's run.

    Args:
      workdir: of the run.
      task: what it must have trained, "rpn", "fast_rcnn" or "faster_rcnn".
      checkpoint: "latest", "best", or a step.
      ema: read the averaged weights.

    Raises:
      UserError: the workdir has no such run or checkpoint.
    """
    folder = existing_workdir(workdir)
    config = stored_config(folder)
    if config.task != task:
        raise WorkdirError(
            f"workdir {folder} holds a run of config.task={config.task!r}; give one of {task!r}."
        )
    # Any number of devices will do.
    mesh = make_mesh(batch_size=jax.device_count(), bn_group_size=1)
    classes = len(stored_class_names(folder)) + 1

    def network() -> nnx.Module:
        if task == "rpn":
            return build_rpn(config)
        make = build_fast_rcnn if task == "fast_rcnn" else build_faster_rcnn
        return make(config, classes)

    graphdef, *shapes = build.abstract(network, mesh)
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        step = checkpoints.require_step(wanted_step(checkpoint, folder))
        params, batch_stats = checkpoints.restore_weights(*shapes, step=step, ema=ema)
    return config, StoredWeights(step, graphdef, params, batch_stats, mesh)


class ImagePass:
    """A step in testing mode, ready to be run on every image of a split again and again."""

    def __init__(
        self, config: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh, results: ImageResults
    ):
        """Prepare the step (it compiles when first run, once a size of images)."""
        self._config, self._sharding = config, batch_sharding(mesh)
        # Blanks fill up the batch, so any size can be rounded up to fit the devices.
        self._batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size

        def local(params: Arrays, batch_stats: Arrays, batch: Batch) -> dict[str, jax.Array]:
            model = merge(graphdef, params, batch_stats)
            model.eval()
            return results(model, normalised(batch, config), batch)

        self._step = jax.jit(
            jax.shard_map(
                local, mesh=mesh, in_specs=(REPLICATED, REPLICATED, BATCH), out_specs=BATCH
            )
        )

    def run(
        self,
        split: CocoSplit,
        params: Arrays,
        batch_stats: Arrays,
        *,
        proposals: Proposals | None = None,
        max_proposals: int = 0,
        between_batches: Callable[[], None] = lambda: None,
    ) -> Generator[tuple[int, dict[str, np.ndarray]], None, None]:
        """Yield the index of each image, and its results, with `size` and `original_size`.

        Every image comes once, on all hosts, in the order of batches.

        Args:
          split: the images.
          params: of the network.
          batch_stats: of the network.
          proposals: of each image, see `loading.eval_detection_batches`.
          max_proposals: how many of them.
          between_batches: called before each batch; what it raises ends the pass.
        """
        batches = eval_detection_batches(
            split,
            image_spec(self._config),
            batch_size=self._batch_size,
            positions=host_positions(self._sharding, self._batch_size),
            num_workers=self._config.data.num_workers,
            proposals=proposals,
            max_proposals=max_proposals,
        )
        pending: collections.deque[dict[str, jax.Array]] = collections.deque()
        with contextlib.closing(
            to_devices(batches, self._sharding, self._batch_size)
        ) as on_devices:
            for batch in on_devices:
                between_batches()
                found = self._step(params, batch_stats, batch)
                known = {name: batch[name] for name in ("index", "mask", "size", "original_size")}
                pending.append(found | known)
                if len(pending) > _AHEAD:
                    yield from _images(pending.popleft())
        while pending:
            yield from _images(pending.popleft())


def _images(batch: dict[str, jax.Array]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    if jax.process_count() > 1:
        arrays = multihost_utils.process_allgather(batch, tiled=True)
    else:
        arrays = jax.device_get(batch)
    for image in np.flatnonzero(arrays["mask"]):
        yield int(arrays["index"][image]), {name: array[image] for name, array in arrays.items()}
