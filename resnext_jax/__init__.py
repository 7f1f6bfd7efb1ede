"""ResNeXt (Xie et al. 2017) in JAX: networks, training, evaluation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnext_jax.interop.pretrained import create_model, list_models

__all__ = ["create_model", "list_models"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import JAX and the networks only where they are used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from resnext_jax.interop import pretrained

    return getattr(pretrained, name)
