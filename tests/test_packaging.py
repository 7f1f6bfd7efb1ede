"""Recipes can be imported from a wheel, an editable installation and a bare clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.programs import ROOT

IMPORT = "from resnext_jax.configs import imagenet, digits_resnext29 as d; d.get_config(); print(d)"


def import_configs(folder: Path, path: Path | str) -> str:
    """Import recipes in a new process, and return where they were found."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_clone() -> None:
    """In its folder, and from elsewhere by the path that an editable installation adds."""
    for folder in (ROOT, ROOT.parent):
        assert str(ROOT / "resnext_jax" / "configs") in import_configs(folder, ROOT)


@pytest.mark.slow
def test_from_a_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "resnext_jax/ops/lowerings.json" in names
    assert not [name for name in names if name.split("/")[0] in ("tests", "configs")]
    found = import_configs(tmp_path, tmp_path / "site")
    assert str(tmp_path / "site" / "resnext_jax" / "configs") in found
