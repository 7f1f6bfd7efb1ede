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
# # Three forms of one block
#
# Figure 3 of *Aggregated Residual Transformations for Deep Neural Networks* draws one block in
# three ways: (a) C branches of 1x1, 3x3 and 1x1 convolutions, summed; (b) C branches of 1x1 and
# 3x3, concatenated before a single 1x1; (c) three convolutions, the 3x3 one grouped. The paper
# says that they are equivalent "when BN and ReLU are appropriately addressed". This notebook
# builds the three, maps the weights of one onto the others, and measures how equal they are: in
# outputs, gradients and training, in double and in single precision.
#
# *Relative difference* means the largest difference over the largest value, of a whole tensor.

# %%
import time

import jax

jax.config.update("jax_enable_x64", True)  # for the proofs in float64

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from resnext_jax.models import convert_form
from resnext_jax.models.blocks import BLOCKS, FORMS, BlockSpec, TwoLayerA
from resnext_jax.models.equivalence import convert_arrays, widen_two_layers
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.variables import merge, split
from resnext_jax.optim.optimizers import sgd

# %% [markdown]
# ## One block, three modules
#
# A small template: 8 branches of width 4 between 64 channels. `convert_form` cuts form c's
# arrays into branches, or joins them; it computes nothing.


# %%
def blocks_in(dtype: str, strides: int = 1) -> dict[str, nnx.Module]:
    options = LayerOptions(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    spec = BlockSpec(64, 64, cardinality=8, group_width=4, strides=strides, options=options)
    form_c = BLOCKS["c"](spec, rngs=nnx.Rngs(0))
    return {form: convert_form(form_c, form) for form in FORMS}


blocks = blocks_in("float64")
for form, block in blocks.items():
    _, params, _ = split(block)
    kernels = [name for name in params if name.endswith("kernel")]
    total = sum(array.size for array in params.values())
    print(f"form {form}: {total:,} parameters in {len(params)} arrays, {len(kernels)} convolutions")

# %% [markdown]
# The same number of parameters, cut differently: form a holds 24 kernels, form c three.

# %%
for form in ("c", "a"):
    _, params, _ = split(blocks[form])
    for name in [name for name in params if name.endswith("kernel")][:4]:
        print(form, name, params[name].shape)

# %% [markdown]
# There and back again gives every bit.

# %%
back = convert_form(convert_form(convert_form(blocks["a"], "b"), "c"), "a")
pairs = zip(split(back)[1].values(), split(blocks["a"])[1].values(), strict=True)
assert all((ours == original).all() for ours, original in pairs)
print("a -> b -> c -> a: identical")

# %% [markdown]
# ## Outputs, gradients, and three steps of training
#
# In training mode, so that batch norm's statistics take part. Gradients and parameters of forms
# a and b are mapped to form c's names before they are compared.


# %%
def relative(actual: jax.Array, expected: jax.Array) -> float:
    return float(jnp.abs(actual - expected).max() / jnp.abs(expected).max())


def measure(dtype: str) -> dict[str, dict[str, jax.Array]]:
    """Outputs, gradients and trained parameters of each form, by form c's names."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 14, 14, 64)), dtype)
    target = jnp.asarray(rng.normal(size=(8, 14, 14, 64)), dtype)
    optimizer = sgd(lambda step: jnp.asarray(0.01), momentum=0.9, nesterov=True, weight_decay=1e-4)
    results = {}
    for form, block in blocks_in(dtype).items():
        graphdef, params, stats = split(block)

        @jax.jit
        def step(params, stats, state, x, graphdef=graphdef):
            def loss(params, x):
                module = merge(graphdef, params, stats)
                y = module(x)
                return jnp.mean(jnp.square(y - target)), (y, split(module)[2])

            gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
            (d_params, dx), (y, new_stats) = gradient(params, x)
            updates, state = optimizer.update(d_params, state, params)
            trained = jax.tree.map(jnp.add, params, updates)
            return trained, new_stats, state, (y, dx, d_params)

        state = optimizer.init(params)
        first = None
        for _ in range(3):
            params, stats, state, seen = step(params, stats, state, x)
            first = seen if first is None else first
        y, dx, d_params = first
        named = {"output": y, "input gradient": dx}
        for kind, arrays in (
            ("gradient", d_params),
            ("parameter after 3 steps", params),
            ("statistics after 3 steps", stats),
        ):
            joined = convert_arrays(arrays, 8, form, "c")
            named |= {f"{kind}: {name}": array for name, array in joined.items()}
        results[form] = named
    return results


with jax.default_matmul_precision("highest"):
    measured = {dtype: measure(dtype) for dtype in ("float64", "float32")}

# %%
KINDS = (
    "output",
    "input gradient",
    "gradient",
    "parameter after 3 steps",
    "statistics after 3 steps",
)
worst = {
    (dtype, form, kind): max(
        relative(results[form][name], array)
        for name, array in results["c"].items()
        if name.split(":")[0] == kind
    )
    for dtype, results in measured.items()
    for form in ("a", "b")
    for kind in KINDS
}
print(f"{'largest relative difference to form c':40s} {'a':>10s} {'b':>10s}")
for dtype in measured:
    for kind in KINDS:
        a, b = (worst[dtype, form, kind] for form in ("a", "b"))
        print(f"{dtype:8s} {kind:31s} {a:10.1e} {b:10.1e}")

assert max(value for key, value in worst.items() if key[0] == "float64") < 1e-9
assert max(v for k, v in worst.items() if k[0] == "float32" and k[2] == "output") < 1e-4
assert max(v for k, v in worst.items() if k[0] == "float32" and "gradient" in k[2]) < 1e-2

# %% [markdown]
# What differs is the order of additions: form a adds C small products where form c adds one long
# one. That is a matter of rounding, and shows in the last digits of either precision.

# %%
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
places = np.arange(len(KINDS))
bars = [(dtype, form) for dtype in measured for form in ("a", "b")]
for index, (dtype, form) in enumerate(bars):
    heights = [worst[dtype, form, kind] for kind in KINDS]
    axes.bar(places + 0.2 * (index - 1.5), heights, width=0.18, label=f"form {form}, {dtype}")
axes.set_yscale("log")
axes.set_ylim(top=1e-3)  # room for the legend
axes.set_xticks(places, [kind.replace(" after", "\nafter") for kind in KINDS], fontsize=8)
axes.set_ylabel("relative difference to form c")
axes.grid(axis="y", alpha=0.3)
axes.legend(fontsize=8, ncols=2)
plt.show()

# %% [markdown]
# ## Depth two is trivial
#
# Figure 4: with two layers a branch, the sum of C branches is just a wider dense block. All
# branches read the same input, and nothing in between is kept apart.

# %%
spec = BlockSpec(
    16,
    16,
    cardinality=4,
    group_width=3,
    options=LayerOptions(dtype=jnp.float64, param_dtype=jnp.float64),
)
aggregated = TwoLayerA(spec, rngs=nnx.Rngs(0))
dense = widen_two_layers(aggregated)
x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 16)))
print("dense kernels:", dense.wide.conv1.kernel.shape, dense.wide.conv2.kernel.shape)
difference = relative(dense(x), aggregated(x))
print(f"relative difference: {difference:.1e}")
assert difference < 1e-12

# %% [markdown]
# ## What each form costs
#
# One forward and backward pass of a larger block in float32, the forms in turn, round after round.
# The numbers are this machine's; the paper chose form c because it is "more succinct and faster
# than the other two forms".


# %%
def passes(form: str):
    options = LayerOptions()
    spec = BlockSpec(256, 256, cardinality=32, group_width=4, options=options)
    block = BLOCKS[form](spec, rngs=nnx.Rngs(0))
    graphdef, params, stats = split(block)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 28, 28, 256)), jnp.float32)

    @jax.jit
    def run(params):
        return jax.grad(lambda params: merge(graphdef, params, stats)(x).mean())(params)

    begin = time.perf_counter()
    jax.block_until_ready(run(params))
    print(f"form {form}: first call, compilation included, {time.perf_counter() - begin:.1f} s")
    return lambda: jax.block_until_ready(run(params))


runs = {form: passes(form) for form in FORMS}
seconds = {form: [] for form in FORMS}
for _ in range(5):
    for form, run in runs.items():
        begin = time.perf_counter()
        run()
        seconds[form].append(time.perf_counter() - begin)
medians = {form: float(np.median(samples)) for form, samples in seconds.items()}
for form, median in medians.items():
    print(f"form {form}: {1e3 * median:7.1f} ms, {median / medians['c']:.2f} times form c")
