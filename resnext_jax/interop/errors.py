"""What goes wrong with weights from elsewhere, and how it is told."""

from collections.abc import Iterable, Mapping

from resnext_jax.errors import UserError

Shape = tuple[int, ...]

# So many names of a kind are told; all of them are attributes of the error.
_TOLD = 10


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


def listed(noun: str, what: str, names: Iterable[str], most: int = _TOLD) -> str:
    """Count and name, as in "2 names missing (conv1.weight, bn1.bias)"; "" for none."""
    names = list(names)
    if not names:
        return ""
    told = names[:most]
    if len(names) > len(told):
        told.append(f"and {len(names) - len(told)} more")
    return f"{len(names)} {noun}{'s' * (len(names) > 1)} {what} ({', '.join(told)})"
