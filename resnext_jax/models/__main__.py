"""The command `python -m resnext_jax.models`."""

import sys

from resnext_jax.commands.models import main

if __name__ == "__main__":
    main(sys.argv[1:])
