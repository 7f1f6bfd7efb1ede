"""Concatenation of many arrays into few, for operations on all of them: all-reduces and norms."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.flatten_util import ravel_pytree

from resnext_jax.ops.target import target_platform

Tree = TypeVar("Tree")


def join(tree: Tree) -> tuple[Any, Callable[[Any], Tree]]:
    """Concatenate the arrays of a tree on GPUs, where each array would need its own kernels.

    XLA concatenates the operands of an all-reduce in any case, but then slices out each array with
    one kernel, computes its norm with one or two more and updates the weight with another. If the
    arrays are concatenated already, it slices inside the update kernels, each of which updates
    several weights of one shape.

    Returns:
      The concatenated arrays, keyed by dtype and by whether an array is a vector, and a function
      that splits arrays of that structure again. On other platforms the tree itself, and the
      identity.
    """
    if target_platform() != "gpu":
        return tree, lambda joined: joined
    leaves, structure = jax.tree.flatten(tree)
    # XLA concatenates up to 128 arrays in one pass over memory, and more in two. Vectors are kept
    # separate: they are two thirds of a network's arrays, but a tiny part of its bytes.
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
