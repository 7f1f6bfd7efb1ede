"""The networks of the paper, by name."""

from resnext_jax.models.registry import create_model, list_models
from resnext_jax.models.resnext import ResNeXt

__all__ = ["ResNeXt", "create_model", "list_models"]
