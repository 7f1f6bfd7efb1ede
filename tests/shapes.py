"""Shapes and dtypes of arrays are checked in tests, where signatures name them.

`jaxtyping`'s import hook does it, for the modules listed here, with beartype.
"""

from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

CHECKED = (
    "resnext_jax.detection.anchors",
    "resnext_jax.detection.boxes",
    "resnext_jax.detection.losses",
    "resnext_jax.detection.nms",
    "resnext_jax.detection.roi",
    "resnext_jax.detection.targets",
    "resnext_jax.evaluation.metrics",
    "resnext_jax.models.blocks",
    "resnext_jax.models.layers",
    "resnext_jax.models.preact",
    "resnext_jax.models.resnext",
    "resnext_jax.ops.batch_norm",
    "resnext_jax.ops.grouped_conv",
    "resnext_jax.ops.pooling",
)

# An int will do for a float.
_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result; the type checker that the hook is given.

    Constructors are left out: JAX makes dataclasses of its abstract values, and `skeleton` modules
    with a stand-in for `nnx.Rngs`.
    """
    return function if function.__name__ == "__init__" else _check(function)


def install() -> None:
    """Check the modules that are imported from here on."""
    jaxtyping.install_import_hook(CHECKED, f"{__name__}.check")
