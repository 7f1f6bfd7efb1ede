"""What today's commands make of old runs, a classifier's and a detector's.

python -m tests.safeguards.old_runs --write   stores it (what is stored besides is in the runs)
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.programs import ROOT, Served
from tests.safeguards.inputs import write_all
from tests.safeguards.recipes import CLASSIFIER, RPN, Recipe
from tests.safeguards.serving import serving

STORED = Path(__file__).parent / "golden" / "old_runs.json"

_TIMES = ("images_per_second", "data_wait_fraction")


class Runs:
    """The old runs in a folder, and commands there."""

    def __init__(self, folder: Path, server: Served):
        """Use a folder of `inputs.write_all`."""
        self.folder, self._server = folder, server

    def _run(self, *arguments: str) -> list[str]:
        result = self._server(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    def evaluated(self, recipe: Recipe) -> Any:
        """Return what eval.py writes of a run."""
        workdir = f"--workdir={recipe.workdir}"
        self._run(str(ROOT / "eval.py"), *recipe.flags(ROOT), workdir)
        name = "eval.json" if recipe is CLASSIFIER else "detection_scores.json"
        return json.loads((self.folder / recipe.workdir / name).read_text())

    def trained(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Train or resume; return the records."""
        self._run(*recipe.train(ROOT))
        return self.records(recipe, "metrics.jsonl")

    def records(self, recipe: Recipe, file: str) -> list[dict[str, Any]]:
        """Return records of a run, without times."""
        lines = (self.folder / recipe.workdir / file).read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k not in _TIMES} for x in lines]

    def predicted(self) -> Any:
        """Return what the classifier says of an image."""
        arguments = ["--workdir=classifier", "--json", "--top=3", "scenes/test/0.png"]
        return json.loads(*self._run("-m", "resnext_jax.predict", *arguments))

    def detected(self) -> Any:
        """Return what the detector finds in an image."""
        arguments = ["--workdir=detector", "--score=0", "--out=found", "scenes/test/0.png"]
        self._run("-m", "resnext_jax.detection.infer", *arguments)
        return json.loads((self.folder / "found/detections.json").read_text())


@contextmanager
def runs() -> Iterator[Runs]:
    """Give the old runs in a folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_all(folder)
        with serving(folder) as server:
            yield Runs(folder, server)


def main() -> None:
    """Store what is compared."""
    with runs() as old:
        found = {
            "predicted": old.predicted(),
            "detected": old.detected(),
            "started": old.trained(RPN),
        }
    if "--write" in sys.argv[1:]:
        STORED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
