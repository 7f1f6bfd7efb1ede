"""Optimisers, schedules, weight averaging and freezing, built on optax."""
