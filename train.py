"""The command `python train.py`; --help has the rest."""

from resnext_jax.commands.train import run

if __name__ == "__main__":
    run()
