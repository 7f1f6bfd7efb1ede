"""Grouped convolution, with a lowering selected by platform, channels and dtype.

A grouped convolution splits the channels into `groups` equal parts that are convolved separately;
it is the core of a ResNeXt block (paper Figure 3c). Compilers handle it badly: on CPUs, XLA's code
for it is about twenty times slower than the same number of multiply-adds in a plain convolution.
There are therefore several lowerings, all equal to `native` up to rounding, and "auto" uses the one
that `lowerings.json` lists as the fastest measured:

native: one XLA convolution with `feature_group_count`.
packed: neighbouring groups are combined into block-diagonal kernels that are wide enough for plain
    convolution code to be efficient. The zeros outside the blocks cost multiplications, so packs
    are kept narrow. An infinity or NaN in one group spreads to its neighbours in the pack.
grouped_packs: the same packs as the groups of one XLA convolution: for TPUs, which have fast code
    for wide groups and would copy feature maps to split and concatenate them. If all groups are in
    one pack, it is a plain convolution, which XLA fuses with the operations before and after it.
matmul: a 1x1 convolution without groups, as a matrix product over positions.
onednn: the library that jaxlib bundles for CPUs, for float32 (see `ops.cpu.onednn`).

"portable" selects like "auto", but among XLA's own operations only: for programs that are exported
(`jax.export` rejects oneDNN's custom calls).
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from resnext_jax.ops import cpu
from resnext_jax.ops.cpu import onednn
from resnext_jax.ops.target import target_platform

# "auto", "portable", or a name in `LOWERINGS`.
Implementation = str

# Zero padding before and after, vertically and horizontally.
Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


def grouped_conv(
    x: Float[Array | np.ndarray, "n h w cin"],
    kernel: Float[Array | np.ndarray, "kh kw cin_per_group cout"],
    *,
    groups: SupportsIndex,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
    implementation: Implementation = "auto",
) -> Float[Array, "n h_out w_out cout"]:
    """Convolve each group of channels with its own kernels (paper Sec. 3.3, Figure 3c).

    "onednn", which "auto" selects for float32 on the CPU, supports reverse-mode differentiation
    only, and no export; "portable" has no such restrictions.

    Args:
      x: images or feature maps, `[N, H, W, Cin]`, floating point.
      kernel: `[kh, kw, Cin / groups, Cout]` (HWIO, as in `lax.conv_general_dilated`), same dtype
        as `x`. Output channels `g * Cout / groups` to `(g + 1) * Cout / groups` belong to group g.
      groups: the cardinality C of the paper; divides Cin and Cout.
      strides: vertical and horizontal stride.
      padding: zeros added before and after, vertically and horizontally. Always explicit: at
        stride 2, `SAME` pads the opposite side to Torch.
      implementation: a key of `LOWERINGS`, "auto" or "portable", which select by platform,
        channels and dtype, never by the batch size.

    Returns:
      `[N, H', W', Cout]`, dtype of `x`.

    Raises:
      ValueError: shapes, dtypes and groups do not fit, or no such implementation.
    """
    x, kernel, groups = jnp.asarray(x), jnp.asarray(kernel), int(groups)
    _check(x, kernel, groups, implementation)
    stride = (int(strides[0]), int(strides[1]))
    pad = ((int(padding[0][0]), int(padding[0][1])), (int(padding[1][0]), int(padding[1][1])))
    if implementation in ("auto", "portable"):
        # Types that say how arrays lie on several devices (JAX's explicit sharding) are
        # understood by XLA's own operations only.
        sharded = any(any(jax.typeof(array).sharding.spec) for array in (x, kernel))
        portable = implementation == "portable" or sharded
        implementation = _choose(kernel, groups, pad, portable=portable)
    return LOWERINGS[implementation](x, kernel, groups, stride, pad)


@dataclasses.dataclass(frozen=True)
class Lowering:
    """The fastest lowerings measured for a platform and dtype; a row of `lowerings.json`.

    Attributes:
      grouped: implementation of convolutions with groups.
      pointwise: implementation of 1x1 convolutions without groups.
      dense: implementation of all other convolutions without groups.
      pack_channels: minimum input channels of a pack. Narrower packs leave vector units idle, wider
        ones multiply more zeros.
      one_pack_channels: maximum input channels for which all groups form a single pack.
    """

    grouped: Implementation
    pointwise: Implementation
    dense: Implementation
    pack_channels: int
    one_pack_channels: int = 0


def measured_lowering(dtype: jax.typing.DTypeLike, *, portable: bool = False) -> Lowering:
    """Look up the target platform and `dtype`; defaults if they were not measured.

    Args:
      dtype: dtype of the convolution.
      portable: whether to select among XLA's own operations only.
    """
    platforms = _table()["platforms"]
    dtypes = platforms.get(target_platform(), platforms["default"])
    if not portable and cpu.has_onednn():
        dtypes = dtypes | platforms["cpu with oneDNN"]
    return Lowering(**dtypes.get(jnp.dtype(dtype).name, dtypes["default"]))


@functools.cache
def _table() -> dict[str, Any]:
    text = importlib.resources.files("resnext_jax.ops").joinpath("lowerings.json").read_text()
    return json.loads(text)


def _choose(kernel: jax.Array, groups: int, padding: Padding, *, portable: bool) -> Implementation:
    lowering = measured_lowering(kernel.dtype, portable=portable)
    if groups > 1:
        return lowering.grouped
    return lowering.pointwise if _is_pointwise(kernel, padding) else lowering.dense


def _native(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    strides: tuple[int, int],
    padding: Padding,
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=_DIMENSION_NUMBERS,
        feature_group_count=groups,
    )


def _packed(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    strides: tuple[int, int],
    padding: Padding,
) -> jax.Array:
    pack = pack_size(groups, kernel.shape[2], x.dtype)
    kernels = block_diagonal_kernels(kernel, groups, pack)
    inputs = jnp.split(x, groups // pack, axis=-1)
    outputs = [
        _native(part, packed, 1, strides, padding)
        for part, packed in zip(inputs, kernels, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)


def pack_size(groups: int, channels_per_group: int, dtype: jax.typing.DTypeLike) -> int:
    """Return the number of neighbouring groups that share one block-diagonal kernel.

    It is the smallest divisor of `groups` for which a pack is wide enough for plain convolution
    code; all groups if there is none, or if all together are narrow enough for one pack.
    """
    lowering = measured_lowering(dtype, portable=True)
    if groups * channels_per_group <= lowering.one_pack_channels:
        return groups
    narrowest = lowering.pack_channels
    for pack in range(1, groups):
        if groups % pack == 0 and pack * channels_per_group >= narrowest:
            return pack
    return groups


def block_diagonal_kernels(
    kernel: Float[Array, "kh kw i groups_o"], groups: int, pack: int
) -> Float[Array, "packs kh kw pack_i pack_o"]:
    """Lay `pack` neighbouring groups' kernels on the diagonal of one wider kernel.

    Args:
      kernel: `[kh, kw, I, groups * O]`, the kernel of a grouped convolution.
      groups: number of groups.
      pack: groups per pack; divides `groups`.

    Returns:
      `[groups / pack, kh, kw, pack * I, pack * O]`: the kernels of
      `groups / pack` plain convolutions, zero outside the blocks.
    """
    height, width, inputs, _ = kernel.shape
    blocks = kernel.reshape(height, width, inputs, groups // pack, pack, -1)
    blocks = jnp.moveaxis(blocks, 3, 0)  # [packs, kh, kw, I, pack (out), O]
    # A select, not a product with the identity: a product would turn an infinite weight into NaN
    # in the whole pack.
    diagonal = jnp.eye(pack, dtype=bool)[:, None, :, None]  # [pack (in), 1, pack (out), 1]
    wide = jnp.where(diagonal, blocks[:, :, :, None], jnp.zeros((), kernel.dtype))
    return wide.reshape(groups // pack, height, width, pack * inputs, -1)


def _grouped_packs(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    strides: tuple[int, int],
    padding: Padding,
) -> jax.Array:
    pack = pack_size(groups, kernel.shape[2], x.dtype)
    wide = tiled_kernel(kernel, groups, pack)
    return _native(x, wide, groups // pack, strides, padding)


def tiled_kernel(
    kernel: Float[Array, "kh kw i groups_o"], groups: int, pack: int
) -> Float[Array, "kh kw pack_i groups_o"]:
    """Widen a grouped convolution's kernel to one of as many groups as there are packs.

    The values are those of `block_diagonal_kernels`, computed without an axis of a group's few
    channels, which TPUs would pad to 128.

    Args:
      kernel: `[kh, kw, I, groups * O]`.
      groups: number of groups.
      pack: groups per pack; divides `groups`.

    Returns:
      `[kh, kw, pack * I, groups * O]`, zero where input and output belong to different groups.
    """
    inputs, outputs = kernel.shape[2:]
    input_group = np.arange(pack * inputs) // inputs
    output_group = np.arange(outputs) // (outputs // groups) % pack
    tiled = jnp.concatenate([kernel] * pack, axis=2)
    return jnp.where(input_group[:, None] == output_group, tiled, jnp.zeros((), kernel.dtype))


def _matmul(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    strides: tuple[int, int],
    padding: Padding,
) -> jax.Array:
    if groups != 1 or not _is_pointwise(kernel, padding):
        raise ValueError(
            "implementation 'matmul' is for 1x1 convolutions without groups or padding, "
            f"got a {kernel.shape[0]}x{kernel.shape[1]} kernel, groups={groups}, padding={padding}."
        )
    return _product_of_positions(x, kernel, strides, jnp.matmul)


def _product_of_positions(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    multiply: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """A 1x1 convolution without groups or padding."""
    x = x[:, :: strides[0], :: strides[1]]
    # On two axes, not four: for the gradients of a product over [N, H, W], XLA copies feature maps
    # into transposed layouts on the CPU.
    rows = multiply(x.reshape(-1, x.shape[-1]), kernel[0, 0])
    return rows.reshape(*x.shape[:3], kernel.shape[3])


def _onednn(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    strides: tuple[int, int],
    padding: Padding,
) -> jax.Array:
    if x.dtype != jnp.float32 or not cpu.has_onednn():
        raise ValueError(
            "implementation 'onednn' is for float32 on the CPU of Linux on x86-64, with jaxlib "
            f"{' or '.join(cpu.TRIED_JAXLIB)} and no compilation cache, got {x.dtype} on "
            f"{target_platform()} with jaxlib {jaxlib.version.__version__}; choose 'auto'."
        )
    if 0 in (x.size, kernel.size) or any(
        size + sum(edges) < taps or min(edges) < 0
        for size, edges, taps in zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)
    ):
        # oneDNN supports neither empty arrays nor negative padding.
        return _native(x, kernel, groups, strides, padding)
    if groups == 1 and _is_pointwise(kernel, padding):
        return _product_of_positions(x, kernel, strides, onednn.matmul)
    return onednn.convolution(x, kernel, groups=groups, strides=strides, padding=padding)


# Functions of images, kernel, number of groups, strides and padding, by name.
LOWERINGS: dict[str, Callable[[jax.Array, jax.Array, int, tuple[int, int], Padding], jax.Array]] = {
    "native": _native,
    "packed": _packed,
    "grouped_packs": _grouped_packs,
    "matmul": _matmul,
    "onednn": _onednn,
}


def _is_pointwise(kernel: jax.Array, padding: Padding) -> bool:
    return kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0))


def _check(x: jax.Array, kernel: jax.Array, groups: int, implementation: str) -> None:
    known = ("auto", "portable", *LOWERINGS)
    if implementation not in known:
        raise ValueError(
            f"unknown implementation {implementation!r} of grouped_conv; "
            f"choose one of {', '.join(known)}."
        )
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "grouped_conv takes x [N,H,W,C] and kernel [kh,kw,C/groups,Cout], "
            f"got shapes {x.shape} and {kernel.shape}."
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"x is {x.dtype} and the kernel {kernel.dtype}; cast one of them.")
    if groups < 1 or x.shape[3] % groups or kernel.shape[3] % groups:
        raise ValueError(
            f"groups={groups} must divide both the input's {x.shape[3]} channels "
            f"and the output's {kernel.shape[3]}."
        )
    if kernel.shape[2] * groups != x.shape[3]:
        raise ValueError(
            f"a kernel of shape {kernel.shape} with groups={groups} takes "
            f"{kernel.shape[2] * groups} input channels, but x has {x.shape[3]}."
        )
