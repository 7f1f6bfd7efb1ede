"""What the text of an optimised XLA program holds: collectives and, on TPUs, estimated cycles."""

import math
import re
from collections import Counter
from collections.abc import Iterator

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

# `%name = f32[64]{0} all-reduce(...)`, or a tuple of such types. An asynchronous
# collective counts where it starts.
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")

# `ENTRY %main.1 (x: f32[2]) -> f32[2] {` and `%fused_computation.3 (...) -> ... {`.
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{")
_OPERATION = re.compile(r" = (?:\(.*?\)|\S+) ([\w\-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CALLED = re.compile(r"(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_SCOPES = re.compile(r'op_name="([^"]*)"')

# Operations whose estimates are those of the operations they run.
_CALLS = ("while", "call", "conditional", "async-start")

KINDS = ("convolutions", "other fusions", "copies", "broadcasts", "others")
_KIND_OF = {
    "convolution": "convolutions",
    "copy": "copies",
    "copy-start": "copies",
    "broadcast": "broadcasts",
    "fusion": "other fusions",
}

# Scopes (`jax.named_scope`) that count wherever they are inside of another.
_INNER_SOURCES = ("batch_norm", "max_pool")
_OUTER_SOURCE = re.compile(r"input|stem|conv\d+|classifier|optimizer")


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Count collectives in an optimised program, and the bytes of their results, by kind."""
    found: dict[str, tuple[int, int]] = {}
    for line in hlo.splitlines():
        match = _COLLECTIVE.search(line)
        if match:
            count, size = found.get(match[2], (0, 0))
            found[match[2]] = count + 1, size + type_bytes(_result(match[1]))
    return found


def _result(text: str) -> str:
    """Return the result's part of a type: the second of `((operands), result, ...)`.

    That is what asynchronous collectives have with newer versions of XLA.
    """
    if not text.startswith("(("):
        return text
    depth, commas = 0, []
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            commas.append(place)
    start, end = [*commas, len(text)][:2]
    return text[start:end]


def type_bytes(text: str) -> int:
    """Add up the bytes of all arrays in a type of an HLO program."""
    total = 0
    for kind, bits, shape in _ARRAY.findall(text):
        size = math.prod(int(side) for side in shape.split(",") if side)
        total += size * (1 if kind == "pred" else math.ceil(int(bits) / 8))
    return total


def estimated_cycles(hlo: str) -> Counter[tuple[str, str]]:
    """Add up the estimates that XLA writes into a TPU's program, by source and kind.

    Estimates of a loop's body count as often as it runs, where XLA knows that. Collectives have
    none. Other platforms' programs have none at all.

    Returns:
      Cycles by source, as `source_of` has it, and one of `KINDS`.
    """
    entry, computations = _computations(hlo)
    found: Counter[tuple[str, str]] = Counter()
    for line, operation, times in _executed(entry, computations, 1):
        cycles = _CYCLES.search(line)
        if not cycles:
            continue
        inside = _inside(line, computations) if operation == "fusion" else []
        convolution = next((part for part in inside if " convolution(" in part), None)
        kind = "convolutions" if convolution else _KIND_OF.get(operation, "others")
        # XLA names a fusion by its last operation, which may be another layer's, or not at all.
        named = (part for part in (convolution or line, *reversed(inside)) if _SCOPES.search(part))
        found[_source(next(named, line)), kind] += times * int(cycles[1])
    return found


def source_of(scopes: str) -> str:
    """Return the part of a training step that an operation belongs to.

    Args:
      scopes: its `op_name`, as `jit(local_step)/transpose(jvp(conv3))/batch_norm/mul`.

    Returns:
      "batch_norm" or "max_pool", wherever they are; else "input", "stem", "conv2" and so on,
      "classifier" or "optimizer"; else "other".
    """
    names = re.split(r"[/()]", scopes)
    inner = (name for name in _INNER_SOURCES if name in names)
    outer = (name for name in names if _OUTER_SOURCE.fullmatch(name))
    return next(inner, None) or next(outer, "other")


def _source(line: str) -> str:
    scopes = _SCOPES.search(line)
    return source_of(scopes[1]) if scopes else "other"


def _computations(hlo: str) -> tuple[str, dict[str, list[str]]]:
    """Return the name of the first computation that runs, and the lines of each, by name."""
    entry, lines = "", list[str]()
    found: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        start = None if line.startswith(" ") else _COMPUTATION.match(line)
        if start:
            lines = found[start[2]] = []
            entry = start[2] if start[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return entry, found


def _executed(
    name: str, computations: dict[str, list[str]], times: int
) -> Iterator[tuple[str, str, int]]:
    """Yield each line that runs, its operation, and how often it runs."""
    for line in computations.get(name, ()):
        operation = _OPERATION.search(line)
        if not operation:
            continue
        if operation[1] not in _CALLS:
            yield line, operation[1], times
            continue
        trips = _TRIPS.search(line)
        each = times * int(trips[1]) if trips else times
        for called in _called(line):
            yield from _executed(called, computations, each)


def _called(line: str) -> list[str]:
    branches = _BRANCHES.search(line)
    names = branches[1].replace("%", "").split(", ") if branches else []
    return names + _CALLED.findall(line)


def _inside(line: str, computations: dict[str, list[str]]) -> list[str]:
    """Return the lines of a fusion."""
    return [part for name in _called(line) for part in computations.get(name, ())]
