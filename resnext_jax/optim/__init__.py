"""Optimisers, schedules, weight averages and freezing, in terms of optax alone."""
