"""Time whole steps of both detection stages, and an image from pixels to detections.

    python benchmarks/detection_steps.py
    python benchmarks/detection_steps.py --models resnet50 resnext50_32x4d --dtype bfloat16 \
        --batch 2 --rounds 10

The paper's recipes (configs/coco.py) on one batch of synthetic scenes, of 600x1000 unless set
otherwise, that is used again and again; 2,000 proposals an image, drawn at random and around the
objects. Rows of a model are timed in turn. Before that, some steps at a tenth of the rate show
whether the loss on the batch falls; peak memory as the device reports it, over all rows so
far. "detection" is both networks on a batch, NMS included: what infer does without files.
"""

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import ConfigDict

from benchmarks import measure
from resnext_jax.configs import coco
from resnext_jax.detection import training as detector_training
from resnext_jax.detection.coco import CocoSplit, read_coco
from resnext_jax.detection.detector import Detector
from resnext_jax.detection.proposals import Proposer, store
from resnext_jax.detection.setup import open_split
from resnext_jax.detection.synthetic import SceneSpec, make_scenes
from resnext_jax.training.profiling import peak_memory
from resnext_jax.training.task import Task

STAGES = ("rpn", "fast_rcnn")
_FEW = 100  # steps of the schedules, of which none is reached


@dataclasses.dataclass
class Training:
    """A stage's step on a fixed batch, each from the state that the one before left."""

    task: Task
    step: Callable[..., Any]
    state: Any
    batch: Any

    def run(self) -> jax.Array:
        """Take a step; returns its loss."""
        self.state, metrics = self.step(self.state, self.batch)
        loss: jax.Array = metrics["loss"]
        return loss


def make_data(folder: Path, args: argparse.Namespace) -> None:
    """Make scenes of the images' size, and proposals for them."""
    side = min(args.size)
    count = 2 * args.batch * jax.device_count()
    make_scenes(
        folder, SceneSpec(train=count, test=count, side=side, smallest=side // 6, largest=side // 3)
    )
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        split = open_scenes(folder, name)
        found = []
        for index in range(len(split)):
            corners = rng.uniform(0, 0.8 * side, (args.proposals, 2))
            sides = rng.uniform(16, side / 2, (args.proposals, 2))
            boxes = np.concatenate([corners, corners + sides], axis=1)
            near = split.ground_truth(index).boxes
            boxes[: len(near)] = near + rng.uniform(-side / 50, side / 50, near.shape)
            boxes = boxes.clip(0, side).astype(np.float32)
            found.append((index, boxes, np.linspace(1, 0, len(boxes), dtype=np.float32)))
        store(folder / "proposals" / name, split, args.proposals, found)


def open_scenes(folder: Path, name: str) -> CocoSplit:
    """Read a split of the scenes."""
    return read_coco(folder / "annotations" / f"instances_{name}.json", folder / name, quiet=True)


def make_config(stage: str, model: str, folder: Path, args: argparse.Namespace) -> ConfigDict:
    """Return the paper's recipe on the scenes."""
    config = coco.get_config(f"{stage},{model}")
    config.model.dtype = args.dtype
    config.model.remat = args.remat
    config.data.data_dir = str(folder)
    for name in ("train", "test"):
        config.data[f"{name}_annotations"] = f"annotations/instances_{name}.json"
        config.data[f"{name}_images"] = name
    config.data.short_side, config.data.long_side = args.size
    config.data.num_workers = 0
    if stage == "fast_rcnn":
        config.data.proposals = str(folder / "proposals")
        config.data.train_proposals = args.proposals
    config.batch_size = args.batch * jax.device_count()
    config.eval_batch_size = config.batch_size
    config.optimizer.learning_rate *= 0.1
    # The networks start from random weights, whose fixed norms do not keep activations in bounds.
    config.optimizer.clip_norm = 1.0
    config.num_epochs = _FEW * config.batch_size / config.images_per_epoch
    config.schedule.boundaries = ()
    return config


def make_training(config: ConfigDict) -> Training:
    """Build a stage, and read its first batch."""
    task, state = detector_training.prepare(config, detector_training.training_mesh(config))
    with contextlib.closing(task.batches(0, 1)) as batches:
        batch = next(batches)
    return Training(task, task.train_step, state, batch)


def make_detection(rpn: Training, fast_rcnn: Training) -> Callable[[], int]:
    """Return what finds the objects of all test images."""
    networks = [
        (stage.task, (stage.state.params, stage.state.batch_stats)) for stage in (rpn, fast_rcnn)
    ]
    weights = [jax.tree.map(np.asarray, arrays) for _, arrays in networks]
    (first, _), (second, _) = networks
    proposer = Proposer(first.config, first.graphdef, first.mesh, training=False)
    detector = Detector(second.config, second.graphdef, second.mesh)
    split = open_split(first.config, "test")

    def run() -> int:
        proposals = {index: boxes for index, boxes, _ in proposer.run(split, *weights[0])}
        found = detector.run(split, *weights[1], proposals=proposals.__getitem__)
        return sum(len(image.boxes) for _, image in found)

    return run


def measure_model(model: str, folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of a model."""
    trainings, losses = {}, {}
    for stage in STAGES:
        measure.progress(f"{model}, {stage}: compiling")
        training = make_training(make_config(stage, model, folder, args))
        losses[stage] = [float(training.run()) for _ in range(args.steps)]
        trainings[stage] = training
    variants: dict[str, Callable[[], Any]] = {
        stage: training.run for stage, training in trainings.items()
    }
    images = {stage: args.batch * jax.device_count() for stage in STAGES}
    if args.detection:
        variants["detection"] = make_detection(trainings["rpn"], trainings["fast_rcnn"])
        images["detection"] = len(open_split(trainings["rpn"].task.config, "test"))
    timings = measure.interleave(variants, rounds=args.rounds, limit=args.limit)
    peak = peak_memory()
    for name, timing in timings.items():
        yield {
            "model": model,
            "row": name,
            "images": images[name],
            "seconds": timing.seconds,
            "images_per_second": images[name] / timing.median,
            "peak_memory_bytes": peak,
            "losses": losses.get(name),
            "cell": timing.cell(),
        }


def main() -> None:
    """Measure and print."""
    parser = measure.make_parser(__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        type=measure.model_name,
        default=["resnet50", "resnext50_32x4d"],
        help="backbones (default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=measure.positive_int, default=1, help="images a device")
    parser.add_argument(
        "--size",
        nargs=2,
        type=measure.positive_int,
        default=[600, 1000],
        metavar=("SHORT", "LONG"),
        help="sides of images (default: %(default)s)",
    )
    parser.add_argument(
        "--proposals", type=measure.positive_int, default=2000, help="an image, to train on"
    )
    parser.add_argument(
        "--steps", type=measure.positive_int, default=5, help="to see whether the loss falls"
    )
    parser.add_argument("--remat", action="store_true", help="compute blocks again")
    parser.add_argument(
        "--no-detection", dest="detection", action="store_false", help="leave that row out"
    )
    measure.add_common_options(parser, rounds=3, limit=120.0)
    args = parser.parse_args()

    surroundings = measure.environment()
    measure.print_heading("Detection: a step of each stage, and images to detections", surroundings)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "scenes")
        make_data(folder, args)
        for model in args.models:
            rows.extend(measure_model(model, folder, args))
    measure.print_table(
        ["model", "row", "images", "ms", "images/s", "peak GB", "loss, first to last"],
        [
            [
                row["model"],
                row["row"],
                str(row["images"]),
                row["cell"],
                measure.three_digits(row["images_per_second"]),
                f"{row['peak_memory_bytes'] / 1e9:.2f}"
                if row["peak_memory_bytes"]
                else "not reported",
                f"{row['losses'][0]:.3f} to {row['losses'][-1]:.3f}" if row["losses"] else "-",
            ]
            for row in rows
        ],
        left=2,
    )
    print(measure.cut_note(args.limit))
    if args.json:
        measure.write_json(args.json, "detection_steps", args, surroundings, rows)


if __name__ == "__main__":
    main()
