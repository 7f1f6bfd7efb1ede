# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a network costs
#
# *Aggregated Residual Transformations for Deep Neural Networks* compares networks at equal cost:
# as cardinality C grows, the bottleneck width d shrinks so that parameters and FLOPs stay about
# the same (Sec. 3.4, Table 2). This notebook solves for those widths, counts the networks they
# make by stage, and looks at where in a block the cost lies.
#
# FLOPs are multiply-adds, one of each counting once, as in the paper. Nothing is trained here, and
# no weight is made: parameters and FLOPs follow from the shapes.

# %%
import matplotlib.pyplot as plt
import numpy as np

from resnext_jax.models.capacity import LayerCost, complexity, width_for_cardinality
from resnext_jax.reports import paper

CARDINALITIES = (1, 2, 4, 8, 32)


def name(cardinality: int, width: int, depth: int = 50) -> str:
    kind = "resnet" if cardinality == 1 else "resnext"
    return f"{kind}{depth}_{cardinality}x{width}d"


# %% [markdown]
# ## Eqn. 4 and Table 2
#
# A block between 256 channels, C branches of 1x1, 3x3 and 1x1 convolutions of width d, has
# $C \cdot (256 d + 9 d^2 + 256 d)$ parameters. ResNet's block, C = 1 and d = 64, has 69,632. For
# each C, `width_for_cardinality` takes the whole d that comes closest.

# %%
widths = {cardinality: width_for_cardinality(cardinality) for cardinality in CARDINALITIES}

figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
d = np.arange(1, 81)
for index, (cardinality, width) in enumerate(widths.items()):
    parameters = cardinality * (256 * d + 9 * d**2 + 256 * d)
    axes.plot(d, parameters / 1e3, color=f"C{index}", label=f"C = {cardinality}")
    axes.plot(width, parameters[width - 1] / 1e3, "o", color=f"C{index}")
    axes.annotate(
        f"d = {width}", (width, parameters[width - 1] / 1e3), (3, 6), textcoords="offset points"
    )
axes.axhline(69.632, color="black", linewidth=0.8, linestyle=":")
axes.set_ylim(0, 140)
axes.set_xlabel("bottleneck width d")
axes.set_ylabel("parameters of a block (thousands)")
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %% [markdown]
# The same numbers from networks: the second block of conv2, which has no projection. Its
# convolutions are counted as `complexity` finds them in the traced network, not by the formula.


# %%
def block(cardinality: int, width: int) -> dict[str, LayerCost]:
    """The convolutions of the second block of conv2, by name."""
    layers = complexity(name(cardinality, width)).by_layer
    prefix = "stages.conv2.1."
    return {
        layer.name.removeprefix(prefix): layer
        for layer in layers
        if layer.name.startswith(prefix) and layer.macs
    }


blocks = {cardinality: block(cardinality, width) for cardinality, width in widths.items()}
print(f"{'C':>3s} {'d':>3s} {'group conv.':>12s} {'parameters':>11s} {'FLOPs':>8s}")
for (cardinality, width), convolutions in zip(widths.items(), blocks.values(), strict=True):
    parameters = sum(layer.params for layer in convolutions.values())
    flops = sum(layer.macs for layer in convolutions.values())
    channels = convolutions["conv2"].output_shape[-1]
    print(f"{cardinality:3d} {width:3d} {channels:12d} {parameters:11,d} {flops / 1e9:6.2f} G")
    assert (cardinality, width, channels) in paper.CAPACITIES  # the paper's Table 2
    assert parameters == cardinality * (256 * width + 9 * width**2 + 256 * width)
    assert round(parameters, -4) == 70_000
    assert round(flops / 1e9, 2) == 0.22

# %% [markdown]
# All five rows are the paper's: about 70 thousand parameters and 0.22 billion FLOPs.
#
# ## Where in a block the cost lies
#
# More branches make the 3x3 convolution wider, 64 to 128 channels, and yet cheaper, because each of
# its channels sees only those of its own branch. What it saves goes into the 1x1 convolutions on
# either side of it.

# %%
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
places = np.arange(len(blocks))
bottom = np.zeros(len(blocks))
for layer, label in (("conv1", "1x1, in"), ("conv2", "3x3, grouped"), ("conv3", "1x1, out")):
    heights = np.array([convolutions[layer].params / 1e3 for convolutions in blocks.values()])
    axes.bar(places, heights, bottom=bottom, width=0.6, label=label)
    bottom += heights
axes.set_xticks(places, [f"{cardinality} x {width}d" for cardinality, width in widths.items()])
axes.set_ylabel("parameters (thousands)")
axes.set_ylim(0, 95)  # room for the legend
axes.grid(axis="y", alpha=0.3)
axes.legend(ncols=3)
plt.show()

for cardinality, convolutions in blocks.items():
    share = convolutions["conv2"].params / sum(layer.params for layer in convolutions.values())
    print(
        f"C = {cardinality:2d}: {share:4.0%} of the block's parameters are in the 3x3 convolution"
    )

# %% [markdown]
# ## Whole networks
#
# Table 1's networks, and those between them. Complexity is preserved "only approximately": where
# the map's side is halved, a block's first 1x1 convolution still works on the larger map and has
# half the inputs. As it gets wider with C, FLOPs rise a little and parameters fall a little (the
# paper's footnote 5).

# %%
networks = {
    f"{cardinality} x {width}d": complexity(name(cardinality, width))
    for cardinality, width in widths.items()
}
print(f"{'setting':8s} {'parameters':>11s} {'of convolutions, fc':>20s} {'FLOPs':>8s}")
for setting, cost in networks.items():
    without_norms = sum(layer.params for layer in cost.by_layer if layer.macs)
    print(f"{setting:8s} {cost.params:11,d} {without_norms:20,d} {cost.macs / 1e9:6.2f} G")

resnet, resnext = networks["1 x 64d"], networks["32 x 4d"]
assert f"{resnet.macs / 1e9:.1f}" == "4.1"
assert f"{resnext.macs / 1e9:.1f}" == "4.2"

# %% [markdown]
# The paper's 25.5 and 25.0 million parameters are those of convolutions and classifier; batch
# norm's scale and shift are 0.05 to 0.07 million more.

# %%
figure, both = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
stages = list(resnet.by_stage)
places = np.arange(len(stages))
for axes, index, unit, label in (
    (both[0], 0, 1e6, "parameters (millions)"),
    (both[1], 1, 1e9, "FLOPs (billions)"),
):
    for shift, cost, network in ((-0.2, resnet, "ResNet-50"), (0.2, resnext, "ResNeXt-50 32x4d")):
        heights = [cost.by_stage[stage][index] / unit for stage in stages]
        axes.bar(places + shift, heights, width=0.38, label=network)
    axes.set_xticks(places, stages)
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
both[0].legend()
plt.show()

print(f"{'stage':6s} {'ResNet-50':>22s} {'ResNeXt-50 (32x4d)':>24s}")
for stage in stages:
    cells = [
        f"{params / 1e6:6.2f} M {macs / 1e9:6.2f} G"
        for params, macs in (cost.by_stage[stage] for cost in (resnet, resnext))
    ]
    print(f"{stage:6s} {cells[0]:>22s} {cells[1]:>24s}")

# %% [markdown]
# Where the map's side is halved the channels are doubled, so that a block keeps its FLOPs and gets
# four times the parameters. FLOPs therefore go with the number of blocks (3, 4, 6, 3), and most
# parameters are in the last two stages. The two networks are alike in both, stage by stage.
#
# ## More cardinality, or more width
#
# Figure 7 follows two ways of growing a CIFAR network from 1 x 64d: more branches of the same
# width, or one branch that gets wider. Parameters grow in proportion to C, but faster than d,
# because of the 3x3 convolution's d squared. (This is the figure's horizontal axis; its errors need
# training: `python -m resnext_jax.reports sweep figure7`.)

# %%
by_cardinality = {c: complexity(f"resnext29_{c}x64d").params / 1e6 for c in (1, 2, 4, 8, 16)}
by_width = {w: complexity(f"resnet29_1x{w}d").params / 1e6 for w in (64, 128, 192, 256, 320)}

figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for label, values, start in (
    ("C x 64d", by_cardinality, 1),
    ("1 x d", by_width, 64),
):
    axes.plot([key / start for key in values], list(values.values()), "o-", label=label)
axes.set_xlabel("times the cardinality, or the width, of 1 x 64d")
axes.set_ylabel("parameters (millions)")
axes.grid(alpha=0.3)
axes.legend()
plt.show()

for label, values in (("C x 64d", by_cardinality), ("1 x d", by_width)):
    print(f"{label:8s}", "  ".join(f"{key}: {value:.1f} M" for key, value in values.items()))

steps = np.diff([by_cardinality[c] for c in (1, 2, 4, 8, 16)])
np.testing.assert_allclose(steps[1:] / steps[:-1], 2)  # in proportion to C
assert by_width[128] - by_width[64] < by_width[320] - by_width[256]  # faster than d

# %% [markdown]
# So 16 branches of width 64 cost as much as one branch of width 320, five times as wide: 68
# million parameters either way. The paper finds the 16 branches better.
