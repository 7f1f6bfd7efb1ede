"""How the blocks of a stage are compiled: unrolled or as a scan, with or without rematerialisation.

Neither choice changes the function, the arrays or their names.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Block = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Execution:
    """Options of the execution of blocks.

    Attributes:
      scan_blocks: compile consecutive identical blocks once, as a `lax.scan` over their stacked
        parameters. ResNet-101 has 22 such blocks in its third stage, ResNet-152 has 35.
      remat: keep only a block's input for the backward pass, and recompute the rest
        (`jax.checkpoint`).
    """

    scan_blocks: bool = False
    remat: bool = False


def depth_scales(random: jax.Array, rate: float) -> jax.Array:
    """Return what residual functions are multiplied by under stochastic depth (Huang et al. 2016).

    A block is dropped with a probability that grows linearly from 0 at the first block to `rate`
    at the last, and otherwise divided by the probability of staying: the mean is 1.

    Args:
      random: `[N, blocks]`, uniform in [0, 1).
      rate: below 1.

    Returns:
      `[N, blocks]`, dtype of `random`.
    """
    dropped = jnp.linspace(0.0, rate, random.shape[1], dtype=random.dtype)
    return (random >= dropped) / (1 - dropped)


def apply_stages(
    stages: Mapping[str, Iterable[Block]],
    x: jax.Array,
    execution: Execution,
    scales: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Apply all blocks in sequence.

    Args:
      stages: the blocks of each stage.
      x: `[N, H, W, C]`.
      execution: how they are compiled.
      scales: `[N, blocks]`, factors of the residual functions; None: 1.

    Returns:
      The feature map at the end of each stage.
    """
    maps = {}
    first = 0
    # Not by items(): `nnx.tabulate` compiles every method of an `nnx.Dict`, and marks it with an
    # attribute of its own.
    for name in (name for name in stages if not name.startswith("_")):
        blocks = stages[name]
        alone = ([block] for block in blocks)
        with jax.named_scope(name):
            for run in _equal_neighbours(blocks) if execution.scan_blocks else alone:
                own = None if scales is None else scales[:, first : first + len(run)]
                x = _apply(run, x, own, remat=execution.remat)
                first += len(run)
        maps[name] = x
    return maps


def _equal_neighbours(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Group consecutive blocks that differ only in their arrays."""
    return (list(equal) for _, equal in itertools.groupby(blocks, key=nnx.graphdef))


def _apply(
    blocks: list[Block], x: jax.Array, scales: jax.Array | None, *, remat: bool
) -> jax.Array:
    """Apply identical blocks in sequence, as a scan if there are several."""
    # One argument of each block.
    factors = () if scales is None else (scales.T,)
    if len(blocks) == 1 and not remat:
        return blocks[0](x, *(factor[0] for factor in factors))
    graphdef = nnx.graphdef(blocks[0])
    states = [nnx.state(block) for block in blocks]

    def run(x: jax.Array, each: Any) -> tuple[jax.Array, Any]:
        state, *factor = each
        block = nnx.merge(graphdef, state)
        y = block(x, *factor)
        return y, nnx.state(block, nnx.BatchStat)

    if remat:
        run = jax.checkpoint(run)
    if len(blocks) == 1:
        x, statistics = run(x, (states[0], *(factor[0] for factor in factors)))
        nnx.update(blocks[0], statistics)
        return x
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)
    x, statistics = lax.scan(run, x, (stacked, *factors))
    for index, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(lambda array, i=index: array[i], statistics))
    return x
