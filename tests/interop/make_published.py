"""Writes the table of published weights, docs/weights.md, and what others publish of their sizes.

Run as `python -m tests.interop.make_published RESULTS`. Needs timm and torchvision, which the tests
do not; RESULTS is the folder `results` of timm's repository.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import timm
import torchvision

from resnext_jax.models.capacity import complexity
from resnext_jax.models.registry import parse_name
from tests.interop.published_page import PAGE, TABLE, TIMM, page

SIZES = Path(__file__).parent / "golden" / "published_sizes.csv"
# Of timm's measurements of speed, one that has all networks.
_BENCHMARK = "benchmark-infer-fp32-nchw-pt240-cpu-i9_10940x-dynamo.csv"


def main(results: Path) -> None:
    """Write all files."""
    assert timm.__version__ == TIMM
    scores: dict[str, list[dict[str, str]]] = {}
    for score in _read(results / "results-imagenet.csv"):
        scores.setdefault(score["model"], []).append(score)
    names = timm.list_models(pretrained=True)
    rows = [_row(name, scores.get(name, [])) for name in names if _is_built(name)]
    _write(TABLE, rows)
    PAGE.write_text(page())
    _write(SIZES, [*_timms_sizes(results / _BENCHMARK), *_torchvisions_sizes()])
    print(f"timm {timm.__version__}: {len(rows)} of {len(names)} published weights are built")


def _is_built(name: str) -> bool:
    try:
        parse_name(name.partition(".")[0])
    except ValueError:
        return False
    return True


def _row(name: str, scores: list[dict[str, str]]) -> dict[str, Any]:
    images = timm.get_pretrained_cfg(name)
    size, classes = images.input_size[1], images.num_classes or 0
    counts = complexity(name.partition(".")[0], num_classes=max(classes, 1))
    head = 0 if classes else counts.by_stage["fc"][0]
    top1 = [
        score["top1"]
        for score in scores
        if int(score["img_size"]) == size and abs(float(score["crop_pct"]) - images.crop_pct) < 1e-3
    ]
    return {
        "name": name,
        "top1": top1[0] if top1 else "",
        "image_size": size,
        "crop_pct": images.crop_pct,
        "interpolation": images.interpolation,
        "classes": classes,
        "licence": images.license or "",
        "parameters": counts.params - head,
        "source": images.origin_url or "",
    }


def _timms_sizes(path: Path) -> list[dict[str, Any]]:
    wanted = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    return [
        {
            "source": f"timm {path.name}",
            "name": row["model"],
            "image_size": row["infer_img_size"],
            "parameters": row["param_count"],
            "multiply_adds": row["infer_gmacs"],
            "activations": row["infer_macts"],
        }
        for row in _read(path)
        if row["model"] in wanted and _is_built(row["model"])
    ]


def _torchvisions_sizes() -> list[dict[str, Any]]:
    rows = []
    for name in torchvision.models.list_models(torchvision.models):
        if not _is_built(name):
            continue
        for weights in torchvision.models.get_model_weights(name):
            rows.append(
                {
                    "source": f"torchvision {torchvision.__version__} {weights}",
                    "name": name,
                    "image_size": 224,
                    "parameters": weights.meta["num_params"],
                    "multiply_adds": weights.meta["_ops"],
                    "activations": "",
                }
            )
    return rows


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
