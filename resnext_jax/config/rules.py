"""Rules for the values of config fields, beyond their types."""

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from resnext_jax.errors import UserError
from resnext_jax.files import user_path


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule for the value of a field.

    Attributes:
      holds: whether a value of the field's type is allowed.
      text: the allowed values, phrased to follow "must be"; or a function that returns that.
    """

    holds: Callable[[Any], bool]
    text: str | Callable[[], str]

    @property
    def allowed(self) -> str:
        """The allowed values, phrased to follow "must be"."""
        return self.text if isinstance(self.text, str) else self.text()


def name_in(table: str) -> Rule:
    """Return the rule that a value is in a table.

    Its module is imported when a value is first checked, so that recipes load without Flax.

    Args:
      table: "MODULE:NAME" of a mapping whose keys are the names, or of a sequence of names.
    """
    return Rule(lambda value: value in names_in(table), lambda: _alternatives(names_in(table)))


def names_in(table: str) -> Sequence[str]:
    """Return the names in the table "MODULE:NAME", in the table's order."""
    module, _, name = table.partition(":")
    return tuple(getattr(importlib.import_module(module), name))


def one_of(*names: str) -> Rule:
    """Return the rule that a value is one of these names."""
    return Rule(lambda value: value in names, _alternatives(names))


def _alternatives(names: Sequence[str]) -> str:
    return f"one of {', '.join(names)}"


def numbers(count: int | None = None, *, positive: bool, least: int = 0) -> Rule:
    """Return the rule that a value is a tuple of numbers.

    Args:
      count: exact length; None: any.
      positive: whether all numbers must be greater than 0.
      least: minimum length.
    """

    def holds(value: Any) -> bool:
        return (
            (count is None or len(value) == count)
            and len(value) >= least
            and all(isinstance(number, int | float) for number in value)
            and (not positive or all(number > 0 for number in value))
        )

    size = f"{count} " if count else "one or more " if least else ""
    return Rule(holds, f"a tuple of {size}{'positive ' if positive else ''}numbers")


def _is_path(value: Any) -> bool:
    try:
        user_path(value, "")
    except UserError:
        return False
    return True


def _are_steps(value: Any) -> bool:
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in value)
    return len(value) == 0 or (whole and len(value) == 2 and 1 <= value[0] <= value[1])


AT_LEAST_ONE = Rule(lambda value: value >= 1, "at least 1")
POSITIVE = Rule(lambda value: value > 0, "greater than 0")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "at least 0")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "at least 0 and less than 1")
AT_MOST_ONE = Rule(lambda value: 0 <= value <= 1, "at least 0 and at most 1")
POSITIVE_AT_MOST_ONE = Rule(lambda value: 0 < value <= 1, "greater than 0 and at most 1")
BETAS = Rule(
    lambda value: numbers(2, positive=False).holds(value) and all(0 <= x < 1 for x in value),
    "a tuple of 2 numbers, at least 0 and less than 1",
)
INCREASING = Rule(
    lambda value: (
        numbers(positive=True).holds(value) and all(a < b for a, b in itertools.pairwise(value))
    ),
    "a tuple of positive numbers, each greater than the one before",
)
SEED = Rule(lambda value: 0 <= value < 2**32, "at least 0 and less than 2**32")
ABOVE_ONE = Rule(lambda value: value > 1, "greater than 1")
DIVISOR = Rule(
    lambda value: value >= 1,
    "at least 1: the rate is divided by it (PyTorch's gamma=0.1 corresponds to 10)",
)
PATH = Rule(_is_path, "a local path, not empty and without scheme://")
STEPS = Rule(_are_steps, "two whole numbers, as in =10,12, or ()")
