"""The benchmark of detection runs and writes what it promises; no test looks at a time."""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from benchmarks import detection
from benchmarks.detection_operators import NotMeasured, Program
from tests.test_benchmarks import run_benchmark


def test_rows_of_operators(tmp_path: Path) -> None:
    """Without PyTorch: suppression, and pooling with and without its gradient."""
    written, printed = run_benchmark(
        "detection.py",
        tmp_path / "detection.json",
        "--rows nms-6000 pool-64 pool-64-gradient --channels 2 --rounds 1 --limit 0.1",
    )
    assert [(row["row"], row["library"]) for row in written["rows"]] == [
        *(("nms-6000", library) for library in detection.LIBRARIES),
        *(("pool-64", library) for library in detection.LIBRARIES),
        ("pool-64-gradient", "jax"),
        *(("pool-64-gradient", library) for library in detection.LIBRARIES[1:]),
    ]
    for row in written["rows"]:
        if row["library"].startswith("torch"):
            assert row["not_measured"] == "PyTorch is not installed"
        elif row["library"] == "onnxruntime" and row["row"] == "pool-64-gradient":
            assert row["not_measured"] == "it has no gradients"
        else:
            assert row["median_ms"] > 0
            assert row["times_jax"] > 0
            assert row["difference"] == (None if row["library"] == "jax" else 0)
    assert "onnxruntime" in written["versions"]
    assert "torchvision is not measured in nms-6000, pool-64, pool-64-gradient: Py" in printed
    assert "differs" not in printed


def test_a_row_says_what_differs_and_what_fails() -> None:
    def build(value: float) -> Program:
        return Program(lambda: jnp.full(3, value))

    def refuse(_: argparse.Namespace) -> Program:
        raise NotMeasured("for a reason")

    def fail() -> None:
        raise MemoryError("too large\nand more of it")

    row = detection.Measurement(
        "tiny",
        "a tiny row",
        {
            "jax": lambda _: build(1.0),
            "onnxruntime": lambda _: build(1.5),
            "torchvision": refuse,
            "torch": lambda _: Program(fail),
        },
    )
    result = detection.measure_row(row, argparse.Namespace(rounds=1, limit=0.1))
    assert result.timings.keys() == {"jax", "onnxruntime"}
    assert result.differences == {"onnxruntime": 0.5}
    assert result.reasons == {
        "torchvision": "for a reason",
        "torch": "failed: MemoryError: too large",
    }
    assert result.cell("torch") == "not measured"
    assert result.cell("onnxruntime").endswith("x")


def test_a_row_of_ours_alone_leaves_the_others_out() -> None:
    row = detection.Measurement("ours", "ours", {"jax": lambda _: Program(lambda: jnp.zeros(1))})
    result = detection.measure_row(row, argparse.Namespace(rounds=1, limit=0.1))
    assert [result.cell(library) for library in detection.LIBRARIES[1:]] == ["-", "-", "-"]
    assert np.isclose(result.ratio("jax") or 0, 1)
