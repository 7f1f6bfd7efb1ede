"""Benchmarks: each is a command that prints a table and can write it as JSON."""
