"""Print what models cost: python -m resnext_jax.models.complexity NAME...

Only a command: the function lives in `models.capacity`. It is public by this module's name,
`resnext_jax.models.complexity`, so this module can be called as the function can; whoever
imports it as a module does not take the function from others.
"""

import argparse
import sys
import types
from typing import Any

from resnext_jax.models.capacity import Complexity, complexity


def main(arguments: list[str] | None = None) -> None:
    """Print a table of the models named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_jax.models.complexity",
        description="Parameters and multiply-adds of models.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="model, e.g. resnext50_32x4d")
    parser.add_argument("--image-size", type=int, help="default: 224, or 32 for CIFAR networks")
    parser.add_argument("--num-classes", type=int, help="default: 1000, or 10 for CIFAR networks")
    parser.add_argument("--stages", action="store_true", help="a line for each stage too")
    parsed = parser.parse_args(arguments)
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


class _CallableModule(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Complexity:
        return complexity(*args, **kwargs)


if __name__ == "__main__":
    main()
else:
    sys.modules[__name__].__class__ = _CallableModule
