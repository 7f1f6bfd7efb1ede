"""Decoded images by index, and what happens to those that cannot be decoded.

Images are decoded in threads or worker processes, where an error would arrive out of order, or
as somebody else's exception. So a bad image is marked there, and the process that trains finds
the mark when the image's batch is due.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from resnext_jax.data.decode import ImageFile, UndecodableImageError, is_too_thin
from resnext_jax.data.deep_images import note_dim
from resnext_jax.data.sources import Source
from resnext_jax.errors import DataError, one_line

# Marks in an example and in a host's batch.
BAD, REPLACED, DIM = "bad_index", "replaced", "dim_index"
MARKS = (BAD, REPLACED, DIM)
_ADVICE = "repair the data set, or leave such images out with --config.data.on_error=skip."
# Consecutive bad images after which reading gives up: the data set itself is broken.
_LARGEST_GAP = 100


@dataclasses.dataclass(frozen=True)
class DecodedExamples:
    """The images of a split, decoded.

    Attributes:
      source: of the encoded images.
      replace: where an image cannot be decoded, give the next one that can.
    """

    source: Source
    replace: bool = False

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image, uint8 `[H, W, 3]`, and what `read` adds to it."""
        return self.read(index, _decoded)

    def read(
        self, index: int, prepare: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        """Prepare one image.

        Args:
          index: of the image.
          prepare: is given `image` (a `decode.ImageFile`) and `label` (int32),
            and returns a new example.

        Returns:
          The new example with `bad_index` int64 (the index if this image cannot be
          used, otherwise -1), `replaced` bool (whether another image replaces
          it, only with `replace`) and `dim_index` int64 (the
          index of the image in the example if it is dim, see `ImageFile`, otherwise
          -1). For an image that is bad and not replaced, a black pixel is prepared.
        """
        gap = min(_LARGEST_GAP, len(self) - 1) if self.replace else 0
        for step in range(gap + 1):
            place = (index + step) % len(self)
            try:
                opened = self._open(place)
                file: ImageFile = opened["image"]
                example = prepare(opened)
            except (DataError, UndecodableImageError):
                continue
            bad_index, dim_index = index if step else -1, place if file.is_dim else -1
            return example | marks(bad_index, replaced=step > 0, dim_index=dim_index)
        return prepare(black_example()) | marks(index)

    def note_dim(self, index: int) -> None:
        """Say on stderr that an image is dim, see `deep_images.note_dim`."""
        note_dim(lambda: self._name(index, self.source.examples[index]).rstrip(","))

    def explain(self, index: int) -> str:
        """Say in a sentence what is wrong with an image."""
        try:
            np.asarray(self._open(index)["image"])
        except UndecodableImageError as error:
            name = self._name(index, self.source.examples[index])
            return f"{name} cannot be decoded ({error}); {self._advice}"
        except DataError as error:
            return str(error)
        return (
            f"{self._name(index, {})} could not be read a moment ago, and can be now; "
            "check the disk, then run the same command again."
        )

    @property
    def _advice(self) -> str:
        if self.replace:  # where skipping is what was asked for
            return f"no usable image follows it within {_LARGEST_GAP}; repair the data set."
        return _ADVICE

    def _open(self, index: int) -> dict[str, Any]:
        try:
            example = self.source.examples[index]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            reason = one_line(error, longest=None)
            raise DataError(
                f"{self._name(index, {})} cannot be read ({reason}); {self._advice}"
            ) from error
        label = int(example["label"])
        if not 0 <= label < self.source.num_classes:
            raise DataError(
                f"{self._name(index, example)} has label {label}, outside the classes 0 to "
                f"{self.source.num_classes - 1}; {self._advice}"
            )
        image = ImageFile(example["image"], self.source.exif)
        if is_too_thin(*image.shape[:2]):
            raise DataError(
                f"{self._name(index, example)} is {image.shape[1]}x{image.shape[0]} pixels, too "
                f"long and thin to be cut; {self._advice}"
            )
        return {"image": image, "label": np.int32(label)}

    def _name(self, index: int, example: dict[str, Any]) -> str:
        file = example.get("file_name", example.get("id", b""))
        name = file.decode(errors="replace") if isinstance(file, bytes) else str(file)
        where = f"image {index} of {self.source.name!r}, split {self.source.split!r}"
        return f"{where}, file {name!r}," if name else f"{where},"


def black_example() -> dict[str, Any]:
    """Return a black pixel of class 0, to be prepared where there is no image."""
    return {"image": np.zeros((1, 1, 3), np.uint8), "label": np.int32(0)} | marks()


def _decoded(example: dict[str, Any]) -> dict[str, Any]:
    return example | {"image": np.asarray(example["image"])}


def marks(bad_index: int = -1, *, replaced: bool = False, dim_index: int = -1) -> dict[str, Any]:
    """Return the marks of an example, see `DecodedExamples.read`."""
    return {BAD: np.int64(bad_index), REPLACED: np.bool_(replaced), DIM: np.int64(dim_index)}
