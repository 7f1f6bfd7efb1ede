"""The training transform by tf.data; `input_pipeline` starts this in TensorFlow's environment.

    python benchmarks/input_tfdata.py FOLDER --batch-size 64

Needs TensorFlow and nothing else of this repository's requirements. It uses the
cores that it is limited to. On one core images are mapped one after the other,
which is no slower there than a thread pool of one.
"""

import argparse
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.input_worker import read_images, serve

_IMAGE_SIZE = 224
# The same law as this repository's: see `resnext_jax.data.transforms.random_window`.
_AREA, _ASPECT, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


def window(jpeg: Any) -> Any:
    """Draw a random sized crop: int32 `[4]`, top, left, height and width.

    `tf.image.sample_distorted_bounding_box` would be as fast, but its windows
    are smaller on average. All tries are drawn at once, and the first that fits
    is taken; the whole image follows them.
    """
    sides = tf.cast(tf.io.extract_jpeg_shape(jpeg)[:2], tf.float32)
    random = tf.random.uniform([_TRIES, 3])
    area = _between(random[:, :1], _AREA) * sides[0] * sides[1]
    aspect = _between(random[:, 1:2], _ASPECT)
    aspect = tf.where(random[:, 2:] < 0.5, aspect, 1 / aspect)
    tries = tf.round(tf.concat([tf.sqrt(area / aspect), tf.sqrt(area * aspect)], 1))
    tries = tf.concat([tries, sides[None]], 0)
    size = tries[tf.argmax(tf.reduce_all(tries <= sides, 1))]
    corner = tf.floor(tf.random.uniform([2]) * (sides - size + 1))
    return tf.cast(tf.concat([corner, size], 0), tf.int32)


def _between(random: Any, limits: tuple[float, float]) -> Any:
    return limits[0] + (limits[1] - limits[0]) * random


def prepare(jpeg: Any) -> Any:
    """Make a training image, uint8 `[224, 224, 3]`, of a JPEG file."""
    image = tf.image.decode_and_crop_jpeg(jpeg, window(jpeg), channels=3)
    image = tf.image.resize(image, (_IMAGE_SIZE, _IMAGE_SIZE), method="bicubic")
    # Turned as bytes, a quarter of what it would be as float32.
    return tf.image.random_flip_left_right(tf.saturate_cast(tf.round(image), tf.uint8))


def batches_of(images: Sequence[bytes], batch_size: int, cores: int) -> Generator[Any, None, None]:
    """Make batches, uint8 `[N, 224, 224, 3]`, without end."""
    options = tf.data.Options()
    options.deterministic = False
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.Dataset.from_tensor_slices(list(images)).repeat()
    if cores == 1:
        data = data.map(prepare).batch(batch_size, drop_remainder=True)
    else:
        options.threading.private_threadpool_size = cores
        data = data.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        data = data.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    yield from data.with_options(options)


def main() -> None:
    """Serve batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, required=True)
    args = parser.parse_args()
    tf.config.set_visible_devices([], "GPU")
    cores = len(os.sched_getaffinity(0))
    batches = batches_of(read_images(args.folder), args.batch_size, cores)
    serve(batches, {"tensorflow": tf.__version__})


if __name__ == "__main__":
    main()
