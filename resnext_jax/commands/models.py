"""Print what models cost: parameters and multiply-adds."""

import argparse
import sys
from collections.abc import Sequence

from resnext_jax.models.capacity import complexity


def main(argv: Sequence[str]) -> None:
    """Print a table of the models named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_jax.models",
        description="Parameters and multiply-adds of models.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="model, e.g. resnext50_32x4d")
    parser.add_argument("--image-size", type=int, help="default: 224, or 32 for CIFAR networks")
    parser.add_argument("--num-classes", type=int, help="default: 1000, or 10 for CIFAR networks")
    parser.add_argument("--stages", action="store_true", help="a line for each stage too")
    parsed = parser.parse_args(argv)
    print(f"{'model':24s} {'image':>5s} {'parameters':>12s} {'multiply-adds':>14s}")
    for name in parsed.names:
        try:
            cost = complexity(name, image_size=parsed.image_size, num_classes=parsed.num_classes)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        print(f"{name:24s} {cost.image_size:5d} {cost.params:12,d} {cost.macs / 1e9:12.3f} G")
        if parsed.stages:
            for stage, (params, macs) in cost.by_stage.items():
                print(f"  {stage:22s} {'':5s} {params:12,d} {macs / 1e9:12.3f} G")
