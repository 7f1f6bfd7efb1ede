"""How the blocks of a stage are run: one by one or as a loop, kept or computed again.

Neither choice changes the function, the stored names or the arrays: only what
the compiler sees.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Block = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Execution:
    """What to spend when running blocks.

    Attributes:
      scan_blocks: compile equal blocks that follow one another once, as a
        `lax.scan` over their stacked parameters. ResNet-101 has 22 such blocks
        in its third stage, ResNet-152 has 35.
      remat: keep only a block's input for the gradient, and compute what is
        inside once more (`jax.checkpoint`).
    """

    scan_blocks: bool = False
    remat: bool = False


def apply_stages(
    stages: Mapping[str, Iterable[Block]], x: jax.Array, execution: Execution
) -> dict[str, jax.Array]:
    """Run the stages' blocks one after another; returns the map at the end of each stage."""
    maps = {}
    for name, blocks in stages.items():
        if execution.scan_blocks:
            for graphdef, equal in itertools.groupby(blocks, key=_structure):
                x = _scan(graphdef, list(equal), x, execution)
        else:
            for block in blocks:
                x = _remat(block, x) if execution.remat else block(x)
        maps[name] = x
    return maps


def _structure(block: Block) -> Any:
    """What two blocks have in common that differ in their arrays alone."""
    return nnx.split(block)[0]


def _scan(graphdef: Any, blocks: list[Block], x: jax.Array, execution: Execution) -> jax.Array:
    if len(blocks) == 1:
        return _remat(blocks[0], x) if execution.remat else blocks[0](x)
    states = [nnx.split(block)[1] for block in blocks]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)
    run = _pure(graphdef, execution)
    x, statistics = lax.scan(lambda x, state: run(state, x), x, stacked)
    for index, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(lambda array, i=index: array[i], statistics))
    return x


def _remat(block: Block, x: jax.Array) -> jax.Array:
    graphdef, state = nnx.split(block)
    x, statistics = _pure(graphdef, Execution(remat=True))(state, x)
    nnx.update(block, statistics)
    return x


def _pure(graphdef: Any, execution: Execution) -> Callable[[Any, jax.Array], tuple[Any, Any]]:
    """Return a block as a function of its arrays, to its result and its new running statistics."""

    def run(state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        block = nnx.merge(graphdef, state)
        y = block(x)
        return y, nnx.state(block, nnx.BatchStat)

    return jax.checkpoint(run) if execution.remat else run
