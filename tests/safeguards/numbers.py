"""What 20 steps of training come to: metrics, and hashes of the weights.

    python -m tests.safeguards.numbers           names the runs that are not as stored
    python -m tests.safeguards.numbers --write   stores them anew

All in double precision and by one way of compiling, so that another machine's rounding does not
grow to where it is seen in metrics; bits are compared between machines of the same kind only.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.safeguards import where
from tests.safeguards.inputs import write_all
from tests.safeguards.programs import read_config, versions
from tests.safeguards.recipes import CLASSIFIER, FAST_RCNN, RPN, Recipe, length
from tests.safeguards.serving import environment

STORED = Path(__file__).parent / "golden" / "numbers.json"

_OFTEN = {"log_every_steps": 5, "checkpoint_every_epochs": 20.0}
# Times, and what they make.
_TIMES = ("images_per_second", "data_wait_fraction", "peak_memory_bytes")


def _double(recipe: Recipe, batch_size: int, **others: object) -> Recipe:
    fields = recipe.fields | length(20, batch_size) | _OFTEN | {"model.dtype": "float64"}
    return dataclasses.replace(recipe, workdir="run", steps=20, fields=fields | others)


RUNS = {
    "digits": _double(CLASSIFIER, 32, **{"model.param_dtype": "float64"}),
    "RPN": _double(RPN, 4),
    "Fast R-CNN": _double(FAST_RCNN, 4),
}


def machine() -> str:
    """Return a hash of what the processor can do."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16]


def _hash(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def train(name: str) -> dict[str, Any]:
    """Train in this process, in the folder of `inputs.write_all`."""
    state = where.train(read_config(RUNS[name], {}), "run")
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in record.items() if k not in _TIMES} for record in records]
    arrays = {"params": state.params, "batch_stats": state.batch_stats}
    return {"metrics": metrics, "hashes": {what: _hash(some) for what, some in arrays.items()}}


def measured(name: str) -> dict[str, Any]:
    """Train in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder))
        subprocess.run(
            [sys.executable, "-m", "tests.safeguards.numbers", "--train", name],
            cwd=folder,
            env=environment() | {"JAX_ENABLE_X64": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        result: dict[str, Any] = json.loads(Path(folder, "numbers.json").read_text())
    return result


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1:2] == ["--train"]:
        Path("numbers.json").write_text(json.dumps(train(sys.argv[2])))
        return
    stored = json.loads(STORED.read_text()) if STORED.exists() else {"runs": {}}
    found = {}
    for name in RUNS:
        found[name] = measured(name)
        print(f"{'same' if found[name] == stored['runs'].get(name) else 'OTHER'}  {name}")
    if "--write" in sys.argv[1:]:
        content = versions() | {"processor": machine(), "runs": found}
        STORED.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
