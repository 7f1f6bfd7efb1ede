"""Packages import one way: a folder only what stands above it in a list.

Read from the source, so that imports within functions, for type checkers, and by strings such as
"resnext_jax.training.loop:train" count as well.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "resnext_jax"

# Each may import itself and what stands above it.
LAYERS = (
    "errors",
    "files",
    "ops",
    "models",
    "optim",
    "parallel",
    "data",
    "interop",
    "config",
    "runs",
    "evaluation",
    "training",
    "reports",
    "detection",
    "commands",
    "configs",
    "scripts",
)

# What `python -m` runs and the documentation names: they import a command, to run it. Some are
# nothing else; others are libraries, with the command under `if __name__ == "__main__"`.
SHIMS = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        "data.prepare",
        "data.preview",
        "detection.infer",
        "detection.proposals",
        "detection.synthetic",
        "export",
        "interop.torch",
        "models.__main__",
        "predict",
        "reports.__main__",
    )
)

# (importing module, imported module) against the order. It may only shrink.
EXCEPTIONS: set[tuple[str, str]] = set()

# What other libraries do not promise to keep, with the versions that the tests passed with.
PRIVATE = {
    "jax._src.clusters": "jax 0.10.2 and 0.12.0.1",
    "jax.config.values": "jax 0.10.2 and 0.12.0.1",
    "sys.unraisablehook": "Python 3.11 and 3.13",
    "tensorflow_datasets.core.download.checksums": "TFDS 4.9.10",
    "tensorflow_datasets.core.download.download_manager": "TFDS 4.9.10",
    "tensorflow_datasets.core.download.resource": "TFDS 4.9.10",
    "tensorflow_datasets.core.download.util": "TFDS 4.9.10",
    "tensorflow_datasets.core.shuffle": "TFDS 4.9.10",
    "tensorflow_datasets.core.utils": "TFDS 4.9.10",
}
# Of such, what no underscore marks.
_UNMARKED = re.compile(
    r"sys\.unraisablehook|jax\.config\.values|tensorflow_datasets\.core\.[a-z]+(\.[a-z_]+)*"
)
# Public in spite of its underscore.
_PROMISED = frozenset({"os._exit"})


def source_files(root: Path) -> dict[str, Path]:
    """Every module of the package, the recipes and the scripts, by name."""
    files = [
        *(root / PACKAGE).rglob("*.py"),
        *(root / "configs").glob("*.py"),
        *(root / name for name in ("train.py", "eval.py")),
    ]
    named = {}
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(source: str, modules: Iterable[str], name: str, *, is_package: bool) -> set[str]:
    """Return which of the modules a module's source imports, anywhere in it."""
    known = set(modules)
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                # A module of a package, or a name in a module.
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = re.fullmatch(rf"({PACKAGE}[\w.]*):\w+", node.value)
            found.update(match.groups() if match else ())
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found.update(str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))
    return {module for module in found if module in known and module != name}


def without_command(source: str) -> str:
    """Take from a shim what runs its command: one import of `commands`, and a call of it."""
    body = ast.parse(source).body
    *before, last = body
    assert isinstance(last, ast.If)
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    if len(last.body) == 2:  # below a library
        imported, call = last.body
    else:
        (call,) = last.body
        _, *before, imported = before
        assert [ast.unparse(node) for node in before] in ([], ["import sys"])
        before = []
    assert isinstance(imported, ast.ImportFrom)
    assert str(imported.module).startswith(f"{PACKAGE}.commands.")
    (alias,) = imported.names
    assert ast.unparse(call) in (f"{alias.name}(sys.argv[1:])", f"{alias.name}()")
    return ast.unparse(ast.Module(before, []))


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return what each module imports."""
    files = source_files(root)
    return {
        name: imports(
            without_command(path.read_text()) if name in SHIMS else path.read_text(),
            files,
            name,
            is_package=path.name == "__init__.py",
        )
        for name, path in files.items()
    }


def layer_of(module: str) -> str | None:
    """Return the layer of a module; None: the package's root, which all may import."""
    if module in ("train", "eval"):
        return "scripts"
    if module.partition(".")[0] == "configs":
        return "configs"
    inner = module.removeprefix(PACKAGE).removeprefix(".")
    if not inner or inner in ("predict", "export"):  # shims
        return None
    return inner.partition(".")[0]


def against_the_order(graph: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """Return the imports of what stands below."""
    return {
        (module, imported)
        for module, names in graph.items()
        for imported in names
        if (here := layer_of(module)) is not None
        and (there := layer_of(imported)) is not None
        and LAYERS.index(there) > LAYERS.index(here)
    }


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Return the groups of which each member reaches each other one."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(graph.get(name, ()))
        reached[start] = seen
    return {
        frozenset(b for b in reached[a] if a in reached.get(b, ()))
        for a in graph
        if a in reached[a]
    }


def private_uses(source: str) -> set[str]:
    """Return what a source uses of other libraries that they do not promise to keep."""
    outer: dict[str, str] = {}
    used: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                used.add(alias.name)
                first = alias.name.partition(".")[0]
                outer[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                outer[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                marked = _is_private(node.module)
                used.add(node.module if marked else f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            first, *rest = text.split(".")
            whole = re.fullmatch(r"[\w.]+", text) is not None
            if whole and first in outer and not _is_private(outer[first]):
                used.add(".".join([outer[first], *rest]))
    return {name for name in used if _is_private(name)}


def _is_private(name: str) -> bool:
    if name in _PROMISED or name.partition(".")[0] in (PACKAGE, "configs", "__future__"):
        return False
    marked = any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
    return marked or _UNMARKED.fullmatch(name) is not None


def test_imports_follow_the_order() -> None:
    found = against_the_order(import_graph(ROOT))
    assert found - EXCEPTIONS == set(), "imports of what stands below"
    assert EXCEPTIONS - found == set(), "exceptions that are no longer needed"


def test_every_module_has_a_place() -> None:
    files = source_files(ROOT)
    places = {layer_of(name) for name in files}
    assert places - {None} <= set(LAYERS)
    assert files.keys() >= SHIMS


def test_no_modules_import_each_other_in_a_circle() -> None:
    """But for the exceptions above."""
    graph = import_graph(ROOT)
    without = {
        module: {name for name in names if (module, name) not in EXCEPTIONS}
        for module, names in graph.items()
    }
    assert circles(without) == set()


def test_private_names_are_listed() -> None:
    files = source_files(ROOT).values()
    used = set().union(*(private_uses(path.read_text()) for path in files))
    assert used == PRIVATE.keys()


# What each of these sources, of the module resnext_jax.data.reading, imports.
_IMPORTING = {
    "import resnext_jax.training.loop": {"resnext_jax.training.loop"},
    "from resnext_jax.training import loop": {"resnext_jax.training.loop"},
    "from resnext_jax.training.loop import train": {"resnext_jax.training.loop"},
    "from resnext_jax.training import name": {"resnext_jax.training"},
    "from . import sources": {"resnext_jax.data.sources"},
    "from ..training.loop import train": {"resnext_jax.training.loop"},
    "def f():\n    from resnext_jax import cli": {"resnext_jax.cli"},
    "if TYPE_CHECKING:\n    from resnext_jax import cli": {"resnext_jax.cli"},
    "ENTRY = 'resnext_jax.training.loop:train'": {"resnext_jax.training.loop"},
    "importlib.import_module('resnext_jax.cli')": {"resnext_jax.cli"},
    "import jax": set(),
}


@pytest.mark.parametrize(("source", "expected"), _IMPORTING.items())
def test_imports_are_found(source: str, expected: set[str]) -> None:
    modules = {f"{PACKAGE}.{name}" for name in ("cli", "data", "data.sources", "training")}
    modules |= {PACKAGE, f"{PACKAGE}.training.loop", f"{PACKAGE}.data.reading"}
    assert imports(source, modules, f"{PACKAGE}.data.reading", is_package=False) == expected


def test_a_shim_holds_nothing_else() -> None:
    run = "if __name__ == '__main__':\n    main(sys.argv[1:])"
    command = f"from {PACKAGE}.commands.train import main"
    assert without_command(f"'doc'\nimport sys\n{command}\n{run}") == ""
    for more in ("import os", "main()", "from resnext_jax.training import loop"):
        with pytest.raises(AssertionError):
            without_command(f"'doc'\nimport sys\n{more}\n{command}\n{run}")


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(graph) == {frozenset({"b", "c"}), frozenset({"e"})}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from jax._src.core import Jaxpr", {"jax._src.core"}),
        ("import jax._src.core", {"jax._src.core"}),
        ("import jax\njax._src.core.Jaxpr", {"jax._src", "jax._src.core", "jax._src.core.Jaxpr"}),
        ("import sys\nsys.unraisablehook = print", {"sys.unraisablehook"}),
        ("from torch import _utils", {"torch._utils"}),
        ("import os, jax\nos._exit(1)\njax.numpy.zeros(1)", set()),
        ("from resnext_jax import _version", set()),
    ],
)
def test_private_uses_are_found(source: str, expected: set[str]) -> None:
    assert private_uses(source) == expected
