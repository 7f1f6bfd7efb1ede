"""The networks of the paper, by name."""

from resnext_jax.models.capacity import Complexity, complexity, width_for_cardinality
from resnext_jax.models.equivalence import convert_form, convert_state
from resnext_jax.models.preact import PreActResNeXt
from resnext_jax.models.registry import create_model, list_models
from resnext_jax.models.resnext import ResNeXt

__all__ = [
    "Complexity",
    "PreActResNeXt",
    "ResNeXt",
    "complexity",
    "convert_form",
    "convert_state",
    "create_model",
    "list_models",
    "width_for_cardinality",
]
