"""What the text of an optimised XLA program holds.

Its collectives; XLA's estimate of cycles in a TPU's; and in a GPU's the kernels, with the bytes
that they read and write.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

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
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
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

# Operations that run no kernel: names for arrays, ends of what is asynchronous, collectives.
_NO_KERNEL = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|partition-id|replica-id"
    rf"|.*-done|.*-update|(?:{'|'.join(_COLLECTIVES)})(?:-start)?"
)

# What a kernel is by what its fusion holds, or by its library's name: the first that fits.
_HEAVY_KERNELS = {
    "convolutions": re.compile(r' convolution\(|custom_call_target="__cudnn\$'),
    "products": re.compile(r' dot\(|custom_call_target="__cublas\$'),
    "reductions": re.compile(r" reduce(?:-window)?\("),
}
_MOVES = re.compile(
    "broadcast|concatenate|convert|copy|copy-start|dynamic-slice|dynamic-update-slice|pad|reshape"
    "|reverse|slice|transpose"
)
KERNELS = (*_HEAVY_KERNELS, "copies", "loops")

# `%name = type operation(%operand, /*index=1*/%operand), ...`
_DEFINITION = re.compile(r"%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)")
_NAME = re.compile(r"%([\w.\-]+)")
_PARAMETER = re.compile(r"%([\w.\-]+) = .* parameter\((\d+)\)")

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


def kernels(hlo: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Count the kernels of a GPU's program, and the bytes that they read and write.

    Each reads its operands once and writes its result, as if no cache kept anything; of an operand
    that is only sliced, the slices, and of a result that is an operand with a slice replaced, the
    slice. A call of a library counts as one kernel. Collectives are left out, and what a kernel
    computes twice.

    Returns:
      The number of kernels and their bytes, by source, as `source_of` has it, and one of
      `KERNELS`: "copies" compute nothing, "loops" compute element by element.
    """
    entry, computations = _computations(hlo)
    sizes = {
        name: type_bytes(result)
        for lines in computations.values()
        for name, result, _, _ in _definitions(lines)
    }
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for line, operation, times in _executed(entry, computations, 1):
        if _NO_KERNEL.fullmatch(operation):
            continue
        inside = _inside(line, computations) if operation == "fusion" else [line]
        ((name, _, _, operands),) = _definitions([line])
        read = {
            operand: _read(place, inside, sizes) if operation == "fusion" else sizes[operand]
            for place, operand in enumerate(operands)
        }
        kept = sum(
            sizes[whole] - sizes[replaced[1]]
            for whole, _, inner, replaced in _definitions(inside)
            if inner == "dynamic-update-slice"
        )
        # The last line inside is the result's.
        key = _source(line if _SCOPES.search(line) else inside[-1]), _kind(inside)
        count, size = found.get(key, (0, 0))
        found[key] = count + times, size + times * (sizes[name] - kept + sum(read.values()))
    return found


def _read(place: int, fusion: list[str], sizes: Mapping[str, int]) -> int:
    """Return the bytes that a fusion reads of one of its operands."""
    parameter = next(
        match[1] for match in map(_PARAMETER.search, fusion) if match and int(match[2]) == place
    )
    users: dict[str, list[tuple[str, str]]] = {}
    for name, _, operation, operands in _definitions(fusion):
        for position, operand in enumerate(operands):
            users_of = users.setdefault(operand, [])
            # Nothing is read of an array in which a slice is replaced.
            if operation != "dynamic-update-slice" or position > 0:
                users_of.append((name, operation))

    def share(name: str) -> float:
        """Return how much of an array is used."""
        used = 0.0
        for user, operation in users.get(name, [("", "")]):
            if operation in ("slice", "dynamic-slice"):
                used += sizes[user] / sizes[name]
            elif sizes.get(user) == sizes[name] and operation != "tuple":
                used += share(user)  # element by element, and perhaps sliced then
            else:
                return 1.0
        return min(used, 1.0)

    return round(share(parameter) * sizes[parameter])


def _kind(lines: list[str]) -> str:
    """Return which of `KERNELS` computes these lines."""
    for kind, form in _HEAVY_KERNELS.items():
        if any(form.search(line) for line in lines):
            return kind
    operations = (operation for _, _, operation, _ in _definitions(lines))
    computes = any(not (_MOVES.fullmatch(x) or _NO_KERNEL.fullmatch(x)) for x in operations)
    return "loops" if computes else "copies"


def _definitions(lines: Iterable[str]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield name, type, operation and operands of each line."""
    for line in lines:
        found = _DEFINITION.search(line)
        if found:
            yield found[1], found[2], found[3], _NAME.findall(found[4])


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
        for called in _called(line):
            yield from _executed(called, computations, times * _trips(line, computations))


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """Return how often a loop runs, as XLA says or as its counter is compared; else once."""
    known = _TRIPS.search(line)
    condition = _CONDITION.search(line)
    if known or not condition:
        return int(known[1]) if known else 1
    # JAX's loops count from zero while they are below the one number in their condition.
    bounds = [match[1] for match in map(_BOUND.search, computations.get(condition[1], ())) if match]
    return int(bounds[0]) if len(bounds) == 1 else 1


def _called(line: str) -> list[str]:
    branches = _BRANCHES.search(line)
    names = branches[1].replace("%", "").split(", ") if branches else []
    return names + _CALLED.findall(line)


def _inside(line: str, computations: dict[str, list[str]]) -> list[str]:
    """Return the lines of a fusion."""
    return [part for name in _called(line) for part in computations.get(name, ())]
