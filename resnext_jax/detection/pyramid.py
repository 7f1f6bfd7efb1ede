"""Feature pyramids (Lin et al. 2017, "Feature Pyramid Networks for Object Detection").

Maps of the classifier's four stages, from fine to coarse, become maps of one width, P2 to P5, each
of which has seen the coarser ones. Regions are cut out of the one that fits their size.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from resnext_jax.detection import boxes as geometry
from resnext_jax.detection.anchors import AnchorSpec, make_anchors
from resnext_jax.models.layers import LayerOptions

# Of P2 to P5, which regions are cut out of; the region proposal network has P6 too.
STRIDES = (4, 8, 16, 32)
RPN_STRIDES = (*STRIDES, 64)

# A region of the canonical side belongs to this level, P4.
_CANONICAL_LEVEL = STRIDES.index(16)

# Of RoIAlign: a region's samples are several times larger than its bins.
_REGIONS_AT_ONCE = 32


class FeaturePyramid(nnx.Module):
    """Lateral 1x1 convolutions, a top-down path, and 3x3 convolutions (Lin et al. 2017, Sec. 3)."""

    def __init__(
        self, channels: Sequence[int], width: int, options: LayerOptions, *, rngs: nnx.Rngs
    ):
        """Make the layers, without nonlinearities.

        Args:
          channels: of the maps that go in, from fine to coarse.
          width: channels of the maps that come out.
          options: dtypes.
          rngs: whose `params` stream draws the weights: uniform, of variance 1 / inputs (Caffe's
            Xavier filler, as in Detectron; the paper does not say).
        """

        def conv(inputs: int, size: int) -> nnx.Conv:
            return nnx.Conv(
                inputs,
                width,
                (size, size),
                kernel_init=nnx.initializers.lecun_uniform(),
                dtype=options.dtype,
                param_dtype=options.param_dtype,
                rngs=rngs,
            )

        self.lateral = nnx.List([conv(inputs, 1) for inputs in channels])
        self.smooth = nnx.List([conv(width, 3) for _ in channels])

    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Join maps `[N, H_l, W_l, C_l]`, fine to coarse, into as many `[N, H_l, W_l, width]`."""
        laterals = [layer(each) for layer, each in zip(self.lateral, maps, strict=True)]
        merged = laterals[-1:]
        for lateral in laterals[-2::-1]:
            merged.insert(0, lateral + enlarge(merged[0], lateral.shape[1:3]))
        return tuple(layer(each) for layer, each in zip(self.smooth, merged, strict=True))


def enlarge(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat each position of a map twice each way, and cut it to a shape.

    A map of 63 positions has one of 32 above it, at its positions 0, 2, ..., 62: so what is cut
    off is the last of 64.

    Args:
      x: `[N, H, W, C]`.
      shape: height and width, each twice that of x or one less.

    Returns:
      `[N, *shape, C]`.

    Raises:
      ValueError: the shape is another.
    """
    if any(-(-large // 2) != small for large, small in zip(shape, x.shape[1:3], strict=True)):
        raise ValueError(f"a map of {x.shape[1:3]} positions is not half of {tuple(shape)}.")
    twice = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return twice[:, : shape[0], : shape[1]]


def level_anchors(height: int, width: int, specs: Sequence[AnchorSpec]) -> tuple[np.ndarray, ...]:
    """Return the anchors of each level of an image, see `anchors.make_anchors`.

    Args:
      height: of the image with its padding, in pixels.
      width: likewise.
      specs: of the levels; a map has a position for every stride begun.
    """
    return tuple(
        make_anchors(-(-height // spec.stride), -(-width // spec.stride), spec) for spec in specs
    )


def assign_levels(boxes: jax.Array, canonical_side: float = 224) -> jax.Array:
    """Return the level that each region is pooled from (Lin et al. 2017, Eqn. 1).

    That is P_k with k = floor(4 + log2(sqrt(area) / canonical side)), but P2 to P5. Areas are
    compared with the levels' bounds: a logarithm could be rounded across one.

    Args:
      boxes: `[R, 4]`, in pixels of the image.
      canonical_side: of a square that just belongs to P4, in pixels.

    Returns:
      int32 `[R]`, 0 for P2, and so on.
    """
    steps = np.arange(1, len(STRIDES)) - _CANONICAL_LEVEL
    bounds = (canonical_side * 2.0**steps) ** 2
    return (geometry.area(boxes)[:, None] >= bounds).sum(axis=1, dtype=jnp.int32)


def align_at_levels(
    maps: Sequence[jax.Array],
    boxes: jax.Array,
    levels: jax.Array,
    *,
    strides: Sequence[int] = STRIDES,
    output_size: int = 7,
    sampling_ratio: int = 2,
) -> jax.Array:
    """Average bilinear samples in each bin of each region, at the region's own level.

    As `roi.roi_align` for that level. But the maps are concatenated in one table, of which a
    region reads the rows it needs: the products of `roi_align` with whole rows and columns would
    have to be computed at all levels, and on P2 of a COCO image they cost several hundred times
    what the samples do. Samples are of some regions at a time, as all would need hundreds of
    megabytes an image.

    Args:
      maps: `[H_l, W_l, C]`, floating point, from fine to coarse.
      boxes: `[R, 4]`, continuous, in pixels of the image; they have no gradient.
      levels: int32 `[R]`, which map each is cut out of.
      strides: of the maps, in pixels.
      output_size: P, bins a side.
      sampling_ratio: samples a bin, each way.

    Returns:
      `[R, P, P, C]`, dtype of the maps.
    """
    dtype = jnp.promote_types(jnp.float32, maps[0].dtype)
    channels = maps[0].shape[-1]
    table = jnp.concatenate([each.reshape(-1, channels) for each in maps]).astype(dtype)
    shapes = np.array([each.shape[:2] for each in maps], np.int32)
    starts = np.cumsum([0, *shapes.prod(axis=1)[:-1]], dtype=np.int32)
    scales = (1 / np.array(strides)).astype(dtype)
    corners = lax.stop_gradient(boxes).astype(dtype) * jnp.asarray(scales)[levels, None] - 0.5
    lengths = jnp.asarray(shapes)[levels]

    def samples(axis: int) -> tuple[jax.Array, jax.Array]:
        low, high = corners[:, 1 - axis], corners[:, 3 - axis]
        return _samples(low, high - low, lengths[:, axis], output_size, sampling_ratio)

    def cut(region: tuple[jax.Array, ...]) -> jax.Array:
        start, width, rows, row_weights, columns, column_weights = region
        places = start + rows[:, :, None, None] * width + columns
        found = table.at[places].get(mode="promise_in_bounds")
        pooled = jnp.einsum(
            "pi,qj,piqjc->pqc",
            row_weights,
            column_weights,
            found,
            precision=lax.Precision.HIGHEST,
            optimize="optimal",
        )
        return pooled.astype(maps[0].dtype)

    regions = (jnp.asarray(starts)[levels], lengths[:, 1], *samples(0), *samples(1))
    return lax.map(cut, regions, batch_size=_REGIONS_AT_ONCE)


def _samples(
    low: jax.Array, side: jax.Array, length: jax.Array, bins: int, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Find the elements along one axis of a map that make up each bin, and their weights.

    Returns:
      int32 and floating point, `[R, bins, 2 * samples]` each: every sample lies between two.
    """
    steps = ((jnp.arange(bins * samples) + 0.5) / samples).astype(side.dtype)
    places = low[:, None] + steps * (side[:, None] / bins)
    last = length[:, None] - 1
    near = (places >= -1) & (places <= length[:, None])
    # Not only its weight: a box that is not a number must not read beyond the table.
    places = jnp.where(near, jnp.clip(places, 0, last.astype(side.dtype)), 0)
    first = jnp.floor(places).astype(jnp.int32)
    share = places - first
    elements = jnp.stack([first, jnp.minimum(first + 1, last)], axis=-1)
    weights = jnp.where(near[..., None], jnp.stack([1 - share, share], axis=-1), 0) / samples
    shape = (-1, bins, 2 * samples)
    return elements.reshape(shape), weights.reshape(shape)
