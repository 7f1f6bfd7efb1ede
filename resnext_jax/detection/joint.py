"""Faster R-CNN as one network: proposals and detections from features that both share.

Beyond the paper, which trains two networks. Both classes here have the same three steps, which a
training and a detector call one after the other: `features` of the images, `rpn_outputs` of all
anchors, and `on_regions` for regions that were chosen among those. Neither step has a part in the
choice, so that no gradient goes through it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from resnext_jax.detection.models import (
    REGION_STAGES,
    SHARED_STAGES,
    Backbone,
    FastRCNN,
    RoiSpec,
    RPNHead,
)
from resnext_jax.detection.pyramid import FeaturePyramid, align_at_levels, assign_levels
from resnext_jax.models.execution import apply_stages
from resnext_jax.models.resnext import NetworkSpec


class JointFasterRCNN(FastRCNN):
    """Fast R-CNN with a region proposal network on its shared map (Ren et al. 2017, Sec. 3.2)."""

    def __init__(
        self,
        spec: NetworkSpec,
        *,
        anchors_per_position: int,
        rpn_width: int = 512,
        roi: RoiSpec | None = None,
        rngs: nnx.Rngs,
    ):
        """Make the network.

        Args:
          spec: of the backbone; its `num_classes` counts the background, class 0, too.
          anchors_per_position: A.
          rpn_width: channels of the 3x3 convolution of the region proposal network's head.
          roi: how regions are cut out; None: as in the paper.
          rngs: whose `params` stream draws the weights.
        """
        super().__init__(spec, roi=roi, rngs=rngs)
        features = self.channels(SHARED_STAGES[-1])
        self.rpn = RPNHead(spec, features, anchors_per_position, rpn_width, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """Map images `[N, H, W, 3]`, normalised, to the shared map, see `Backbone`."""
        return self.shared_map(images)

    def rpn_outputs(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Score and move every anchor; returns logits and deltas, see `models.RPN`."""
        return self.rpn(features)


@dataclasses.dataclass(frozen=True)
class PyramidSpec:
    """What a network on a feature pyramid has beyond its backbone (Lin et al. 2017).

    Attributes:
      width: channels of every level.
      canonical_side: see `pyramid.assign_levels`.
      roi_size: side of a region that is cut out, in positions.
      sampling_ratio: see `pyramid.align_at_levels`.
      head_width: of the two layers that are run on each region.
    """

    width: int = 256
    canonical_side: float = 224
    roi_size: int = 7
    sampling_ratio: int = 2
    head_width: int = 1024


class PyramidFasterRCNN(Backbone):
    """Faster R-CNN on a feature pyramid, whose heads are shared by all levels (Lin et al. 2017).

    Regions have two layers of their own, in place of conv5, which the pyramid has.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        *,
        anchors_per_position: int,
        rpn_width: int = 256,
        pyramid: PyramidSpec | None = None,
        rngs: nnx.Rngs,
    ):
        """Make the network.

        Args:
          spec: of the backbone; its `num_classes` counts the background, class 0, too.
          anchors_per_position: A, on each level.
          rpn_width: see `JointFasterRCNN`.
          pyramid: what else it has; None: as in the paper.
          rngs: whose `params` stream draws the weights.
        """
        stages = (*SHARED_STAGES, *REGION_STAGES)
        super().__init__(spec, stages, rngs=rngs)
        self.pyramid = pyramid = pyramid or PyramidSpec()
        options, classes, width = spec.options, spec.num_classes, pyramid.width
        channels = [self.channels(stage) for stage in stages]
        self.fpn = FeaturePyramid(channels, width, options, rngs=rngs)
        self.rpn = RPNHead(spec, width, anchors_per_position, rpn_width, rngs=rngs)

        def linear(inputs: int, outputs: int, init: nnx.Initializer, *, wide: bool) -> nnx.Linear:
            dtype = jnp.promote_types(jnp.float32, options.param_dtype) if wide else options.dtype
            return nnx.Linear(
                inputs,
                outputs,
                kernel_init=init,
                dtype=dtype,
                param_dtype=options.param_dtype,
                rngs=rngs,
            )

        xavier, normal = nnx.initializers.lecun_uniform(), nnx.initializers.normal
        hidden = pyramid.head_width
        self.fc1 = linear(pyramid.roi_size**2 * width, hidden, xavier, wide=False)
        self.fc2 = linear(hidden, hidden, xavier, wide=False)
        self.cls = linear(hidden, classes, normal(0.01), wide=True)
        self.box = linear(hidden, 4 * classes, normal(0.001), wide=True)

    def features(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Map images `[N, H, W, 3]`, normalised, to P2 to P5, `[N, H / stride, W / stride, width]`.

        Any height and width will do; sizes are rounded up.
        """
        x = self.spec.architecture.apply_stem(self.stem, images)
        maps = apply_stages(self.stages, x, self.spec.execution)
        return self.fpn([maps[stage] for stage in (*SHARED_STAGES, *REGION_STAGES)])

    def rpn_outputs(self, features: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        """Score and move every anchor of P2 to P6, which is every second position of P5.

        Returns:
          Logits `[N, K, 2]` and deltas `[N, K, 4]`, level after level, each as `models.RPN`'s.
        """
        levels = (*features, features[-1][:, ::2, ::2])
        logits, deltas = zip(*(self.rpn(each) for each in levels), strict=True)
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)

    def on_regions(
        self, features: tuple[jax.Array, ...], boxes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Classify and refine regions `[N, R, 4]`; returns logits and deltas, see `FastRCNN`."""
        spec, (images, regions) = self.pyramid, boxes.shape[:2]

        def cut(maps: tuple[jax.Array, ...], boxes: jax.Array) -> jax.Array:
            return align_at_levels(
                maps,
                boxes,
                assign_levels(boxes, spec.canonical_side),
                output_size=spec.roi_size,
                sampling_ratio=spec.sampling_ratio,
            )

        pooled = jax.vmap(cut)(features, boxes)
        hidden = nnx.relu(self.fc1(pooled.reshape(images * regions, -1)))
        hidden = nnx.relu(self.fc2(hidden))
        logits, deltas = self.cls(hidden), self.box(hidden)
        return logits.reshape(images, regions, -1), deltas.reshape(images, regions, -1, 4)
