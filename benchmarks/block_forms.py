"""The three block forms of Figure 3 on the digits: a step's time, and the error after training.

    python benchmarks/block_forms.py --seeds 3

Times a training step of the demo's network in each form, interleaved in one
process. Then trains each form from each seed by the demo's recipe and prints
the final test errors. Unlike the other benchmarks it needs the data pipeline.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure
from resnext_jax.config import build
from resnext_jax.configs import digits_resnext29
from resnext_jax.data.augment import Batch
from resnext_jax.models.blocks import FORMS, Form
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from resnext_jax.runs.log import read_metrics
from resnext_jax.training import classification, setup
from resnext_jax.training.step import make_train_step

_CLASSES = 10
_TRAIN_IMAGES = 1438


def demo_config(form: Form, seed: int, epochs: float) -> ConfigDict:
    """Return the demo's recipe in another form."""
    config = digits_resnext29.get_config()
    config.model.form = form
    config.seed = seed
    config.num_epochs = epochs
    return config


def random_batch(config: ConfigDict) -> Batch:
    """Draw a batch as the pipeline ships it."""
    rng = np.random.default_rng(0)
    size, images = config.data.image_size, config.batch_size
    return {
        "image": rng.integers(0, 256, (images, size, size, 3), np.uint8),
        "label": rng.integers(0, _CLASSES, images, np.int32),
        "random": rng.random((images, 2), np.float32),
    }


def training_step(form: Form) -> Callable[[], Any]:
    """Compile the demo's training step in one form; each run continues from the one before."""
    config = demo_config(form, seed=0, epochs=1.0)
    mesh = make_mesh(config.batch_size, config.bn_group_size)
    schedule = build.build_schedule(config, _TRAIN_IMAGES)
    optimizer = build.build_optimizer(config, schedule)
    graphdef, state = setup.build_state(config, _CLASSES, optimizer, mesh)
    step = make_train_step(graphdef, optimizer, build.device_transform(config).train, mesh)
    batch = jax.device_put(random_batch(config), batch_sharding(mesh))

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    measure.progress(f"compiling form {form}")
    jax.block_until_ready(run())
    return run


def trained_error(form: Form, seed: int, epochs: float) -> float:
    """Train and return the final top-1 test error in percent."""
    measure.progress(f"training form {form} from seed {seed}")
    with tempfile.TemporaryDirectory() as workdir:
        classification.train(demo_config(form, seed, epochs), workdir)
        records = read_metrics(Path(workdir))
    return [record["top1_error"] for record in records if record["split"] == "test"][-1]


def main() -> None:
    """Measure and print."""
    parser = measure.make_parser(__doc__)
    parser.add_argument(
        "--seeds",
        type=measure.positive_int,
        default=3,
        help="runs of each form (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=measure.positive_seconds,
        default=12.0,
        help="length of each run (default: the demo's %(default)s)",
    )
    measure.add_common_options(parser, rounds=20, limit=60.0)
    args = parser.parse_args()
    surroundings = measure.environment()
    measure.print_heading("Block forms of the demo's network on the digits", surroundings)

    steps: dict[str, Callable[[], Any]] = {form: training_step(form) for form in FORMS}
    timings = measure.interleave(steps, rounds=args.rounds, limit=args.limit)
    fastest = timings["c"].median
    rows, records = [], []
    for form in FORMS:
        errors = [trained_error(form, seed, args.epochs) for seed in range(args.seeds)]
        rows.append(
            [
                form,
                timings[form].cell(),
                f"{timings[form].median / fastest:.2f}",
                " ".join(f"{error:.2f}" for error in errors),
                f"{statistics.mean(errors):.2f}",
            ]
        )
        records.append({"form": form, "test_errors": errors, **timings[form].as_record()})
    header = ["form", "step, ms", "against c", "test errors, % by seed", "mean"]
    measure.print_table(header, rows, left=1)
    if args.json:
        measure.write_json(args.json, "block_forms", args, surroundings, records)


if __name__ == "__main__":
    main()
