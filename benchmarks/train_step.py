"""Time whole training and inference steps of named models.

    python benchmarks/train_step.py --models resnext50_32x4d --implementations auto native \
        --batch 2 --rounds 2

A training step is what `train.py` runs: normalising uint8 images, forward, loss,
backward and the SGD update, on all devices. An inference step takes the same
images to logits.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

# Run as a file, Python looks for modules beside it and not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure
from resnext_jax.data.augment import Batch, DeviceTransform
from resnext_jax.errors import ConfigError
from resnext_jax.models import create_model
from resnext_jax.models.registry import parse_name
from resnext_jax.models.variables import Arrays, merge, split
from resnext_jax.ops.grouped_conv import Implementation
from resnext_jax.training.mesh import (
    BATCH,
    MEMBER_AXIS,
    REPLICATED,
    batch_sharding,
    make_mesh,
    replicated_sharding,
)
from resnext_jax.training.optimizer import sgd
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import make_train_step

_IMAGE_SIZE = {"imagenet": 224, "cifar": 32}
_CLASSES = {"imagenet": 1000, "cifar": 10}

_TRANSFORM = DeviceTransform(
    mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), max_shift=0
)

# The recipes' optimiser, but for the rate: a low one keeps the weights sane
# however often the same random batch is learnt.
_OPTIMIZER = sgd(optax.constant_schedule(1e-3), momentum=0.9, nesterov=True, weight_decay=1e-4)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row's model and how it convolves."""

    model: str
    implementation: Implementation

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.model} {self.implementation}"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, ready to be run again and again.

    Attributes:
      run: takes one step and returns its result, perhaps not yet computed.
      compile_seconds: what compiling took, tracing included.
      temporary_bytes: memory for intermediate results on each device, as the
        compiler plans it; None where it does not say.
    """

    run: Callable[[], Any]
    compile_seconds: float
    temporary_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one program."""

    variant: Variant
    program: Program
    timing: measure.Timing


def build(variant: Variant, mesh: Mesh, args: argparse.Namespace) -> tuple[Program, Program]:
    """Compile a model's training step and its inference step."""
    stem = parse_name(variant.model).stem
    model = create_model(
        variant.model,
        num_classes=_CLASSES[stem],
        dtype=args.dtype,
        bn_axis_name=MEMBER_AXIS,
        conv_implementation=variant.implementation,
        rngs=nnx.Rngs(0),
    )
    graphdef, *arrays = split(model)
    params, batch_stats = jax.device_put(arrays, replicated_sharding(mesh))
    batch = random_batch(args.batch, args.image_size or _IMAGE_SIZE[stem], _CLASSES[stem])
    batch = jax.device_put(batch, batch_sharding(mesh))
    measure.progress(f"compiling {variant.label}")
    return (
        compile_training(graphdef, params, batch_stats, batch, mesh),
        compile_inference(graphdef, params, batch_stats, batch, mesh),
    )


def random_batch(images: int, size: int, classes: int) -> Batch:
    """Draw uint8 `image` `[N, size, size, 3]` and int32 `label` `[N]`."""
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (images, size, size, 3), np.uint8)),
        "label": jnp.asarray(rng.integers(0, classes, images, np.int32)),
    }


def compile_training(
    graphdef: Any, params: Arrays, batch_stats: Arrays, batch: Batch, mesh: Mesh
) -> Program:
    """Compile the training step; each run continues from the state of the one before."""
    # A copy, because the step takes its state's memory and inference needs the same arrays.
    params, batch_stats = jax.tree.map(jnp.copy, (params, batch_stats))
    state = jax.device_put(
        TrainState.create(params, batch_stats, _OPTIMIZER), replicated_sharding(mesh)
    )
    step = make_train_step(graphdef, _OPTIMIZER, _TRANSFORM.train, mesh)
    # `TrainStep` promises a function and no more. What is compiled ahead of its
    # first call must be a `jit`, and that one has to donate the state itself.
    compiled, seconds = _compile(jax.jit(step, donate_argnums=0), state, batch)

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    return Program(run, seconds, _temporary_bytes(compiled))


def compile_inference(
    graphdef: Any, params: Arrays, batch_stats: Arrays, batch: Batch, mesh: Mesh
) -> Program:
    """Compile the logits of a batch, in evaluation mode."""

    def logits(params: Arrays, batch_stats: Arrays, batch: Batch) -> jax.Array:
        model = merge(graphdef, params, batch_stats)
        model.eval()
        return model(_TRANSFORM.test(batch))

    # `shard_map` for the reason that `make_train_step` gives.
    sharded = jax.shard_map(
        logits, mesh=mesh, in_specs=(REPLICATED, REPLICATED, BATCH), out_specs=BATCH
    )
    compiled, seconds = _compile(jax.jit(sharded), params, batch_stats, batch)
    return Program(
        lambda: compiled(params, batch_stats, batch), seconds, _temporary_bytes(compiled)
    )


def _compile(function: jax.stages.Wrapped, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def _temporary_bytes(compiled: jax.stages.Compiled) -> int | None:
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def time_programs(
    programs: dict[Variant, Program], mode: str, args: argparse.Namespace
) -> list[Row]:
    """Time all models' steps of one mode, in turn."""
    measure.progress(f"timing {mode}")
    timings = measure.interleave(
        {variant.label: program.run for variant, program in programs.items()},
        rounds=args.rounds,
        limit=args.limit,
    )
    return [Row(variant, program, timings[variant.label]) for variant, program in programs.items()]


def print_mode(mode: str, rows: Sequence[Row], batch: int) -> None:
    """Print the table of one mode, and how the rows compare with the first."""
    first = rows[0]
    cells = []
    for row in rows:
        memory = row.program.temporary_bytes
        cells.append(
            [
                row.variant.model,
                row.variant.implementation,
                row.timing.cell(),
                measure.three_digits(batch / row.timing.median),
                f"{row.timing.median / first.timing.median:.2f}",
                f"{row.program.compile_seconds:.1f}",
                "-" if memory is None else f"{memory / 2**20:.0f}",
            ]
        )
    print(f"{mode} step")
    header = ["model", "conv", "ms", "images/s", "x first", "compile s", "temp MiB"]
    measure.print_table(header, cells, left=2)
    for row in rows[1:]:
        ratio = row.timing.median / first.timing.median
        print(
            f"{mode} step: {row.variant.label} takes {ratio:.2f} times the time of "
            f"{first.variant.label}, in one run."
        )
    print()


def records(mode: str, rows: Sequence[Row], batch: int) -> list[dict[str, Any]]:
    """Return what the JSON file says of one mode."""
    return [
        {
            "mode": mode,
            "model": row.variant.model,
            "implementation": row.variant.implementation,
            **row.timing.as_record(),
            "images_per_second": batch / row.timing.median,
            "ratio_to_first": row.timing.median / rows[0].timing.median,
            "compile_seconds": row.program.compile_seconds,
            "temporary_bytes": row.program.temporary_bytes,
        }
        for row in rows
    ]


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description="Time whole training and inference steps of named models."
    )
    parser.add_argument(
        "--models",
        nargs="+",
        type=measure.model_name,
        default=["resnet50", "resnext50_32x4d"],
        metavar="NAME",
        help="models to compare (default: resnet50 resnext50_32x4d)",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=("auto", "native", "packed"),
        default=["auto"],
        help="lowerings of all convolutions, each with every model (default: auto)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="compute dtype; parameters are float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=measure.positive_int,
        default=8,
        help="images a step, on all devices together (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=measure.positive_int,
        help="height and width (default: 224, and 32 for CIFAR networks)",
    )
    measure.add_common_options(parser, rounds=5, limit=60.0)
    return parser


def main() -> None:
    """Run the benchmark."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        mesh = make_mesh(args.batch, None)
    except ConfigError as error:
        parser.error(f"--batch: {error}")
    surroundings = measure.environment()
    measure.print_heading(
        f"Training and inference steps, batch {args.batch}, {args.dtype}", surroundings
    )
    variants = [Variant(model, how) for model in args.models for how in args.implementations]
    built = {variant: build(variant, mesh, args) for variant in variants}
    results = []
    for index, mode in enumerate(("training", "inference")):
        programs = {variant: pair[index] for variant, pair in built.items()}
        rows = time_programs(programs, mode, args)
        print_mode(mode, rows, args.batch)
        results += records(mode, rows, args.batch)
    print(f"Milliseconds: median (min-max); {measure.cut_note(args.limit)}")
    if args.json:
        measure.write_json(args.json, "train_step", args, surroundings, results)


if __name__ == "__main__":
    main()
