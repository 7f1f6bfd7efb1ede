"""Scoring: loss, top-1 and top-5 error."""
