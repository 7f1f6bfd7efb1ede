"""Training a classifier: the data, the step and the scores of a run."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.checks import check_start, validate
from resnext_jax.config.fields import config_facts
from resnext_jax.data.augment import Batch
from resnext_jax.data.pipeline import host_positions, to_devices, train_batches
from resnext_jax.data.sources import Source, check_available, open_splits
from resnext_jax.evaluation.run import Evaluation
from resnext_jax.models.variables import Arrays
from resnext_jax.parallel.distributed import check_hosts_agree
from resnext_jax.parallel.mesh import batch_sharding
from resnext_jax.runs.best import Measure
from resnext_jax.training import loop, setup
from resnext_jax.training.state import TrainState
from resnext_jax.training.step import make_train_step
from resnext_jax.training.task import Task

MEASURE = Measure("top1_error", "top-1 error (%)", highest=False)


def train(
    config: ConfigDict, workdir: str | os.PathLike[str], *, process_ends: bool = False
) -> TrainState:
    """Train a classifier (paper Sec. 4), resuming where `workdir` has a checkpoint.

    Args:
      config: from `configs/`.
      workdir: folder for config, metrics, checkpoints, TensorBoard and plots.
      process_ends: see `loop.run`.

    Returns:
      The final state.

    Raises:
      UserError: config, devices, data, workdir or checkpoint are unusable.
      InterruptedRunError: see `loop.run`.
    """
    validate(config)
    mesh = build.training_mesh(config)
    check_available(config.data.name, config.data.data_dir)
    check_start(config)
    return loop.run(workdir, lambda: prepare(config, mesh), process_ends=process_ends)


def prepare(config: ConfigDict, mesh: Mesh) -> tuple[Task, TrainState]:
    """Open the data, preparing it if need be, and build everything of a run.

    Returns:
      The run, and a fresh state on all devices of the mesh.

    Raises:
      UserError: the data cannot be read, or the hosts disagree.
    """
    source, test_source = open_splits(config)
    check_hosts_agree(lambda: config_facts(config) | source.facts() | test_source.facts())
    schedule = build.build_schedule(config, len(source))
    optimizer = build.build_optimizer(config, schedule)
    graphdef, state = setup.build_state(config, source.num_classes, optimizer, mesh)
    evaluation = Evaluation(config, test_source, graphdef, mesh)

    def batches(start_step: int, num_steps: int) -> Generator[Batch, None, None]:
        return _batches(config, source, mesh, start_step, num_steps)

    def test(
        params: Arrays, batch_stats: Arrays, between_batches: Callable[[], None]
    ) -> dict[str, float]:
        return evaluation.run(params, batch_stats, between_batches).as_record()

    task = Task(
        config=config,
        title=f"{config.model.name} on {config.data.name}",
        batch_note=f" in batch-norm groups of {config.bn_group_size or config.batch_size}",
        measure=MEASURE,
        data=source,
        num_images=len(source),
        mesh=mesh,
        graphdef=graphdef,
        schedule=schedule,
        train_step=make_train_step(
            graphdef,
            optimizer,
            build.device_transform(config).train,
            mesh,
            setup.step_spec(config, len(source)),
        ),
        batches=batches,
        test=test,
        describe_test=_describe_test,
    )
    return task, state


def _batches(
    config: ConfigDict, source: Source, mesh: Mesh, start_step: int, num_steps: int
) -> Generator[Batch, None, None]:
    sharding = batch_sharding(mesh, config.accumulate_steps)
    host_batches = train_batches(
        source,
        build.train_transforms(config, len(source)),
        seed=config.seed,
        batch_size=config.batch_size,
        positions=host_positions(sharding, config.batch_size, config.accumulate_steps),
        start_step=start_step,
        num_steps=num_steps,
        num_workers=config.data.num_workers,
        on_error=config.data.on_error,
        repeats=config.data.repeats,
    )
    return to_devices(host_batches, sharding, config.batch_size, config.accumulate_steps)


def _describe_test(record: Mapping[str, Any]) -> Iterator[str]:
    average = " of the averaged weights" if record["weights"] == "ema" else ""
    yield (
        f"final test error{average}: top-1 {record['top1_error']:.2f} %, "
        f"top-5 {record['top5_error']:.2f} %"
    )
