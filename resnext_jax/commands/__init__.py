"""One file a command; train.py, eval.py and the documented python -m paths lead here."""

import resnext_jax.detection.config  # noqa: F401  its tasks, which any workdir may hold
