"""The two networks of Faster R-CNN on a ResNet or ResNeXt (paper Sec. 5.4, He et al. 2016).

Both begin with the classifier's conv1 to conv4, under the classifier's names, so that its weights
go in by name: the shared map has stride 16. The region proposal network slides a head over that
map. Fast R-CNN pools each region from it to 14x14, and runs conv5 and the average pooling of the
classifier on each region separately.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from resnext_jax.detection.pyramid import FeaturePyramid, align_at_levels, assign_levels
from resnext_jax.detection.roi import roi_align, roi_pool
from resnext_jax.models.blocks import Residual
from resnext_jax.models.execution import apply_stages
from resnext_jax.models.resnext import NetworkSpec

# Stages of the shared map, and of what is run on each region.
SHARED_STAGES = ("conv2", "conv3", "conv4")
REGION_STAGES = ("conv5",)
STRIDE = 16


def check_architecture(spec: NetworkSpec) -> None:
    """Check that a network can be a detector's backbone.

    Raises:
      ValueError: it has not ImageNet's stem and four stages, or is a pre-activation network.
    """
    architecture = spec.architecture
    stages = len(architecture.blocks)
    if architecture.stem != "imagenet" or architecture.preactivation or stages != 4:
        raise ValueError(
            "a detector needs a network of ImageNet's design, such as resnext50_32x4d."
        )


class Backbone(nnx.Module):
    """Stages of the classifier, without what follows them."""

    def __init__(self, spec: NetworkSpec, stages: Iterable[str], *, rngs: nnx.Rngs):
        """Make the stem and `stages` of the network that `spec` describes.

        Raises:
          ValueError: see `check_architecture`.
        """
        check_architecture(spec)
        architecture = spec.architecture
        specs = architecture.block_specs(spec.options, residual=spec.residual)
        self.spec = spec
        self.stem = architecture.make_stem(spec.options, rngs=rngs)
        block = architecture.block.of(spec.form)
        self.stages: nnx.Dict[nnx.List[Residual]] = nnx.Dict()
        for name in stages:
            self.stages[name] = nnx.List([block(each, rngs=rngs) for each in specs[name]])

    def shared_map(self, images: jax.Array) -> jax.Array:
        """Map images `[N, H, W, 3]`, normalised, to conv4 `[N, H / 16, W / 16, C]`."""
        x = self.spec.architecture.apply_stem(self.stem, images)
        shared = {name: self.stages[name] for name in SHARED_STAGES}
        return apply_stages(shared, x, self.spec.execution)[SHARED_STAGES[-1]]

    def channels(self, stage: str) -> int:
        """Channels of the map at the end of a stage."""
        return self.spec.architecture.template_width * 2 ** (int(stage.removeprefix("conv")) - 2)


class RPN(Backbone):
    """Region proposal network (Ren et al. 2015): is there an object at an anchor, and where."""

    def __init__(
        self, spec: NetworkSpec, *, anchors_per_position: int, width: int = 512, rngs: nnx.Rngs
    ):
        """Make the network.

        Args:
          spec: of the backbone; its `num_classes` is not read.
          anchors_per_position: A.
          width: channels of the head's 3x3 convolution.
          rngs: whose `params` stream draws the weights.
        """
        super().__init__(spec, SHARED_STAGES, rngs=rngs)
        features = self.channels(SHARED_STAGES[-1])
        self.rpn = RPNHead(spec, features, anchors_per_position, width, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Score and move every anchor.

        Args:
          images: `[N, H, W, 3]`, normalised; H and W multiples of 16.

        Returns:
          Logits `[N, K, 2]` (background, object) and deltas `[N, K, 4]` (see `boxes.decode`) of
          the K = H / 16 * W / 16 * A anchors in the order of `anchors.make_anchors`; float32 at
          least.
        """
        return self.rpn(self.shared_map(images))


class RPNHead(nnx.Module):
    """3x3 and ReLU, then two 1x1 convolutions side by side; weights start at 0.01 * normal."""

    def __init__(
        self, spec: NetworkSpec, features: int, anchors: int, width: int, *, rngs: nnx.Rngs
    ):
        """Make the layers."""
        options = spec.options

        def conv(inputs: int, outputs: int, size: int) -> nnx.Conv:
            return nnx.Conv(
                inputs,
                outputs,
                (size, size),
                kernel_init=nnx.initializers.normal(0.01),
                dtype=options.dtype,
                param_dtype=options.param_dtype,
                rngs=rngs,
            )

        self.conv = conv(features, width, 3)
        self.cls = conv(width, 2 * anchors, 1)
        self.box = conv(width, 4 * anchors, 1)

    def __call__(self, shared_map: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `RPN`."""
        hidden = nnx.relu(self.conv(shared_map))
        wide = jnp.promote_types(jnp.float32, hidden.dtype)
        images = shared_map.shape[0]
        logits, deltas = self.cls(hidden).astype(wide), self.box(hidden).astype(wide)
        return logits.reshape(images, -1, 2), deltas.reshape(images, -1, 4)


@dataclasses.dataclass(frozen=True)
class RoiSpec:
    """How regions are cut out of the shared map.

    Attributes:
      kind: "pool" (Girshick 2015, as in the paper) or "align" (He et al. 2017).
      size: side of the pooled region, in positions.
      sampling_ratio: of "align", points a position and axis.
    """

    kind: Literal["pool", "align"] = "pool"
    size: int = 14
    sampling_ratio: int = 2

    def __call__(self, features: jax.Array, boxes: jax.Array) -> jax.Array:
        """Map `[N, H, W, C]` and boxes `[N, R, 4]` in pixels to `[N, R, size, size, C]`."""

        def cut(image: jax.Array, regions: jax.Array) -> jax.Array:
            if self.kind == "pool":
                return roi_pool(image, regions, output_size=self.size, scale=1 / STRIDE)
            return roi_align(
                image,
                regions,
                output_size=self.size,
                scale=1 / STRIDE,
                sampling_ratio=self.sampling_ratio,
            )

        return jax.vmap(cut)(features, boxes)


class FastRCNN(Backbone):
    """Fast R-CNN (Girshick 2015): what is in each region, and where just."""

    def __init__(self, spec: NetworkSpec, *, roi: RoiSpec | None = None, rngs: nnx.Rngs):
        """Make the network.

        Args:
          spec: of the backbone; its `num_classes` counts the background, class 0, too.
          roi: how regions are cut out; None: as in the paper.
          rngs: whose `params` stream draws the weights.
        """
        super().__init__(spec, (*SHARED_STAGES, *REGION_STAGES), rngs=rngs)
        self.roi = roi or RoiSpec()
        features, classes = self.channels(REGION_STAGES[-1]), spec.num_classes

        def linear(outputs: int, stddev: float) -> nnx.Linear:
            return nnx.Linear(
                features,
                outputs,
                kernel_init=nnx.initializers.normal(stddev),
                dtype=jnp.promote_types(jnp.float32, spec.options.param_dtype),
                param_dtype=spec.options.param_dtype,
                rngs=rngs,
            )

        self.cls = linear(classes, 0.01)
        self.box = linear(4 * classes, 0.001)

    def __call__(self, images: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Classify and refine regions.

        Args:
          images: `[N, H, W, 3]`, normalised; H and W multiples of 16.
          boxes: `[N, R, 4]`, in pixels of these images.

        Returns:
          Logits `[N, R, K]` and, for every class, deltas `[N, R, K, 4]` in units of their standard
          deviations (see `targets`); float32 at least.
        """
        return self.on_regions(self.shared_map(images), boxes)

    def on_regions(self, shared_map: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Classify and refine regions of a shared map; see `__call__`."""
        images, regions = boxes.shape[:2]
        pooled = self.roi(shared_map, boxes)
        features = self.region_features(pooled.reshape(images * regions, *pooled.shape[2:]))
        logits, deltas = self.cls(features), self.box(features)
        return logits.reshape(images, regions, -1), deltas.reshape(images, regions, -1, 4)

    def region_features(self, regions: jax.Array) -> jax.Array:
        """Run conv5 on pooled regions `[M, S, S, C]` and average: `[M, features]`."""
        last = {name: self.stages[name] for name in REGION_STAGES}
        maps = apply_stages(last, regions, self.spec.execution)[REGION_STAGES[-1]]
        wide = jnp.promote_types(jnp.float32, self.cls.param_dtype)
        return maps.astype(wide).mean(axis=(1, 2))


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
