"""One file a command; train.py, eval.py and the documented python -m paths lead here."""
