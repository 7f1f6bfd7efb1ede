"""Finding the state dict in what a training saved."""

from collections.abc import Mapping
from typing import Any

from resnext_jax.interop.errors import WeightsError

# Under which names training scripts keep weights, and averages of weights: those of torchvision
# and timm, and of many others.
_WEIGHTS = ("state_dict", "model")
_AVERAGES = ("state_dict_ema", "model_ema")

# What (Distributed)DataParallel and AveragedModel put in front of all names; and what the latter
# has beside them.
_PREFIX = "module."
_AVERAGED = "n_averaged"


def unwrap(saved: Any, *, ema: bool = False, source: str = "the state dict") -> Mapping[str, Any]:
    """Return the state dict itself, without the "module." of DataParallel.

    Args:
      saved: a state dict; or a dictionary that has one under "state_dict" or "model", and perhaps
        an average under "state_dict_ema" or "model_ema".
      ema: take the average. Otherwise it is taken only where there is nothing else.
      source: what an error shall call it.

    Raises:
      WeightsError: there is no state dict, or no average.
    """
    if not isinstance(saved, Mapping):
        raise WeightsError(f"{source} is no state dict but a {type(saved).__name__}.")
    parts = {
        name: saved[name]
        for name in (*_WEIGHTS, *_AVERAGES)
        if isinstance(saved.get(name), Mapping)
    }
    if ema:
        found = next((parts[name] for name in _AVERAGES if name in parts), None)
        if found is None:
            raise WeightsError(
                f"{source} has no averaged weights ({' or '.join(_AVERAGES)}); "
                "take the weights themselves."
            )
    else:
        found = next(iter(parts.values()), saved)
    inner = [name for name, value in found.items() if isinstance(value, Mapping)]
    if inner or not found or not all(isinstance(name, str) for name in found):
        entries = ", ".join(map(repr, list(found)[:10])) or "nothing"
        raise WeightsError(
            f"{source} is no state dict, it holds {entries}; save the weights alone, with "
            "torch.save(model.state_dict(), FILE)."
        )
    names = [name for name in found if name != _AVERAGED]
    if all(name.startswith(_PREFIX) for name in names):
        return {name.removeprefix(_PREFIX): found[name] for name in names}
    return found
