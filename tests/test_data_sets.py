"""Every data set from its archives to a score: prepare, train.py, eval.py, in tiny."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.raw import write_cifar_archive, write_folder
from tests.data.raw_imagenet import (
    cmyk_jpeg,
    imagenet22k_counts,
    png,
    write_ilsvrc,
    write_imagenet22k_folder,
    write_imagenet22k_whole,
    write_validation,
)
from tests.programs import ROOT, xla_flags

# A network that compiles in seconds, two steps of it.
TINY = [
    "--config.model.stem_width=4",
    "--config.model.template_width=4",
    "--config.bn_group_size=None",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.data.image_size=8",
]
THREADS = "--config.data.num_workers=0"


def command(*arguments: str | Path) -> str:
    """Run Python; return what it printed."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def prepare(dataset: str, data_dir: Path, *arguments: str) -> str:
    return command(
        *("-m", "resnext_jax.data.prepare", f"--dataset={dataset}", f"--data_dir={data_dir}"),
        *("--trust_archives", *arguments),
    )


def train_and_evaluate(config: str, images: int, tmp_path: Path, *arguments: str) -> list[str]:
    """Two steps of training, then the test set; return the table that eval.py printed."""
    options = [
        f"--config=configs/{config}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={tmp_path / 'data'}",
        f"--config.num_epochs={16 / images}",
        *TINY,
        *arguments,
    ]
    command("train.py", *options)
    lines = command("eval.py", *options).splitlines()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    record = json.loads(metrics[-1])
    assert (record["split"], record["step"]) == ("test", 2)
    assert f" {record['top1_error']:.2f} % " in lines[2]
    return lines[1:3]


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
@pytest.mark.slow  # preparing them is tested in tests/data/test_cifar.py, a whole run with a folder
def test_cifar(name: str, classes: int, tmp_path: Path) -> None:
    archive = tmp_path / f"{name}.tar.gz"
    write_cifar_archive(archive, name, train=12, test=5)
    told = prepare(name, tmp_path / "data", f"--archive={archive}")
    assert "train: 12 images" in told
    assert f"classes: {classes}" in told
    _, scores = train_and_evaluate(f"cifar.py:{name},resnext11_1x4d", 12, tmp_path, THREADS)
    assert scores.split()[:5] == ["step", "2", "whole", "8", "5"]


def test_a_folder_of_images(tmp_path: Path) -> None:
    """Prepared by train.py itself, when first read, and read by as many processes as it says."""
    write_folder(tmp_path / "flowers", classes=("rose", "tulip"), per_class=5)
    _, scores = train_and_evaluate(
        "folder.py:resnext11_1x4d",
        10,
        tmp_path,
        f"--config.data.manual_dir={tmp_path / 'flowers'}",
    )
    assert scores.startswith("step 2 ")


@pytest.mark.slow
def test_imagenet2012(tmp_path: Path) -> None:
    """Among the images a CMYK JPEG and a PNG that is called JPEG, as in the real archive.

    Two steps of training may pass over theirs; testing decodes every image.
    """
    special = {
        "n01440764_1.JPEG": cmyk_jpeg(),
        "n01443537_1.JPEG": png(),
        "ILSVRC2012_val_00000002.JPEG": cmyk_jpeg(),
        "ILSVRC2012_val_00000011.JPEG": png(),
    }
    write_ilsvrc(tmp_path, val_images=11, special=special)
    told = prepare("imagenet2012", tmp_path / "data", f"--manual_dir={tmp_path}")
    assert "train: 1,000 images" in told
    assert "validation: 11 images" in told
    _, scores = train_and_evaluate("imagenet.py:resnext11_1x4d", 1000, tmp_path, THREADS)
    assert re.match(r"step 2 +centre \d+ of \d+ +11 ", scores)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "whole"])
def test_imagenet5k(layout: str, tmp_path: Path) -> None:
    """From more than 5,000 synsets; the score among ImageNet-1K's classes comes with it."""
    write_validation(tmp_path, range(1, 12))
    counts = imagenet22k_counts(others=4005)
    if layout == "folder":
        write_imagenet22k_folder(tmp_path, counts)
    else:
        write_imagenet22k_whole(tmp_path / "fall11_whole.tar", counts)
    told = prepare("imagenet5k", tmp_path / "data", f"--manual_dir={tmp_path}")
    assert "train: 5,000 images" in told
    assert "classes: 5,000" in told
    head, scores = train_and_evaluate(
        "imagenet5k.py:resnext11_1x4d", 5000, tmp_path, THREADS, "--config.images_per_epoch=None"
    )
    assert re.match(r"step 2 +centre \d+ of \d+ +11 ", scores)
    assert "1000-way top-1" in head
