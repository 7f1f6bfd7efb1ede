"""Errors of reading and writing weights, and the wording of lists of names."""

from collections.abc import Iterable, Mapping

from resnext_jax.errors import UserError

Shape = tuple[int, ...]

# Names of each kind in a message; the error's attributes have all of them.
_NAMED = 10


class WeightsError(UserError):
    """Weights that cannot be read, written, or do not fit the network.

    Attributes:
      missing: names that the network has and the weights do not.
      unexpected: names that the weights have and the network does not.
      misshapen: names that both have, with the shape in the weights and in the network.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshapen: Mapping[str, tuple[Shape, Shape]] | None = None,
    ):
        """Make the error; all names are PyTorch's."""
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = dict(misshapen or {})


def listed(noun: str, what: str, names: Iterable[str], most: int = _NAMED) -> str:
    """Count and name, as in "2 names missing (conv1.weight, bn1.bias)"; "" for none."""
    names = list(names)
    if not names:
        return ""
    shown = names[:most]
    if len(names) > len(shown):
        shown.append(f"and {len(names) - len(shown)} more")
    return f"{len(names)} {noun}{'s' * (len(names) > 1)} {what} ({', '.join(shown)})"
