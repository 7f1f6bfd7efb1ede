"""Generate a detection data set of handwritten digits in COCO's format."""

import argparse
from collections.abc import Sequence

from resnext_jax.detection.synthetic import SPLITS, SceneSpec, make_scenes
from resnext_jax.errors import CommandParser, reports_user_errors
from resnext_jax.files import path_argument


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the command that generates scenes."""
    defaults = SceneSpec()
    parser = CommandParser(
        prog="python -m resnext_jax.detection.synthetic",
        description="Generate a detection data set of handwritten digits in COCO's format.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=path_argument, help="folder to create"
    )
    parser.add_argument(
        "--train", type=int, default=defaults.train, help="number of training scenes"
    )
    parser.add_argument("--test", type=int, default=defaults.test, help="number of test scenes")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="random seed")
    options: argparse.Namespace = parser.parse_args(argv)
    spec = SceneSpec(train=options.train, test=options.test, seed=options.seed)
    scenes = make_scenes(options.out, spec)
    for split, count in zip(SPLITS, (spec.train, spec.test), strict=True):
        print(f"{split}: {count} scenes, {scenes.images(split)}, {scenes.annotations(split)}")
