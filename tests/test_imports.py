"""What importing the package needs: never TensorFlow; for networks and steps, little but JAX."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# With a TensorFlow on the path, as a user may have: empty, but seen if it is imported.
WITHOUT_TENSORFLOW = """
import importlib, importlib.util, pkgutil, sys
assert importlib.util.find_spec("tensorflow"), "the test lost its bait"

import resnext_jax
found = [m.name for m in pkgutil.walk_packages(resnext_jax.__path__, "resnext_jax.")]
assert "resnext_jax.training.loop" in found, found
assert "resnext_jax.data.builders.imagenet5k" in found, found
for name in found:
    importlib.import_module(name)

from resnext_jax.data.sources import open_source
for split, count in (("train", 1438), ("test", 359)):
    source = open_source("digits", split, sys.argv[1])
    assert len(source) == count
    assert source.examples[0]["image"].startswith(b"\\x89PNG")

assert "tensorflow_datasets" in sys.modules and "grain" in sys.modules
tensorflow = [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
assert not tensorflow, tensorflow
print("done")
"""

WITH_LITTLE_BUT_JAX = """
import importlib, importlib.abc, pkgutil, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow_datasets", "grain", "ml_collections"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Absent())
try:
    import grain
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the test blocks nothing")

import resnext_jax.models, resnext_jax.ops
names = [
    "resnext_jax.training.step",
    "resnext_jax.training.state",
    "resnext_jax.parallel.mesh",
    "resnext_jax.optim.optimizers",
    "resnext_jax.evaluation.evaluator",
    "resnext_jax.data.augment",
]
for package in (resnext_jax.models, resnext_jax.ops):
    names += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
assert "resnext_jax.models.registry" in names, names
for name in names:
    if name.endswith(".__main__"):
        continue  # a command
    importlib.import_module(name)
print("done")
"""


def run(script: str, *arguments: str, path: Path | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(path) if path else ""}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "done"


def test_nothing_imports_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").write_text("")
    run(WITHOUT_TENSORFLOW, str(tmp_path / "data"), path=tmp_path / "path")


def imported(path: Path) -> set[str]:
    """Packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_no_file_imports_tensorflow() -> None:
    """But the part of a benchmark that runs in an environment of its own."""
    folders = ("resnext_jax", "configs", "tests", "benchmarks", "notebooks")
    files = [*ROOT.glob("*.py"), *(f for name in folders for f in (ROOT / name).rglob("*.py"))]
    assert ROOT / "train.py" in files
    importing = [str(file.relative_to(ROOT)) for file in files if "tensorflow" in imported(file)]
    assert importing == ["benchmarks/input_tfdata.py"]


def test_networks_and_steps_import_without_data_libraries() -> None:
    run(WITH_LITTLE_BUT_JAX)
