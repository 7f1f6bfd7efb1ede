"""Convolutions and matrix products of oneDNN, the CPU library that jaxlib bundles.

jaxlib is built with oneDNN, and XLA's CPU backend implements custom calls to it,
`__onednn$convolution` and `__onednn$matmul`. XLA does not generate these calls at present, so this
module does. It is worthwhile because oneDNN has kernels for narrow groups and XLA has none
(docs/performance.md has measurements).

The calls are internal to XLA: the next jaxlib may remove them or change the meaning of their
settings, and oneDNN aborts the process on unsupported arguments. So check `cpu.has_onednn` first,
and only pass arrays as documented below: nothing here validates them. `grouped_conv` does both.

A convolution, its input gradient and its kernel gradient are three contractions of the same
trilinear form of x, kernel and dy, so that the gradients of each are the other two. XLA provides
only the first; the others are expressed as forward convolutions:

- Input gradient with strides: rows of x whose distance is a multiple of the stride are multiplied
  by the same taps of the kernel. Each such phase is a plain convolution of dy with those taps,
  mirrored, and the phases are interleaved.
- Kernel gradient: `dk[a, b, i, o]` sums `x[n, s h + a, s w + b, i] dy[n, h, w, o]` over n, h and w.
  Use dy as a kernel as large as the feature map, from n channels to o, and x as one image with n
  channels whose columns are the pairs (w, i), i varying faster. Convolve the two with the kernel
  dilated by s rows and s |i| columns: the rows of the result are dk's a, its columns (b, i). The
  large number of columns makes this fast.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resnext_jax.ops.varying import varying_like

# Padding before and after, vertically and horizontally.
Edges = tuple[tuple[int, int], tuple[int, int]]

# Number of output channels that oneDNN computes at once: 16 floats are 512 bits.
_VECTOR = 16


def convolution(
    x: jax.Array, kernel: jax.Array, *, groups: int, strides: tuple[int, int], padding: Edges
) -> jax.Array:
    """Grouped convolution, with reverse-mode gradients of any order.

    Args:
      x: `[N, H, W, Cin]`, float32, not empty.
      kernel: `[kh, kw, Cin / groups, Cout]`, float32.
      groups: divides Cin and Cout.
      strides: vertical and horizontal.
      padding: zeros before and after, vertically and horizontally.

    Returns:
      `[N, H', W', Cout]`, float32; oneDNN fails if it is empty.
    """
    x = varying_like(kernel, x)
    kernel = varying_like(x, kernel)
    geometry = _Geometry(groups, strides, padding, _pair(x.shape[1:3]), _pair(kernel.shape[:2]))
    return _convolve(x, kernel, geometry)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Product of `[M, K]` and `[K, N]`, float32, not empty; reverse-mode gradients of any order."""
    a = varying_like(b, a)
    return _multiply(a, varying_like(a, b), False, False)


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """The parameters that a convolution and its gradients have in common.

    Attributes:
      groups: number of groups.
      strides: vertical and horizontal.
      padding: before and after, vertically and horizontally.
      image: height and width of x.
      taps: height and width of the kernel.
    """

    groups: int
    strides: tuple[int, int]
    padding: Edges
    image: tuple[int, int]
    taps: tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """The convolution, `[N, H', W', Cout]`."""
    return _call_convolution(
        x, kernel, geometry.groups, strides=geometry.strides, padding=geometry.padding
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_gradient(dy: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """The gradient by x, `[N, H, W, Cin]`."""
    groups, strides = geometry.groups, geometry.strides
    phase_size = [-(-size // stride) for size, stride in zip(geometry.image, strides, strict=True)]

    def phase(row: int, column: int) -> jax.Array:
        """Gradient of the elements at multiples of the strides from (row, column)."""
        taps, edges = [], []
        for axis, start in enumerate((row, column)):
            stride, low = strides[axis], geometry.padding[axis][0]
            # Tap `first + stride * j` multiplies element t by dy's element `base + t - j`.
            base, first = divmod(start + low, stride)
            taps.append(slice(first, None, stride))
            count = len(range(first, geometry.taps[axis], stride))
            edges.append((count - 1 - base, phase_size[axis] + base - dy.shape[1 + axis]))
        met = kernel[tuple(taps)]
        cropped, padding = _crop(dy, edges)
        if 0 in (met.size, cropped.size):  # no window contains these elements
            shape = (dy.shape[0], *phase_size, kernel.shape[2] * groups)
            return varying_like(dy, jnp.zeros(shape, dy.dtype))
        return _call_convolution(cropped, _mirrored(met, groups), groups, padding=padding)

    if strides == (1, 1):
        return phase(0, 0)
    rows = [
        jnp.stack([phase(row, column) for column in range(strides[1])], axis=3)
        for row in range(strides[0])
    ]
    interleaved = jnp.stack(rows, axis=2)  # [N, h, stride, w, stride, C]
    sizes = [size * stride for size, stride in zip(phase_size, strides, strict=True)]
    whole = interleaved.reshape(dy.shape[0], *sizes, -1)
    return whole[:, : geometry.image[0], : geometry.image[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x: jax.Array, dy: jax.Array, geometry: _Geometry) -> jax.Array:
    """The gradient by the kernel, `[kh, kw, Cin / groups, Cout]`."""
    groups, taps, strides = geometry.groups, geometry.taps, geometry.strides
    inputs, outputs = x.shape[3] // groups, dy.shape[3] // groups
    # Narrow groups are computed in packs of neighbours, of which only the diagonal blocks are kept:
    # a vector always computes 16 outputs.
    pack = next(
        n
        for n in range(1, groups + 1)
        if groups % n == 0 and (n * outputs >= _VECTOR or n == groups)
    )
    packs = groups // pack
    # Pad x at the end up to where its last window ends; negative padding crops.
    edges = [
        (low, (positions - 1) * stride + size - length - low)
        for positions, stride, size, length, (low, _) in zip(
            dy.shape[1:3], strides, taps, geometry.image, geometry.padding, strict=True
        )
    ]
    x, padding = _crop(x, edges)
    if x.size == 0:  # the windows contain only padding
        return varying_like(dy, jnp.zeros((*taps, inputs, groups * outputs), dy.dtype))
    images, height, width, _ = x.shape
    image = x.reshape(images, height, width, packs, pack * inputs).transpose(1, 2, 4, 3, 0)
    image = image.reshape(1, height, width * pack * inputs, packs * images)
    found = _call_convolution(
        image,
        dy,
        packs,
        kernel_axes=(1, 2, 0, 3),
        padding=(padding[0], _pair(n * pack * inputs for n in padding[1])),
        dilation=(strides[0], strides[1] * pack * inputs),
    )
    blocks = found.reshape(*taps, pack, inputs, packs, pack, outputs)
    diagonal = jnp.stack([blocks[:, :, n, :, :, n] for n in range(pack)], axis=4)
    return diagonal.reshape(*taps, inputs, groups * outputs)


def _define_gradients() -> None:
    """Define the gradients of each of the three functions by the other two."""
    _convolve.defvjp(
        lambda x, kernel, geometry: (_convolve(x, kernel, geometry), (x, kernel)),
        lambda geometry, operands, dy: (
            _input_gradient(dy, operands[1], geometry),
            _kernel_gradient(operands[0], dy, geometry),
        ),
    )
    _input_gradient.defvjp(
        lambda dy, kernel, geometry: (_input_gradient(dy, kernel, geometry), (dy, kernel)),
        lambda geometry, operands, x: (
            _convolve(x, operands[1], geometry),
            _kernel_gradient(x, operands[0], geometry),
        ),
    )
    _kernel_gradient.defvjp(
        lambda x, dy, geometry: (_kernel_gradient(x, dy, geometry), (x, dy)),
        lambda geometry, operands, kernel: (
            _input_gradient(operands[1], kernel, geometry),
            _convolve(operands[0], kernel, geometry),
        ),
    )


_define_gradients()


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _multiply(a: jax.Array, b: jax.Array, transpose_a: bool, transpose_b: bool) -> jax.Array:
    """Product of two matrices, each of which may be stored transposed."""
    shape = (a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1])
    settings = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    return _call("matmul", {"onednn_matmul_config": settings}, shape, a, b)


def _multiply_forward(
    a: jax.Array, b: jax.Array, transpose_a: bool, transpose_b: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _multiply(a, b, transpose_a, transpose_b), (a, b)


def _multiply_backward(
    transpose_a: bool, transpose_b: bool, operands: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    return (
        _multiply(b, dy, transpose_b, True)
        if transpose_a
        else _multiply(dy, b, False, not transpose_b),
        _multiply(dy, a, True, transpose_a)
        if transpose_b
        else _multiply(a, dy, not transpose_a, False),
    )


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _call_convolution(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    *,
    padding: Edges,
    strides: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    kernel_axes: tuple[int, int, int, int] = (0, 1, 2, 3),
) -> jax.Array:
    """Call a forward convolution of NHWC images; `kernel_axes` are the kernel's H, W, I and O."""
    vertical, horizontal, inputs, outputs = kernel_axes
    taps = kernel.shape[vertical], kernel.shape[horizontal]
    size = [
        (length + sum(edges) - (count - 1) * apart - 1) // stride + 1
        for length, edges, count, apart, stride in zip(
            x.shape[1:3], padding, taps, dilation, strides, strict=True
        )
    ]
    images = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    weights = {
        "input_feature_dim": inputs,
        "output_feature_dim": outputs,
        "spatial_dims": [vertical, horizontal],
    }
    settings = {
        "dims": 4,
        "feature_groups": groups,
        "input": images,
        "kernel": {"filter": weights},
        "output": images,
        "window": {
            "size": taps,
            "pad_left": [before for before, _ in padding],
            "pad_right": [after for _, after in padding],
            "strides": strides,
            "window_dilations": dilation,
        },
    }
    shape = (x.shape[0], *size, kernel.shape[outputs])
    return _call("convolution", {"onednn_conv_config": settings}, shape, x, kernel)


def _call(
    name: str, settings: Mapping[str, Any], shape: tuple[int, ...], *operands: jax.Array
) -> jax.Array:
    """Call one of oneDNN's custom calls; all operands must vary over the same devices."""
    call = jax.ffi.ffi_call(
        f"__onednn${name}",
        jax.ShapeDtypeStruct(shape, jnp.float32),
        vmap_method="sequential",
        custom_call_api_version=2,  # the older API, whose settings are a string
        legacy_backend_config=json.dumps(settings),
    )
    return varying_like(operands[0], call(*operands))


def _mirrored(kernel: jax.Array, groups: int) -> jax.Array:
    """Map `[kh, kw, I, groups * O]` to `[kh, kw, O, groups * I]`, with the taps mirrored."""
    height, width, inputs, _ = kernel.shape
    split = kernel[::-1, ::-1].reshape(height, width, inputs, groups, -1)
    return split.swapaxes(2, 4).reshape(height, width, -1, groups * inputs)


def _crop(x: jax.Array, edges: Sequence[tuple[int, int]]) -> tuple[jax.Array, Edges]:
    """Crop x by the negative part of the padding; return it with the remaining padding."""
    cut = [(max(-before, 0), max(-after, 0)) for before, after in edges]
    left = tuple((max(before, 0), max(after, 0)) for before, after in edges)
    rows, columns = (
        slice(before, max(before, size - after))
        for (before, after), size in zip(cut, x.shape[1:3], strict=True)
    )
    return x[:, rows, columns], (left[0], left[1])


def _pair(numbers: Iterable[int]) -> tuple[int, int]:
    first, second = numbers
    return first, second
