"""Test images of many shapes, grouped into batches of one shape each."""

import collections
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnext_jax.data.deep_images import open_picture
from resnext_jax.data.headers import orientation
from resnext_jax.data.reading import BAD, DecodedExamples
from resnext_jax.data.transforms import DenseTransform

# Reading waits for the disk more than it computes.
_THREADS = 8
BLANK = -1


@dataclasses.dataclass(frozen=True)
class ShapeBatch:
    """Which images make up a batch, and how large they are made.

    Attributes:
      short_side: what the images' short side is resized to, in pixels.
      shape: height and width of the result, see `DenseTransform.shape`.
      images: int64 `[B]`, indices of images; `BLANK` where the batch is filled up.
    """

    short_side: int
    shape: tuple[int, int]
    images: np.ndarray

    def part(self, positions: np.ndarray) -> "ShapeBatch":
        """Return the part at some positions `[b]` of the batch, such as one host's."""
        return dataclasses.replace(self, images=self.images[positions])


def image_sizes(examples: DecodedExamples) -> np.ndarray:
    """Read the size of every image from its file's header.

    Returns:
      int64 `[N, 2]`, heights and widths; 0 and 0 where an image cannot be decoded. (One with
      a good header and damaged data after it has a size.)
    """

    def size_of(index: int) -> tuple[int, int]:
        try:
            data = examples.source.examples[index]["image"]
            with open_picture(data) as picture:
                size = picture.height, picture.width
            sideways = examples.source.exif == "follow" and orientation(data) >= 5
            return size[::-1] if sideways else size
        except Exception:
            # Pillow's readers raise anything. What they refuse, the decoder may still read.
            example = examples[index]
            height, width = example["image"].shape[:2]
            return (0, 0) if example[BAD] >= 0 else (height, width)

    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = list(threads.map(size_of, range(len(examples))))
    return np.array(sizes, np.int64).reshape(-1, 2)


def by_aspect(sizes: np.ndarray) -> np.ndarray:
    """Order images by width over height, so that images of a shape at any scale are neighbours.

    Args:
      sizes: `[N, 2]`, of `image_sizes`; images of size 0 are left out.

    Returns:
      int64 `[M]`, indices.
    """
    there = np.flatnonzero(sizes[:, 0])
    order: np.ndarray = there[np.argsort(sizes[there, 1] / sizes[there, 0], kind="stable")]
    return order


def plan_batches(
    sizes: np.ndarray,
    order: np.ndarray,
    transform: DenseTransform,
    short_side: int,
    *,
    pixels: int,
    devices: int,
) -> list[ShapeBatch]:
    """Group images into batches of one shape.

    Args:
      sizes: `[N, 2]`, of `image_sizes`.
      order: `[M]`, of the images to take, in which those of a shape follow each other.
      transform: knows the shape of each result.
      short_side: what short sides are resized to.
      pixels: in a batch, at most, unless one image a device is more: a bound on memory, whatever
        the shape.
      devices: batches are a multiple of it.

    Returns:
      Batches by shape, then in the order given; each image in one of them. Those of a shape have
      equally many places, so that it is compiled once.
    """
    groups: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    for index in order.tolist():
        height, width = sizes[index].tolist()
        groups[transform.shape(height, width, short_side)].append(index)
    plan = []
    for shape, images in sorted(groups.items()):
        most = max(1, pixels // (shape[0] * shape[1] * devices)) * devices
        count = -(-len(images) // most)
        # Spread evenly: fewer blanks than with full batches and a rest.
        places = -(-len(images) // (count * devices)) * devices
        filled = np.full(count * places, BLANK, np.int64)
        filled[: len(images)] = images
        plan += [ShapeBatch(short_side, shape, part) for part in np.split(filled, count)]
    return plan
