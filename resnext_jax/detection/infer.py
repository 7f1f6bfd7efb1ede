"""The command `python -m resnext_jax.detection.infer`."""

import sys

from resnext_jax.commands.infer import main

if __name__ == "__main__":
    main(sys.argv[1:])
