"""The command `python eval.py`; --help has the rest."""

from resnext_jax.commands.eval import run

if __name__ == "__main__":
    run()
