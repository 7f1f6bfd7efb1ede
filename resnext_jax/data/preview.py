"""The command `python -m resnext_jax.data.preview`."""

from resnext_jax.commands.preview import run

if __name__ == "__main__":
    run()
