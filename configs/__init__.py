"""Recipes: one file a data set, and thin files for the headline experiments."""
