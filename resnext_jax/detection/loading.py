"""Batches of images with their objects, for detection.

Landscape (and square) and portrait images are padded to a canvas each and never share a batch, so
a step is compiled twice at most. Training batch k is a function of (seed, k) alone, whatever the
workers, devices, hosts and restarts: which canvas it has is a formula in k, its images are the
next ones of that canvas's own stream, the data set reshuffled each epoch, epoch after epoch.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable
from typing import Any

import grain
import numpy as np

from resnext_jax.data.decode import ImageFile, UndecodableImageError
from resnext_jax.data.deep_images import note_dim
from resnext_jax.data.pipeline import HostBatch, read_ahead
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.sizes import ImageSpec, prepare_image, resized_boxes
from resnext_jax.errors import ConfigError, DataError, one_line

# Of the image at an index of the split: float32 `[n, 4]`, in pixels of the image as it is stored,
# best first. Sent to worker processes, so it must be picklable.
Proposals = Callable[[int], np.ndarray]

# Places for an image's objects are a multiple of it.
_PLACES = 8

BLANK = -1
_BAD, _DIM = "bad_index", "dim_index"

# What is drawn from a run's seed.
_ORDER, _ON_DEVICE = 0, 1


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingOrder:
    """Which image is where in which training batch.

    Attributes:
      groups: for each canvas, int64 `[n]` indices of the images that have it and are trained on:
        those with an object that is no crowd, as in py-faster-rcnn, or all (`spec.keep_empty`).
      copies: 2 where mirrored images are images of their own, otherwise 1.
      batch_size: B, images in a global batch.
      seed: of the order.
    """

    groups: tuple[np.ndarray, ...]
    copies: int
    batch_size: int
    seed: int
    _streams: tuple[Any, ...]

    def __len__(self) -> int:
        """Return the number of images in an epoch, mirrored ones included."""
        return self.copies * sum(map(len, self.groups))

    def canvas(self, step: int) -> int:
        """Return which canvas global batch `step` has.

        Batches of the canvases alternate as evenly as their numbers of images allow, so that every
        image is seen equally often.
        """
        return self._portraits(step + 1) - self._portraits(step)

    def elements(self, step: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images at some positions `[b]` of global batch `step`.

        Returns:
          Indices of images, int64 `[b]`, and whether each is mirrored, bool `[b]`.
        """
        canvas, before = self.canvas(step), self._portraits(step)
        first = (before if canvas else step - before) * self.batch_size
        stream = self._streams[canvas]
        drawn = np.array([stream[first + int(position)] for position in positions], np.int64)
        images, copy = np.divmod(drawn, self.copies)
        return self.groups[canvas][images], copy == 1

    def _portraits(self, steps: int) -> int:
        """Return how many of the first batches are portrait, the second canvas."""
        sizes = [len(group) for group in self.groups]
        return steps * sum(sizes[1:]) // sum(sizes)


def training_order(
    split: CocoSplit, spec: ImageSpec, *, seed: int, batch_size: int
) -> TrainingOrder:
    """Plan the training batches of a split.

    Raises:
      DataError: no image can be trained on.
    """
    empty = split.empty
    if empty.all():
        raise DataError(
            f"no image of {split.annotations} has a box to train on; name a file with annotations, "
            "such as instances_train2017.json."
        )
    canvases, usable = _canvases(split, spec), ~empty | spec.keep_empty
    groups = [np.flatnonzero(usable & (canvases == canvas)) for canvas in range(len(spec.canvases))]
    copies = 1 + spec.flip
    streams = []
    for canvas, group in enumerate(groups):
        numbers = grain.MapDataset.source(range(max(1, copies * len(group))))
        streams.append(numbers.seed(_drawn(seed, _ORDER, canvas)).shuffle().repeat())
    return TrainingOrder(
        groups=tuple(groups),
        copies=copies,
        batch_size=batch_size,
        seed=seed,
        _streams=tuple(streams),
    )


def box_places(split: CocoSplit, max_boxes: int | None = None) -> int:
    """Return how many places a batch has for the objects of an image, crowds included.

    Args:
      split: the training images.
      max_boxes: that many; None: the largest number of objects in an image, rounded up.

    Raises:
      ConfigError: some image has more objects.
    """
    counts = np.diff(split.offsets)
    fullest = int(np.argmax(counts))
    most = int(counts[fullest])
    if max_boxes is not None and most > max_boxes:
        raise ConfigError(
            f"config.data.max_boxes={max_boxes} is too small: {(counts > max_boxes).sum():,} of "
            f"{len(split):,} images of {split.annotations} have more objects, image id "
            f"{split.image_ids[fullest]} has {most}; give at least {most}, or None."
        )
    return max_boxes or -(-most // _PLACES) * _PLACES


def detection_batches(
    split: CocoSplit,
    spec: ImageSpec,
    *,
    seed: int,
    batch_size: int,
    positions: np.ndarray,
    start_step: int,
    num_steps: int,
    num_workers: int = 0,
    max_boxes: int | None = None,
    proposals: Proposals | None = None,
    max_proposals: int = 2000,
) -> Generator[HostBatch, None, None]:
    """Yield this host's part of the global training batches `start_step` to `num_steps`.

    Args:
      split: the training images.
      spec: their sizes.
      seed: of the order, and of the random numbers drawn on the device.
      batch_size: B, images in a global batch.
      positions: `[b]`, places of this host's images in a global batch, see `host_positions`.
      start_step: first batch; batch k is the same whatever this is.
      num_steps: batches in the whole run.
      num_workers: decoding processes, at most; 0 decodes in threads of this one.
      max_boxes: see `box_places`, which gives G.
      proposals: of each image, to be resized and mirrored with it.
      max_proposals: P, places for an image's proposals; of more, the first ones are taken.

    Yields:
      Dictionaries of arrays, all in pixels of the resized image:
        image: uint8 `[b, H, W, 3]`, on one of `spec.canvases`; not normalised.
        size: float32 `[b, 2]`, height and width without the padding.
        original_size: float32 `[b, 2]`, height and width of the image as it is stored.
        boxes: float32 `[b, G, 4]`.
        classes: int32 `[b, G]`.
        valid: bool `[b, G]`, there is an object, crowds included.
        crowd: bool `[b, G]`.
        seed: uint32 `[b]`, to sample with on the device; a function of `seed` and of the image's
          place in the run.
        proposals: float32 `[b, P, 4]`, and proposals_valid: bool `[b, P]`, where there are some.

    Raises:
      ConfigError: see `box_places`.
      DataError: an image cannot be decoded or is not as large as its annotations say, or none can
        be trained on.
    """
    order = training_order(split, spec, seed=seed, batch_size=batch_size)
    padding = _Padding(spec, proposals, max_proposals, box_places(split, max_boxes))
    source = _TrainingBatches(split, padding, order, np.asarray(positions), num_steps)
    return _checked(read_ahead(grain.MapDataset.source(source)[start_step:], num_workers), split)


def eval_detection_batches(
    split: CocoSplit,
    spec: ImageSpec,
    *,
    batch_size: int,
    positions: np.ndarray,
    num_workers: int = 0,
    proposals: Proposals | None = None,
    max_proposals: int = 300,
) -> Generator[HostBatch, None, None]:
    """Yield this host's part of batches with every image once, those of a canvas together.

    Args:
      split: the images; they need no annotations.
      spec: see `detection_batches`, as for the next ones.
      batch_size: B.
      positions: `[b]`.
      num_workers: decoding processes, at most.
      proposals: of each image, if it has some.
      max_proposals: P.

    Yields:
      Dictionaries of arrays: `image`, `size`, `original_size`, and `proposals` and
      `proposals_valid` where there are some, as in `detection_batches`, and
        index: int32 `[b]`, of the image in the split; -1 where the batch is filled up.
        mask: bool `[b]`, there is an image.

    Raises:
      DataError: an image cannot be decoded or is not as large as its annotations say.
    """
    plan = _eval_plan(split, spec, batch_size)
    padding = _Padding(spec, proposals, max_proposals)
    source = _EvalBatches(split, padding, plan, np.asarray(positions))
    return _checked(read_ahead(grain.MapDataset.source(source), num_workers), split)


def _eval_plan(split: CocoSplit, spec: ImageSpec, batch_size: int) -> list[tuple[int, np.ndarray]]:
    """Return canvas and images `[B]` of each batch, BLANK where it is filled up."""
    canvases, plan = _canvases(split, spec), []
    for canvas in range(len(spec.canvases)):
        images = np.flatnonzero(canvases == canvas)
        filled = np.full(-(-len(images) // batch_size) * batch_size, BLANK, np.int64)
        filled[: len(images)] = images
        plan += [(canvas, part) for part in filled.reshape(-1, batch_size)]
    return plan


def _canvases(split: CocoSplit, spec: ImageSpec) -> np.ndarray:
    sizes = zip(split.heights.tolist(), split.widths.tolist(), strict=True)
    return np.array([spec.canvas_of(height, width) for height, width in sizes], np.int64)


def _drawn(seed: int, what: int, place: int) -> int:
    """Draw 32 bits, independent of those for something else or at other places."""
    return int(np.random.SeedSequence((seed, what, place)).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class _Padding:
    """Puts an image, its objects and its proposals into arrays of fixed shape."""

    spec: ImageSpec
    proposals: Proposals | None
    max_proposals: int
    max_boxes: int = 0

    def image(self, split: CocoSplit, index: int, *, mirrored: bool) -> dict[str, Any]:
        file = _opened(split, index)
        image = np.asarray(file)
        original_size = np.array(image.shape[:2], np.float32)
        image, size = prepare_image(image[:, ::-1] if mirrored else image, self.spec)
        element: dict[str, Any] = {"image": image, "size": size, "original_size": original_size}
        if self.proposals is not None:
            boxes = np.asarray(self.proposals(index), np.float32)[: self.max_proposals]
            element |= self._padded_proposals(
                resized_boxes(boxes, original_size, size, mirrored=mirrored)
            )
        return element | {_BAD: np.int64(-1), _DIM: np.int64(index if file.is_dim else -1)}

    def blank(self, canvas: int, *, bad_index: int = -1) -> dict[str, Any]:
        """Return the padding element for a place without an image."""
        shape = self.spec.canvases[canvas]
        element: dict[str, Any] = {
            "image": np.zeros((*shape, 3), np.uint8),
            "size": np.array(shape, np.float32),
            "original_size": np.array(shape, np.float32),
        }
        if self.proposals is not None:
            element |= self._padded_proposals(np.zeros((0, 4), np.float32))
        return element | {_BAD: np.int64(bad_index), _DIM: np.int64(-1)}

    def objects(
        self, split: CocoSplit, index: int, size: np.ndarray, *, mirrored: bool
    ) -> dict[str, Any]:
        truth, places = split.ground_truth(index), self.max_boxes
        original_size = np.array([split.heights[index], split.widths[index]])
        boxes = resized_boxes(truth.boxes, original_size, size, mirrored=mirrored)
        return {
            "boxes": _padded(boxes, places),
            "classes": _padded(truth.classes, places),
            "valid": np.arange(places) < len(boxes),
            "crowd": _padded(truth.crowd, places),
        }

    def _padded_proposals(self, boxes: np.ndarray) -> dict[str, Any]:
        return {
            "proposals": _padded(boxes, self.max_proposals),
            "proposals_valid": np.arange(self.max_proposals) < len(boxes),
        }


@dataclasses.dataclass(frozen=True)
class _TrainingBatches:
    """One host's parts of the training batches, as a random-access sequence."""

    split: CocoSplit
    padding: _Padding
    order: TrainingOrder
    positions: np.ndarray
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> HostBatch:
        canvas = self.order.canvas(step)
        places = step * self.order.batch_size + self.positions
        chosen = zip(places, *self.order.elements(step, self.positions), strict=True)
        return _stacked(
            self._element(int(index), canvas, mirrored=bool(mirrored))
            | {"seed": np.uint32(_drawn(self.order.seed, _ON_DEVICE, int(place)))}
            for place, index, mirrored in chosen
        )

    def _element(self, index: int, canvas: int, *, mirrored: bool) -> dict[str, Any]:
        try:
            element = self.padding.image(self.split, index, mirrored=mirrored)
        except UndecodableImageError:
            element = self.padding.blank(canvas, bad_index=index)
        objects = self.padding.objects(self.split, index, element["size"], mirrored=mirrored)
        return element | objects


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
    """One host's parts of the test batches, as a random-access sequence."""

    split: CocoSplit
    padding: _Padding
    plan: list[tuple[int, np.ndarray]]
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> HostBatch:
        canvas, images = self.plan[step]
        return _stacked(self._element(int(index), canvas) for index in images[self.positions])

    def _element(self, index: int, canvas: int) -> dict[str, Any]:
        marks = {"index": np.int32(index), "mask": np.bool_(index != BLANK)}
        if index == BLANK:
            return self.padding.blank(canvas) | marks
        try:
            return self.padding.image(self.split, index, mirrored=False) | marks
        except UndecodableImageError:
            return self.padding.blank(canvas, bad_index=index) | marks


def _opened(split: CocoSplit, index: int) -> ImageFile:
    """Return an image of the size that it should have; UndecodableImageError says why not."""
    try:
        data = split.path(index).read_bytes()
    except OSError as error:
        raise UndecodableImageError(error.strerror or one_line(error)) from error
    image = ImageFile(data)
    height, width = int(split.heights[index]), int(split.widths[index])
    if image.shape[:2] != (height, width):
        raise UndecodableImageError(
            f"it is {image.shape[1]}x{image.shape[0]} pixels and should be {width}x{height} by "
            "the annotations; a mark to turn the image (EXIF) is not followed"
        )
    return image


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    padded = np.zeros((length, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def _stacked(elements: Iterable[dict[str, Any]]) -> HostBatch:
    rows = list(elements)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _checked(
    batches: Generator[HostBatch, None, None], split: CocoSplit
) -> Generator[HostBatch, None, None]:
    """Find the bad and the dim images that the readers have marked, and take out the marks."""
    with contextlib.closing(batches):
        for batch in batches:
            bad, dim = int(batch.pop(_BAD).max()), int(batch.pop(_DIM).max())
            if bad >= 0:
                raise DataError(_explained(split, bad))
            if dim >= 0:
                note_dim(split.path(dim).__str__)
            yield batch


def _explained(split: CocoSplit, index: int) -> str:
    name = f"image {split.path(index)} (id {split.image_ids[index]})"
    try:
        np.asarray(_opened(split, index))
    except UndecodableImageError as error:
        return f"{name} cannot be used: {error}; replace the file, or its annotations."
    return (
        f"{name} could not be read a moment ago, and can be now; check the disk, then run the same "
        "command again."
    )
