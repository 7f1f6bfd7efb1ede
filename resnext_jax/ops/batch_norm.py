"""Batch normalisation over groups that are independent of the number of devices.

The paper normalises over the 32 images of each of its 8 GPUs. Here `group_size` is the number of
consecutive images of the global batch that share statistics. The groups are the same on any number
of devices: a device can hold several groups, and a group can span several devices.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from resnext_jax.ops.cpu.sums import sum_rows
from resnext_jax.ops.target import target_platform
from resnext_jax.ops.varying import varying_like


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def normalise_groups(
    x: Float[Array, "n *positions c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    near_mean: Float[Array, " c"] | None,
    num_groups: int,
    axis_name: str | None,
    epsilon: float,
) -> tuple[Float[Array, "n *positions c"], Float[Array, "groups c"], Float[Array, "groups c"]]:
    """Normalise each group of consecutive images by its own statistics, then scale and shift.

    The gradient is hand-written: it needs fewer passes over memory than JAX's, and uses sums that
    are fast on the CPU. It is with respect to x, scale and bias, of the first result only (reverse
    mode only).

    Args:
      x: `[N, ..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      near_mean: `[C]`, an estimate of the groups' means, which allows to compute the statistics in
        one pass over x; None: two passes. Its gradient is zero.
      num_groups: number of groups among this device's N images; divides N.
      axis_name: mesh axis of the devices that share one group (`num_groups` must then be 1), or
        None.
      epsilon: added to the variance.

    Returns:
      The result in `x`'s shape, at least float32, and the groups' means and biased variances,
      `[num_groups, C]`.
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
    """Return the groups' means and biased variances, `[groups, 1, C]`, in two passes."""
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
    """Like `_statistics`, but from the moments of the distance to `near_mean`.

    XLA fuses both sums into the convolution that computes the values, which is impossible for a
    second pass. The variance is a difference: if `near_mean` is k standard deviations away from the
    mean, its relative rounding error is 1 + k^2 times that of two passes, so the estimate must be
    good. The running mean is: k is below 1 after some tens of steps. In the first step it is zero,
    which is one or two standard deviations away for the outputs of a convolution of normalised
    inputs (with or without ReLU).
    """
    count = grouped.shape[1]
    distance = grouped - near_mean
    moments = sum_rows(distance) / count, sum_rows(jnp.square(distance)) / count
    if _members(axis_name) > 1:
        moments = lax.pmean(moments, axis_name)
    first, second = moments
    # For equal values, rounding can make the difference negative. (NaN is preserved.)
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
    # The statistics depend on x too, so x's gradient has no component along the mean and the
    # standard deviation of its group.
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
    """Reshape `[N, ..., C]` to `[groups, values, C]`, at least float32."""
    return x.astype(jnp.promote_types(jnp.float32, x.dtype)).reshape(num_groups, -1, x.shape[-1])


def _members(axis_name: str | None) -> int:
    """Number of devices that share a group."""
    return lax.axis_size(axis_name) if axis_name is not None else 1


class BatchNorm(nnx.Module):
    """Batch normalisation over groups of images (paper Sec. 4).

    In training mode each group of `group_size` consecutive images is normalised by its own mean and
    biased variance, and the running statistics are updated once per call, with the averages over
    the groups of their means and unbiased variances. In evaluation mode the running statistics are
    used. Statistics and normalisation are computed at least in float32, also for bfloat16 inputs;
    only the result is rounded to `dtype`.

    If a group spans several devices, `axis_name` is the mesh axis of these devices. Running
    statistics then differ between devices until the caller averages them (the train step does).
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
          group_size: number of images that share statistics; None: all of the layer's input, on
            this device and along `axis_name`.
          axis_name: mesh axis along which devices share a group, or None.
          momentum: weight of the old running statistics, as in Flax (0.9 is 0.1 in Torch).
          epsilon: added to the variance.
          dtype: dtype of the result.
          param_dtype: dtype of scale, shift and running statistics (at least float32 for the
            latter).
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
    def __call__(self, x: Float[Array, "n *positions c"]) -> Float[Array, "n *positions c"]:
        """Normalise `x`.

        Args:
          x: `[N, ..., C]`, floating point.

        Returns:
          The same shape, in `dtype`.

        Raises:
          ValueError: in training mode, if the images cannot be split into groups of `group_size`,
            or a group has a single value per channel.
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
                "batch normalisation needs at least two values per channel in training; "
                f"got x of shape {x.shape} with group_size={self.group_size}."
            )
        unbiased = variance * (count / (count - 1))
        # Statistics shared by devices get the device-varying type again, so that the train step
        # averages those of all layers in the same way.
        self._update_running(varying_like(x, mean), varying_like(x, unbiased))
        return y.astype(self.dtype)

    def _near_mean(self, x: jax.Array) -> jax.Array | None:
        """Return the running mean if one pass over x is faster; on CPUs it is not."""
        if target_platform() == "cpu":
            return None
        return lax.stop_gradient(varying_like(x, self.mean.get_value()))

    def _update_running(self, mean: jax.Array, unbiased_variance: jax.Array) -> None:
        for running, groups in ((self.mean, mean), (self.var, unbiased_variance)):
            old = running.get_value()
            target = lax.stop_gradient(groups).mean(axis=0).astype(old.dtype)
            running.set_value(self.momentum * old + (1 - self.momentum) * target)

    def _num_groups(self, images: int) -> int:
        """Number of groups on this device."""
        members = _members(self.axis_name)
        if self.group_size is None or self.group_size == images * members:
            return 1
        if members > 1 or images % self.group_size:
            raise ValueError(
                f"{images} images per device, on {members} device(s) that share a group, cannot "
                f"be split into batch-norm groups of {self.group_size}; the images must be a "
                "multiple of the group size, or the group must be exactly those devices' images."
            )
        return images // self.group_size
