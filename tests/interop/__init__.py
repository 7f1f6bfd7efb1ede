"""Tests of the package `resnext_jax.interop`."""
