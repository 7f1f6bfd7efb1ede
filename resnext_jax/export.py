"""The command `python -m resnext_jax.export`."""

import sys

from resnext_jax.commands.export import main

if __name__ == "__main__":
    main(sys.argv[1:])
