"""A model's arrays as flat dictionaries with stable names.

Training, checkpoints and weight files use the same name for an array: its attribute path, joined
by dots, as in `stages.conv2.0.conv1.kernel`. Passing a flat dictionary to a compiled step is cheap
(no module is traversed between steps), and its names do not depend on container classes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network with its weights.

    Attributes:
      graphdef: of the model, from `split`.
      params: its parameters, on every device.
      batch_stats: its running statistics, likewise.
    """

    graphdef: nnx.GraphDef
    params: Arrays
    batch_stats: Arrays


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """Split a model into its graph definition and arrays.

    Returns:
      The graph definition (static), the parameters, and the batch-norm running
      statistics, both by dotted name.
    """
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(_flatten, states)
    return graphdef, params, batch_stats


def skeleton(build: Callable[[nnx.Rngs], nnx.Module]) -> Any:
    """Build a module without making arrays; they are `jax.ShapeDtypeStruct`s."""
    return nnx.eval_shape(lambda: build(_OneKey()))


class _OneKey(nnx.Rngs):
    """A replacement of `nnx.Rngs` for when the weights do not matter.

    `nnx.Rngs` counts its draws, which inside a trace takes time quadratic in their number: minutes
    for the 1,500 convolutions of ResNeXt-50 in form a.
    """

    def params(self) -> jax.Array:
        """Return the same key at every draw."""
        return jax.random.key(0)


def merge(graphdef: nnx.GraphDef, params: Arrays, batch_stats: Arrays) -> Any:
    """Rebuild a model from its parts: the inverse of `split`."""
    return nnx.merge(graphdef, _unflatten(params), _unflatten(batch_stats))


def digest(*trees: Arrays) -> str:
    """Return the SHA-256 hash of the names, dtypes, shapes and values of arrays."""
    hashed = hashlib.sha256()
    for tree in trees:
        for name, array in sorted(jax.device_get(tree).items()):
            hashed.update(json.dumps([name, array.dtype.name, array.shape]).encode())
            hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def _flatten(state: Any) -> Arrays:
    return {
        ".".join(str(key) for key in path): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def _unflatten(arrays: Arrays) -> dict[Any, Any]:
    nested: dict[Any, Any] = {}
    for name, array in arrays.items():
        # Attributes never start with a digit, so a number is a list index.
        *path, last = (int(key) if key.isdigit() else key for key in name.split("."))
        node = nested
        for key in path:
            node = node.setdefault(key, {})
        node[last] = array
    return nested
