"""Images a second, and a core, of the ImageNet training transform on the host.

    python benchmarks/input_pipeline.py

Decodes JPEGs, cuts the random sized crop, makes it 224x224 by bicubic
interpolation, mirrors half of them, and collects uint8 batches: by this
repository's functions alone, by its pipeline in threads and in worker processes,
and in the way of torchvision on Pillow. With TensorFlow in an environment of its
own tf.data does the same, by `decode_and_crop_jpeg`:

    python -m venv tf_environment
    tf_environment/bin/pip install tensorflow-cpu
    python benchmarks/input_pipeline.py --tensorflow-python tf_environment/bin/python

The JPEGs are parts of scikit-learn's two photographs at ImageNet's typical
500x375. Every variant is a process of its own on its own choice of cores; they
take turns, and pause in between. Images a core are images by processor
time, of all threads and processes of a variant, so what else the machine does
changes them little. Only Pillow and what says so antialias, as is their habit.

After the table: colour, lighting and normalisation on the device, and in NumPy;
and what the cores beside a GPU would feed, by arithmetic.

Needs Linux.
"""

import argparse
import contextlib
import functools
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

# Run as a file, Python looks for modules beside it and not in the repository.
_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent))

from benchmarks import input_colour, input_rows, measure
from benchmarks.input_rows import Rate, Variant
from benchmarks.input_variants import IMAGE_SIZE
from benchmarks.input_worker import Worker, WorkerError

_WIDTH, _HEIGHT = 500, 375
# Mean size of a file in ImageNet's training set: 148 GB, 1.28 million files.
_IMAGENET_KB = 115


def write_photograph_parts(folder: Path, count: int, quality: int, seed: int = 0) -> list[int]:
    """Write JPEG files of random parts of two photographs; return their sizes in bytes."""
    rng = np.random.default_rng(seed)
    photographs = load_sample_images().images
    sizes = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        height, width = photograph.shape[:2]
        # Never enlarged: that would make files smaller than those of a camera.
        tall = int(rng.integers(_HEIGHT, height, endpoint=True))
        wide = tall * _WIDTH // _HEIGHT
        top, left = rng.integers(0, [height - tall, width - wide], endpoint=True)
        part = Image.fromarray(photograph[top : top + tall, left : left + wide])
        file = io.BytesIO()
        part.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(
            file, "JPEG", quality=quality, subsampling="4:2:0"
        )
        (folder / f"{index:05}.jpg").write_bytes(file.getvalue())
        sizes.append(len(file.getvalue()))
    return sizes


def variants_of(workers: Sequence[int], cores: int, tensorflow_python: str | None) -> list[Variant]:
    """List what to measure with `cores` cores; first on one core each, then on more."""
    ours = (sys.executable, str(_HERE / "input_variants.py"))
    alone = [
        Variant("transform alone", 1, (*ours, "transform")),
        Variant("transform alone, antialiased", 1, (*ours, "antialiased")),
        Variant("Pillow", 1, (*ours, "pillow")),
    ]
    pipelines = []
    for count in workers:
        name = f"pipeline, {count} worker{'s' * (count > 1)}" if count else "pipeline, threads"
        choices = (min(count, cores),) if count else (1, cores)
        grain = (*ours, "grain", "--workers", str(count))
        pipelines += [Variant(name, chosen, grain) for chosen in choices]
    if tensorflow_python:
        tfdata = (tensorflow_python, str(_HERE / "input_tfdata.py"))
        pipelines += [Variant("tf.data", chosen, tfdata) for chosen in (1, cores)]
    # Once only, on a machine of one core. Sorting keeps the order among equals.
    return sorted(dict.fromkeys(alone + pipelines), key=lambda variant: variant.cores)


def start(variant: Variant, folder: Path, batch_size: int) -> Worker:
    """Start a variant's process.

    Raises:
      WorkerError: it failed, or its batches are not what is to be compared.
    """
    measure.progress(f"starting {variant.name} on {variant.cores} core(s)")
    cores = sorted(os.sched_getaffinity(0))[: variant.cores]
    command = [*variant.command, str(folder), "--batch-size", str(batch_size)]
    worker = Worker(command, cores)
    made = worker.about["dtype"], worker.about["shape"]
    if made != ("uint8", [batch_size, IMAGE_SIZE, IMAGE_SIZE, 3]):
        worker.close()
        raise WorkerError(f"{variant.name} makes other batches than the rest: {made}")
    return worker


def rates_of(workers: Mapping[Variant, Worker], args: argparse.Namespace) -> list[Rate]:
    """Measure the variants in turn."""
    names = {f"{variant.name} {variant.cores}": variant for variant in workers}
    runs = {
        name: functools.partial(workers[variant].run, args.batches)
        for name, variant in names.items()
    }
    before = {variant: worker.usage() for variant, worker in workers.items()}
    timings = measure.interleave(runs, rounds=args.rounds, limit=args.limit)
    rates = []
    for name, variant in names.items():
        start, end = before[variant], workers[variant].usage()
        made = (end.batches - start.batches) * args.batch_size
        core = made / (end.cpu_seconds - start.cpu_seconds)
        rates.append(Rate(variant, timings[name], args.batches * args.batch_size, core))
    return rates


def with_tensorflow(text: str) -> str:
    """Read the path of a Python that has TensorFlow from the command line."""
    look = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('tensorflow'))"
    try:
        found = subprocess.run([text, "-c", look], check=False).returncode == 0
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot run {text}: {error.strerror}") from error
    if not found:
        raise argparse.ArgumentTypeError(f"{text} has no TensorFlow; install tensorflow-cpu there")
    return text


def worker_count(text: str) -> int:
    """Read a number of worker processes from the command line."""
    return 0 if text == "0" else measure.positive_int(text)


def jpeg_quality(text: str) -> int:
    """Read a JPEG quality from the command line."""
    quality = measure.positive_int(text)
    if quality > 100:
        raise argparse.ArgumentTypeError(f"must be at most 100, got {quality}")
    return quality


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = measure.make_parser(__doc__)
    add = functools.partial(parser.add_argument, type=measure.positive_int)
    parser.add_argument(
        "--workers",
        nargs="+",
        type=worker_count,
        default=[0, 1, 2],
        metavar="COUNT",
        help="worker processes of the pipeline, on as many cores; 0: threads, on one core and "
        "on all (default: 0 1 2)",
    )
    parser.add_argument(
        "--tensorflow-python",
        type=with_tensorflow,
        metavar="PYTHON",
        help="Python of an environment with TensorFlow (default: without tf.data)",
    )
    add("--images", default=64, help="different JPEG files (default: %(default)s)")
    parser.add_argument(
        "--quality",
        type=jpeg_quality,
        default=90,
        help="of the JPEG files, up to 100 (default: %(default)s)",
    )
    add("--batch-size", default=64, help="images in a batch (default: %(default)s)")
    add("--batches", default=8, help="batches in a sample (default: %(default)s)")
    add(
        "--cores-beside",
        default=16,
        metavar="CORES",
        help="beside one GPU, for the arithmetic (default: %(default)s)",
    )
    measure.add_common_options(parser, rounds=20, limit=120.0)
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    surroundings = measure.environment()
    cores = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sizes = write_photograph_parts(folder, args.images, args.quality)
        workers: dict[Variant, Worker] = {}
        for variant in variants_of(args.workers, cores, args.tensorflow_python):
            workers[variant] = stack.enter_context(start(variant, folder, args.batch_size))
            surroundings["versions"] |= workers[variant].about["versions"]
        title = f"The ImageNet training transform on the host, {IMAGE_SIZE}x{IMAGE_SIZE}"
        measure.print_heading(title, surroundings)
        mean_kb = sum(sizes) / len(sizes) / 1e3
        print(
            f"{len(sizes)} JPEGs of {_WIDTH}x{_HEIGHT}, quality {args.quality}, {mean_kb:.0f} kB "
            f"on average (ImageNet's: about {_IMAGENET_KB} kB)\n"
        )
        rates = rates_of(workers, args)
    input_rows.print_rates(rates, args.limit)
    colour = input_colour.timings(args.batch_size, IMAGE_SIZE, rounds=args.rounds, limit=args.limit)
    # The first is the transform alone.
    input_rows.print_colour(colour, args.batch_size, rates[0].core)
    input_rows.print_feeding(rates, args.cores_beside)
    if args.json:
        more = {
            "mean_jpeg_bytes": 1e3 * mean_kb,
            "colour": {place: timing.as_record() for place, timing in colour.items()},
        }
        rows = [rate.as_record(input_rows.tfdata_core(rates)) for rate in rates]
        measure.write_json(args.json, "input_pipeline", args, surroundings | more, rows)


def main() -> None:
    """Run the benchmark."""
    args = make_parser().parse_args()
    if sys.platform != "linux":
        sys.exit("input_pipeline: needs Linux, to choose the cores of a process.")
    try:
        run(args)
    except WorkerError as error:
        sys.exit(f"input_pipeline: {error}")


if __name__ == "__main__":
    main()
