"""Letting tfds shuffle more than fits in memory, without TensorFlow."""

import contextlib
import resource
import types
from collections.abc import Iterator

from tensorflow_datasets.core import shuffle

# Files that may be open beside tfds's buckets: archives, shards, libraries.
_OTHER_FILES = 500


class _NeverRaisedError(Exception):
    """Replaces an error that only TensorFlow's files raise."""


# What tfds's shuffler uses of TensorFlow: opening, finding and deleting its own bucket files.
# Their paths are epath's, which can do all three.
_FILES = types.SimpleNamespace(
    io=types.SimpleNamespace(
        gfile=types.SimpleNamespace(
            GFile=lambda path, mode: path.open(mode),
            exists=lambda path: path.exists(),
            remove=lambda path: path.unlink(),
        )
    ),
    errors=types.SimpleNamespace(ResourceExhaustedError=_NeverRaisedError),
)


@contextlib.contextmanager
def spilling() -> Iterator[None]:
    """While this is entered, tfds spills examples to disk through Python's own files.

    tfds holds a split in memory until it is 1 GB, then sorts it through a
    thousand files in the folder being prepared, for which it asks TensorFlow.
    The order of the examples and the shards are the same as with TensorFlow.
    The number of files that may be open is raised, and stays so.
    """
    tensorflow = shuffle.tf
    _allow_open_files(shuffle.BUCKETS_NUMBER + _OTHER_FILES)
    shuffle.tf = _FILES
    try:
        yield
    finally:
        shuffle.tf = tensorflow


def _allow_open_files(number: int) -> None:
    """Raise the number of files that may be open as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        number = min(number, hard)
    # The usual limit, 1024, is too low by a few.
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
