"""The command `python -m resnext_jax.reports`."""

import sys

from resnext_jax.commands.reports import main

if __name__ == "__main__":
    main(sys.argv[1:])
