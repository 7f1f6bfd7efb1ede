"""The command `python -m resnext_jax.predict`."""

import sys

from resnext_jax.commands.predict import main

if __name__ == "__main__":
    main(sys.argv[1:])
