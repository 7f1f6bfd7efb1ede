"""Configuration, mesh, step and loop of training."""
