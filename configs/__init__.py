"""Recipes: one file per data set, and short files for the main experiments."""
