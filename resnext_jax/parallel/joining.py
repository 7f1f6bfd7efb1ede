"""Many arrays as few, for what all of them go through alike: averages over devices, norms."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.flatten_util import ravel_pytree

from resnext_jax.ops.target import target_platform

Tree = TypeVar("Tree")


def join(tree: Tree) -> tuple[Any, Callable[[Any], Tree]]:
    """Join the arrays of a tree on GPUs, where each would take kernels of its own.

    XLA joins what is all-reduced in any case, but then cuts out each array by a kernel, computes
    the norm by one or two more, and updates each weight by another. What it finds joined, it cuts
    inside the kernels that update, several weights of one shape in each.

    Returns:
      The tree joined, by dtype and by whether an array is a vector, and a function that takes apart
      what has the same structure. On other platforms the tree itself, and the identity.
    """
    if target_platform() != "gpu":
        return tree, lambda joined: joined
    leaves, structure = jax.tree.flatten(tree)
    # XLA joins up to 128 arrays in one pass over memory, and more in two. Vectors, which are
    # two thirds of a network's arrays and next to none of its bytes, do not count so.
    kinds = [f"{x.dtype}, {'tensors' if x.ndim > 1 else 'vectors'}" for x in leaves]
    joined, take_apart = {}, {}
    for kind in dict.fromkeys(kinds):
        same = [x for x, its in zip(leaves, kinds, strict=True) if its == kind]
        joined[kind], take_apart[kind] = ravel_pytree(same)

    def separate(joined: dict[str, jax.Array]) -> Tree:
        parts = {kind: iter(take_apart[kind](x)) for kind, x in joined.items()}
        whole: Tree = jax.tree.unflatten(structure, [next(parts[kind]) for kind in kinds])
        return whole

    return joined, separate
