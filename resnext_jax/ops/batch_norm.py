"""Batch normalisation whose groups belong to the recipe, not to the hardware.

The paper normalises over the 32 images that one of its 8 GPUs holds. Here
`group_size` says how many consecutive images of the global batch share
statistics, and the same groups are formed on any number of devices: several
groups inside one device, or several devices to one group.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from resnext_jax.ops.cpu.sums import sum_rows
from resnext_jax.ops.target import target_platform
from resnext_jax.ops.varying import varying_like


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def normalise_groups(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near_mean: jax.Array | None,
    num_groups: int,
    axis_name: str | None,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each group of consecutive images by its own statistics, then scale and shift.

    The gradient is written by hand: fewer passes over memory than the one that
    JAX derives, and sums that XLA runs fast on the CPU. It flows to x, scale and
    bias through the first result only. (Reverse mode only.)

    Args:
      x: `[N, ..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      near_mean: `[C]`, a guess of the groups' means, by which the statistics are computed in
        one pass over x; None: in two passes, which need no guess. No gradient flows to it.
      num_groups: groups inside this device's N images; divides N.
      axis_name: mesh axis of the devices that share one group (which must
        then hold one group each), or None.
      epsilon: added to the variance.

    Returns:
      The result in `x`'s shape, float32 at least, and the groups' means and
      biased variances, `[num_groups, C]`.
    """
    return _forward(x, scale, bias, near_mean, num_groups, axis_name, epsilon)[0]


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near_mean: jax.Array | None,
    num_groups: int,
    axis_name: str | None,
    epsilon: float,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    grouped = _grouped(x, num_groups)
    if near_mean is None:
        mean, variance = _statistics(grouped, axis_name)
    else:
        mean, variance = _statistics_in_one_pass(grouped, near_mean, axis_name)
    inverse = lax.rsqrt(variance + epsilon)
    y = (grouped - mean) * (inverse * scale) + bias
    residuals = x, scale, near_mean, mean, inverse
    return (y.reshape(x.shape), mean[:, 0], variance[:, 0]), residuals


def _statistics(grouped: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Return the groups' means and biased variances, `[groups, 1, C]`, by two passes."""
    count = grouped.shape[1]
    local_mean = sum_rows(grouped) / count
    variance = sum_rows(jnp.square(grouped - local_mean)) / count
    if _members(axis_name) == 1:
        return local_mean, variance
    mean = lax.pmean(local_mean, axis_name)
    return mean, lax.pmean(variance + jnp.square(local_mean - mean), axis_name)


def _statistics_in_one_pass(
    grouped: jax.Array, near_mean: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Return what `_statistics` does, from the moments of the distance to `near_mean`.

    XLA takes both sums into the convolution that makes the values, where it cannot take a second
    pass. The variance is a difference: k deviations between `near_mean` and the mean make its
    relative rounding error 1 + k^2 times that of two passes. So the guess should be good, and the
    running mean is: k is below 1 after some tens of steps. A run's first step has zero for it,
    which for a convolution's results, of inputs that are normalised or ReLUs of such, is a
    deviation or two away.
    """
    count = grouped.shape[1]
    distance = grouped - near_mean
    moments = sum_rows(distance) / count, sum_rows(jnp.square(distance)) / count
    if _members(axis_name) > 1:
        moments = lax.pmean(moments, axis_name)
    first, second = moments
    # Rounding may leave less than nothing of equal values. (A NaN stays one.)
    return near_mean + first, jnp.maximum(second - jnp.square(first), 0)


def _backward(
    num_groups: int,
    axis_name: str | None,
    epsilon: float,
    residuals: Any,
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    del epsilon
    x, scale, near_mean, mean, inverse = residuals
    grouped = _grouped(x, num_groups)
    dy = cotangents[0].reshape(grouped.shape)
    centred = grouped - mean
    sum_dy = sum_rows(dy)
    sum_dy_normalised = sum_rows(dy * centred) * inverse
    # Where the output moves, so do the statistics it was normalised by: x's
    # gradient has no component along the mean and the deviation of its group.
    mean_dy = sum_dy / grouped.shape[1]
    mean_dy_normalised = sum_dy_normalised / grouped.shape[1]
    if _members(axis_name) > 1:
        mean_dy, mean_dy_normalised = lax.pmean((mean_dy, mean_dy_normalised), axis_name)
    dx = (dy - mean_dy - centred * (inverse * mean_dy_normalised)) * (inverse * scale)
    return (
        dx.reshape(x.shape).astype(x.dtype),
        sum_dy_normalised.sum(axis=(0, 1)).astype(scale.dtype),
        sum_dy.sum(axis=(0, 1)).astype(scale.dtype),
        None if near_mean is None else jnp.zeros_like(near_mean),
    )


normalise_groups.defvjp(_forward, _backward)


def _grouped(x: jax.Array, num_groups: int) -> jax.Array:
    """`[N, ..., C]` to `[groups, values, C]`, float32 at least."""
    return x.astype(jnp.promote_types(jnp.float32, x.dtype)).reshape(num_groups, -1, x.shape[-1])


def _members(axis_name: str | None) -> int:
    """How many devices share a group."""
    return lax.axis_size(axis_name) if axis_name is not None else 1


class BatchNorm(nnx.Module):
    """Batch normalisation over groups of images (paper Sec. 4).

    In training mode each group of `group_size` consecutive images is normalised
    by its own mean and biased variance, and the running statistics move once a
    call, towards the mean over the groups of the groups' means and unbiased
    variances. In evaluation mode the running statistics normalise.
    Statistics and normalisation are computed in float32 at least, also when
    `x` is bfloat16; only the result is rounded to `dtype`.

    Where one group spans devices, `axis_name` names the mesh axis of the devices
    that share it. Running statistics are then a device's own until the caller
    averages them over all devices (the train step does).
    """

    def __init__(
        self,
        num_features: int,
        *,
        group_size: int | None = None,
        axis_name: str | None = None,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        """Make the layer.

        Args:
          num_features: channels C.
          group_size: images that share statistics; None means all that the
            layer sees, on this device and along `axis_name`.
          axis_name: mesh axis along which devices share a group, or None.
          momentum: weight of the old running statistics, Flax's convention
            (0.9 here is Torch's 0.1).
          epsilon: added to the variance.
          dtype: of the result.
          param_dtype: of scale, shift and running statistics (the latter at
            least float32).
        """
        self.group_size = group_size
        self.axis_name = axis_name
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.use_running_average = False
        statistics_dtype = jnp.promote_types(jnp.float32, param_dtype)
        self.scale = nnx.Param(jnp.ones(num_features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(num_features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, statistics_dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, statistics_dtype))

    def set_view(self, *, use_running_average: bool | None = None) -> None:
        """Choose the mode; what `nnx.view(model, use_running_average=...)` calls on a copy.

        Args:
          use_running_average: True for evaluation, False for training; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    @jax.named_scope("batch_norm")
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `x`.

        Args:
          x: `[N, ..., C]`, floating point.

        Returns:
          The same shape, in `dtype`.

        Raises:
          ValueError: in training mode, where the images cannot be split into
            groups of `group_size`, or a group has a single value a channel.
        """
        scale = self.scale.get_value()
        bias = self.bias.get_value()
        if self.use_running_average:
            inverse = lax.rsqrt(self.var.get_value() + self.epsilon)
            wide = x.astype(jnp.promote_types(inverse.dtype, x.dtype))
            centred = wide - self.mean.get_value()
            return (centred * (inverse * scale) + bias).astype(self.dtype)
        num_groups = self._num_groups(x.shape[0])
        y, mean, variance = normalise_groups(
            x,
            varying_like(x, scale),
            varying_like(x, bias),
            self._near_mean(x),
            num_groups,
            self.axis_name,
            self.epsilon,
        )
        count = x.size // x.shape[-1] // num_groups * _members(self.axis_name)
        if count < 2:
            raise ValueError(
                "batch normalisation needs at least two values a channel in training; "
                f"got x of shape {x.shape} with group_size={self.group_size}."
            )
        unbiased = variance * (count / (count - 1))
        # Statistics that devices share are typed as a device's own again, so that
        # a train step averages all layers' alike.
        self._update_running(varying_like(x, mean), varying_like(x, unbiased))
        return y.astype(self.dtype)

    def _near_mean(self, x: jax.Array) -> jax.Array | None:
        """Return the running mean where one pass over x is faster; on CPUs it is not."""
        if target_platform() == "cpu":
            return None
        return lax.stop_gradient(varying_like(x, self.mean.get_value()))

    def _update_running(self, mean: jax.Array, unbiased_variance: jax.Array) -> None:
        for running, groups in ((self.mean, mean), (self.var, unbiased_variance)):
            old = running.get_value()
            target = lax.stop_gradient(groups).mean(axis=0).astype(old.dtype)
            running.set_value(self.momentum * old + (1 - self.momentum) * target)

    def _num_groups(self, images: int) -> int:
        """Groups inside this device."""
        members = _members(self.axis_name)
        if self.group_size is None or self.group_size == images * members:
            return 1
        if members > 1 or images % self.group_size:
            raise ValueError(
                f"{images} images a device, on {members} device(s) that share a group, cannot "
                f"be split into batch-norm groups of {self.group_size}; the images must be a "
                "multiple of the group size, or the group must be exactly those devices' images."
            )
        return images // self.group_size
