"""Make the runs that `test_old_runs.py` goes on with: python -m tests.safeguards.make_old_runs.

Run once, by the code before any module moved. Made anew, they would be no old runs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.safeguards import where
from tests.safeguards.inputs import OLD_RUNS, write_scenes
from tests.safeguards.recipes import CLASSIFIER, DETECTOR, PROPOSALS, RPN, Recipe

ROOT = Path(__file__).parent.parent.parent

# What resuming and evaluation do not read.
_LEFT_OUT = {"tensorboard", "plots", ".lock"}


def main() -> None:
    """Make them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "scenes")
        for recipe in (CLASSIFIER, RPN, DETECTOR):
            _python(folder, *recipe.train(ROOT))
            if recipe is RPN:
                _python(folder, *PROPOSALS)
        for recipe in (CLASSIFIER, DETECTOR):
            _interrupt(folder / recipe.workdir, recipe)
            for checkpoint in (folder / recipe.workdir / "checkpoints").iterdir():
                _forget_place(checkpoint)
        with tarfile.open(OLD_RUNS, "w:xz") as archive:
            for part in (CLASSIFIER.workdir, DETECTOR.workdir, "proposals"):
                archive.add(folder / part, part, filter=_kept)
    print(f"{OLD_RUNS}: {OLD_RUNS.stat().st_size:,} bytes")


def _python(folder: Path, *arguments: str) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True)


def _interrupt(workdir: Path, recipe: Recipe) -> None:
    """Take the last checkpoint away, as if the run had crashed; keep what it had measured."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = max(record["step"] for record in records)
    assert last == recipe.steps
    shutil.rmtree(workdir / "checkpoints" / str(last))
    if json.loads((workdir / "best.json").read_text())["step"] == last:
        (workdir / "best.json").unlink()
    (workdir / "expected.jsonl").write_text((workdir / "metrics.jsonl").read_text())
    left = [json.dumps(record) for record in records if record["step"] < last]
    (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in left))


def _forget_place(checkpoint: Path) -> None:
    """Take the folder out of the text files that name it."""
    for path in checkpoint.rglob("commit_success.txt"):
        path.write_text(re.sub(r" to .*", " to a folder.", path.read_text()))
    where.write_manifest(checkpoint)


def _kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what is not read, and whose and of when the files are."""
    if _LEFT_OUT.intersection(Path(member.name).parts):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
