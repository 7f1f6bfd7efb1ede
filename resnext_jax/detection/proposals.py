"""Proposals: what the trained RPN hands to Fast R-CNN, through files (Ren et al. 2015, Sec. 3.3).

    python -m resnext_jax.detection.proposals --workdir=RPN_WORKDIR --out=FOLDER

writes the proposals for the training and for the test images, which configs of Fast R-CNN name as
`config.data.proposals`.
"""

import dataclasses
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.data.augment import Batch
from resnext_jax.detection import boxes as geometry
from resnext_jax.detection.anchors import make_anchors
from resnext_jax.detection.coco import CocoSplit, hash_of
from resnext_jax.detection.models import STRIDE
from resnext_jax.detection.nms import nms
from resnext_jax.detection.setup import ImagePass, anchor_spec
from resnext_jax.detection.sizes import original_boxes
from resnext_jax.errors import (
    DataError,
    UserError,
    one_line,
)
from resnext_jax.files import user_path
from resnext_jax.models.variables import Arrays

_INFO, _BOXES, _SCORES, _COUNTS = "proposals.json", "boxes.npy", "scores.npy", "counts.npy"


@dataclasses.dataclass(frozen=True)
class ProposalSpec:
    """Which of the moved anchors become proposals.

    Attributes:
      before: number of the best anchors that go into suppression; None: all.
      most: number of proposals kept.
      nms_iou: an anchor that overlaps a better one by more is suppressed.
      min_side: in pixels of the image as it is stored; smaller ones are dropped first.
    """

    before: int | None = None
    most: int = 2000
    nms_iou: float = 0.7
    min_side: float = 16.0


def proposal_spec(config: ConfigDict, *, training: bool) -> ProposalSpec:
    """Return which anchors become proposals, in training or in testing."""
    which = "train" if training else "test"
    return ProposalSpec(
        before=config.proposals[f"{which}_before"],
        most=config.proposals[which],
        nms_iou=config.proposals.nms_iou,
        min_side=config.proposals.min_side,
    )


def propose(
    logits: jax.Array,
    deltas: jax.Array,
    size: jax.Array,
    original_size: jax.Array,
    *,
    anchors: np.ndarray,
    spec: ProposalSpec,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Turn what the RPN says of an image into proposals, best first.

    Args:
      logits: `[N, 2]`, of no object and of an object.
      deltas: `[N, 4]`.
      size: `[2]`, height and width of the resized image, without padding.
      original_size: `[2]`, of the image as it is stored.
      anchors: `[N, 4]`.
      spec: which become proposals.

    Returns:
      Boxes `[P, 4]` in pixels of the resized image, scores `[P]` (probability of an object), and
      which places are filled, bool `[P]`.
    """
    scores = jax.nn.softmax(logits)[:, 1]
    boxes = geometry.clip(geometry.decode(deltas, jnp.asarray(anchors)), size)
    sides = boxes[:, 2:] - boxes[:, :2]
    shortest = spec.min_side * (size / original_size)[::-1]  # horizontally, vertically
    valid = (sides >= shortest).all(axis=1)
    if spec.before is not None and spec.before < len(anchors):
        _, best = jax.lax.top_k(jnp.where(valid, scores, -1), spec.before)
        boxes, scores, valid = boxes[best], scores[best], valid[best]
    kept, filled = nms(boxes, scores, valid, iou_threshold=spec.nms_iou, max_outputs=spec.most)
    return boxes[kept], scores[kept], filled


class Proposer:
    """An RPN, ready to be run on the images of a split."""

    def __init__(self, config: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh, *, training: bool):
        """Prepare the step (it compiles when first run).

        Args:
          config: of the RPN.
          graphdef: of its network.
          mesh: of the devices.
          training: whether Fast R-CNN is to be trained on the proposals, or tested.
        """
        spec = proposal_spec(config, training=training)

        def results(model: Any, images: jax.Array, batch: Batch) -> dict[str, jax.Array]:
            logits, deltas = model(images)
            height, width = (side // STRIDE for side in images.shape[1:3])
            anchors = make_anchors(height, width, anchor_spec(config))
            of_image = functools.partial(propose, anchors=anchors, spec=spec)
            boxes, scores, filled = jax.vmap(of_image)(
                logits, deltas, batch["size"], batch["original_size"]
            )
            return {"boxes": boxes, "scores": scores, "filled": filled}

        self._pass = ImagePass(config, graphdef, mesh, results)

    def run(
        self,
        split: CocoSplit,
        params: Arrays,
        batch_stats: Arrays,
        between_batches: Callable[[], None] = lambda: None,
    ) -> Generator[tuple[int, np.ndarray, np.ndarray], None, None]:
        """Yield the index of each image, its proposals `[n, 4]` and their scores `[n]`.

        Boxes are in pixels of the image as it is stored, best first.
        """
        found = self._pass.run(split, params, batch_stats, between_batches=between_batches)
        for index, image in found:
            filled = image["filled"]
            boxes = original_boxes(image["boxes"][filled], image["size"], image["original_size"])
            yield index, boxes, image["scores"][filled].astype(np.float32)


class StoredProposals:
    """The proposals of a split, read from files; `stored(index)` are those of an image.

    Attributes:
      digest: of the files.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str, split: CocoSplit):
        """Open `folder`/`name`, and check that it is of these images.

        Raises:
          DataError: it is missing or damaged, or of other images.
        """
        self._folder = user_path(folder, "config.data.proposals") / name
        path = self._folder / _INFO
        try:
            info = json.loads(path.read_text())
            images, self.digest = info["images"], str(info["digest"])
            if len(self._counts) != len(split) or len(self._boxes) != len(split):
                images = None
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"there are no whole proposals in {self._folder} ({one_line(error)}); make them "
                "with python -m resnext_jax.detection.proposals --workdir=... --out=..."
            ) from error
        if images == hash_of([split.image_ids]):
            # An earlier version compared the ids alone.
            print(
                f"note: the proposals in {self._folder} were made by an earlier version; that "
                f"sizes and crowds are those of {split.annotations} is not known",
                file=sys.stderr,
            )
        elif images != split.images_digest():
            raise DataError(
                f"the proposals in {self._folder} are of other images than {split.annotations} "
                "names (ids, file names, sizes and crowds are compared); make them again, with "
                "python -m resnext_jax.detection.proposals."
            )

    def __call__(self, index: int) -> np.ndarray:
        """Return the proposals of image `index`, float32 `[n, 4]`, best first."""
        return np.asarray(self._boxes[index, : self._counts[index]])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is mapped into memory: worker processes map it themselves."""
        return {"_folder": self._folder, "digest": self.digest}

    @functools.cached_property
    def _boxes(self) -> np.ndarray:
        boxes: np.ndarray = np.load(self._folder / _BOXES, mmap_mode="r")
        return boxes

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        counts: np.ndarray = np.load(self._folder / _COUNTS)
        return counts


def store(
    folder: Path,
    split: CocoSplit,
    most: int,
    found: Iterable[tuple[int, np.ndarray, np.ndarray]],
) -> int:
    """Write the proposals of a split; all or nothing is in `folder` afterwards.

    Args:
      folder: to be made, or replaced.
      split: the images.
      most: places for an image's proposals.
      found: of `Proposer.run`.

    Returns:
      How many there are.

    Raises:
      UserError: they cannot be written.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        shape = (len(split), most)
        # On the disk from the start: those of COCO's training images take 4.7 GB.
        boxes = np.lib.format.open_memmap(draft / _BOXES, "w+", np.float32, (*shape, 4))
        scores = np.lib.format.open_memmap(draft / _SCORES, "w+", np.float32, shape)
        counts = np.zeros(len(split), np.int32)
        for index, image_boxes, image_scores in found:
            counts[index] = count = len(image_boxes)
            boxes[index, :count], scores[index, :count] = image_boxes, image_scores
        boxes.flush()
        scores.flush()
        np.save(draft / _COUNTS, counts)
        info = {
            "images": split.images_digest(),
            "digest": hash_of([counts, *boxes]),
            "proposals": int(counts.sum()),
        }
        (draft / _INFO).write_text(json.dumps(info, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"proposals cannot be written to {folder} ({error.strerror or one_line(error)}); make "
            "room there or name another folder with --out=..."
        ) from error
    return int(counts.sum())


if __name__ == "__main__":
    from resnext_jax.commands.proposals import main

    main(sys.argv[1:])
