"""Prepare a data set: convert raw files to array records."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from resnext_jax.data.builders.base import Inputs
from resnext_jax.data.catalog import CATALOG
from resnext_jax.data.prepare import prepare
from resnext_jax.errors import CommandParser, reports_user_errors
from resnext_jax.files import path_argument


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m resnext_jax.data.prepare",
        description="Prepare a data set: convert raw files to array records.",
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, choices=sorted(CATALOG), help="data set")
    options: dict[str, dict[str, Any]] = {
        "manual_dir": {
            "metavar": "DIR",
            "type": path_argument,
            "help": "folder with the archives, or with train/ and val/",
        },
        "archive": {"metavar": "FILE", "type": path_argument, "help": "the archive (CIFAR)"},
        "synsets": {
            "metavar": "FILE",
            "type": path_argument,
            "help": "file of synsets to use, one per line (ImageNet-5K)",
        },
        "trust_archives": {
            "action": "store_true",
            "help": "accept archives that differ from the published ones",
        },
        "data_dir": {
            "metavar": "DIR",
            "type": path_argument,
            "help": "folder to write to (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
        },
    }
    for option, settings in options.items():
        spellings = {f"--{option}": None, f"--{option.replace('_', '-')}": None}
        parser.add_argument(*spellings, **settings)
    return parser.parse_args(argv)


def _summary(builder: tfds.core.DatasetBuilder) -> str:
    """Describe a prepared data set and its location."""
    folder = Path(builder.data_dir)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return "\n".join(
        [
            f"data set: {builder.name} {builder.version}",
            *(
                f"{split}: {info.num_examples:,} images"
                for split, info in builder.info.splits.items()
            ),
            f"classes: {builder.info.features['label'].num_classes:,}",
            f"size: {size:,} bytes",
            f"folder: {folder}",
        ]
    )


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the command that prepares a data set, and print a summary."""
    options = _parse(argv)
    logging.set_verbosity(logging.ERROR)
    inputs = Inputs(options.manual_dir, options.archive, options.synsets, options.trust_archives)
    print(_summary(prepare(options.dataset, inputs, options.data_dir)))
