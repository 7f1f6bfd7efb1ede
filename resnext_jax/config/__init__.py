"""Configs: their fields, their checks, what they are built into, and the command line."""
