"""Figures made from the logs of runs."""
