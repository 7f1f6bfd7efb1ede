"""The embedded data set: 1,797 scanned handwritten digits that scikit-learn ships in its wheel."""

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from resnext_jax.data.builders.base import Builder

_CITATION = """
@misc{alpaydin1998optical,
  title={Optical Recognition of Handwritten Digits},
  author={Alpaydin, E. and Kaynak, C.},
  year={1998},
  publisher={UCI Machine Learning Repository},
  doi={10.24432/C50P49}
}
"""

# One digit in five, of each class, is for testing.
_TEST_FRACTION = 0.2

_PREPARED_BYTES = 2**20


class Digits(Builder):
    """Handwritten digits, 8x8 pixels, 10 classes, split into train and test."""

    TITLE = "the digits"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}

    def check_inputs(self) -> int:
        """Return the bytes that the prepared data set takes, about; it needs no raw files."""
        return _PREPARED_BYTES

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Digits written by 13 people, scanned and reduced to 8x8 grey values "
                "(the test part of UCI's optical recognition set, as scikit-learn ships it), "
                "split here into train and test with every class in proportion."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        # Imported here: reading the prepared set needs no scikit-learn.
        from sklearn.datasets import load_digits

        data = load_digits()
        # 16 grey levels over white paper; 17 values (0..16) spread over 0..255.
        images = np.rint(data.images * (255 / 16)).astype(np.uint8)
        test = test_indices(data.target)
        train = np.setdiff1d(np.arange(len(images)), test)
        return {
            "train": self._generate_examples(images, data.target, train),
            "test": self._generate_examples(images, data.target, test),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            # Encoded here, because tfds encodes arrays with TensorFlow.
            png = cv2.imencode(".png", images[index])[1].tobytes()
            yield int(index), {"image": png, "label": int(labels[index])}


def test_indices(labels: np.ndarray) -> np.ndarray:
    """Pick the test images: a fifth of every class, the same on every machine.

    Within a class the images are ranked by a hash of their index, which no
    change of a library's random generator can alter.

    Args:
      labels: `[N]` integer classes.

    Returns:
      Sorted indices of the test images.
    """
    chosen: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda index: hashlib.sha256(str(index).encode()).digest())
        chosen.extend(members[: round(_TEST_FRACTION * len(members))])
    return np.sort(np.asarray(chosen))
