"""Pre-activation networks: ResNet-200, Wide ResNet, and the older preprint's CIFAR ResNeXt.

Batch norm and ReLU come before each convolution, and nothing follows the sum of a block (He et al.
2016, "Identity Mappings in Deep Residual Networks"). The stem's activation serves as that of the
first block, and the last block is followed by an extra one. Projections have no batch norm; their
input is the activated one.
"""

from flax import nnx
from jaxtyping import Array, Float, Shaped

from resnext_jax.models.blocks import BlockSpec, scaled
from resnext_jax.models.execution import apply_stages
from resnext_jax.models.layers import pool_and_classify, pool_and_classify_densely
from resnext_jax.models.resnext import NetworkSpec


class _PreActBlock(nnx.Module):
    """Base class of pre-activation blocks: the first activation and the shortcut."""

    def __init__(self, spec: BlockSpec, *, activates: bool, rngs: nnx.Rngs):
        """Make the block.

        Args:
          spec: sizes.
          activates: whether batch norm and ReLU are applied to the input; False if it is activated
            already.
          rngs: random number generators for the weights.
        """
        self.spec = spec
        self.norm1 = spec.options.norm(spec.in_features) if activates else None
        self.shortcut = (
            spec.options.conv(
                spec.in_features, spec.out_features, 1, strides=spec.strides, rngs=rngs
            )
            if spec.projects
            else None
        )

    def transform(self, activated: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply the residual function to the activated input."""
        raise NotImplementedError

    def __call__(
        self, x: Float[Array, "n h w cin"], scale: Float[Array, " n"] | None = None
    ) -> Float[Array, "n h_out w_out cout"]:
        """Map `[N, H, W, in_features]` to `[N, H / strides, W / strides, out_features]`.

        `scale` `[N]` multiplies the residual function, as in `blocks.Residual`.
        """
        activated = x if self.norm1 is None else nnx.relu(self.norm1(x))
        y = scaled(self.transform(activated), scale)
        if not self.spec.residual:
            return y
        return y + (x if self.shortcut is None else self.shortcut(activated))


class PreActBottleneck(_PreActBlock):
    """1x1, grouped 3x3, 1x1, each preceded by batch norm and ReLU (form c)."""

    def __init__(self, spec: BlockSpec, *, activates: bool, rngs: nnx.Rngs):
        """Make the block; see the base class."""
        super().__init__(spec, activates=activates, rngs=rngs)
        options, width = spec.options, spec.width
        self.conv1 = options.conv(spec.in_features, width, 1, rngs=rngs)
        self.norm2 = options.norm(width)
        self.conv2 = options.conv(
            width, width, 3, strides=spec.strides, groups=spec.cardinality, rngs=rngs
        )
        self.norm3 = options.norm(width)
        self.conv3 = options.conv(width, spec.out_features, 1, rngs=rngs)

    def transform(self, activated: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply the three convolutions."""
        y = nnx.relu(self.norm2(self.conv1(activated)))
        y = nnx.relu(self.norm3(self.conv2(y)))
        return self.conv3(y)


class PreActBasic(_PreActBlock):
    """3x3, 3x3, each preceded by batch norm and ReLU: the block of Wide ResNet."""

    def __init__(self, spec: BlockSpec, *, activates: bool, rngs: nnx.Rngs):
        """Make the block; see the base class."""
        super().__init__(spec, activates=activates, rngs=rngs)
        options, width = spec.options, spec.out_features
        self.conv1 = options.conv(spec.in_features, width, 3, strides=spec.strides, rngs=rngs)
        self.norm2 = options.norm(width)
        self.conv2 = options.conv(width, width, 3, rngs=rngs)

    def transform(self, activated: Float[Array, "n h w cin"]) -> Float[Array, "n h_out w_out cout"]:
        """Apply the two convolutions."""
        return self.conv2(nnx.relu(self.norm2(self.conv1(activated))))


class PreActResNeXt(nnx.Module):
    """A classifier of pre-activation blocks, with the same interface as `ResNeXt`."""

    def __init__(self, spec: NetworkSpec, *, rngs: nnx.Rngs):
        """Make the network that `spec` describes."""
        self.spec = spec
        options, architecture = spec.options, spec.architecture
        self.stem = architecture.make_stem(options, rngs=rngs)
        block = PreActBasic if architecture.basic else PreActBottleneck
        self.stages: nnx.Dict[nnx.List[PreActBasic | PreActBottleneck]] = nnx.Dict()
        activates, features = False, architecture.stem_width
        for name, specs in architecture.block_specs(options, residual=spec.residual).items():
            self.stages[name] = nnx.List([])
            for block_spec in specs:
                self.stages[name].append(block(block_spec, activates=activates, rngs=rngs))
                activates, features = True, block_spec.out_features
        self.norm = options.norm(features)
        self.fc = options.classifier(features, spec.num_classes, rngs=rngs)

    def features(
        self, images: Shaped[Array, "n h w c"], scales: Float[Array, "n blocks"] | None = None
    ) -> dict[str, Float[Array, "n _ _ _"]]:
        """Return the sum at the end of each stage, the last one activated.

        Args:
          images: `[N, H, W, 3]`, normalised.
          scales: as `ResNeXt.features` has them.

        Returns:
          As `ResNeXt.features`.
        """
        x = self.spec.architecture.apply_stem(self.stem, images)
        maps = apply_stages(self.stages, x, self.spec.execution, scales)
        *_, last = maps
        maps[last] = nnx.relu(self.norm(maps[last]))
        return maps

    def __call__(
        self, images: Shaped[Array, "n h w c"], scales: Float[Array, "n blocks"] | None = None
    ) -> Float[Array, "n num_classes"]:
        """Map `[N, H, W, 3]` normalised images to logits `[N, num_classes]`, as `ResNeXt` does."""
        *_, last = self.features(images, scales).values()
        return pool_and_classify(last, self.fc)

    def dense_logits(
        self, images: Shaped[Array, "n h w c"], window: int
    ) -> Float[Array, "n num_classes"]:
        """Classify at every position and average, as `ResNeXt.dense_logits` does."""
        *_, last = self.features(images).values()
        return pool_and_classify_densely(last, self.fc, window)
