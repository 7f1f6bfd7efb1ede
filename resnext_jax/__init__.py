"""ResNeXt (Xie et al. 2017) in JAX: networks, training, evaluation."""

__version__ = "0.1.0"
