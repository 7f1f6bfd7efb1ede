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
# # Pretrained weights, their features, and fine-tuning
#
# This notebook loads a file of weights under PyTorch's names, looks at what the network has
# learned, and fine-tunes it on scikit-learn's ten digits, beside the same training from scratch.
#
# Nothing is downloaded. The file is made here: a small ResNeXt is trained on the digits 0 to 4
# alone, so that 5 to 9 are classes it has never seen. Any other file of a ResNet or ResNeXt under
# torchvision's names does as well. Of torchvision's, for instance, saved where torchvision is
# installed by
#
# ```
# python -c "import torch, torchvision
# weights = torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1
# torch.save(weights.get_state_dict(), 'resnext50_32x4d.pth')"
# ```
#
# name the file below; no PyTorch is needed to read it. The digits are then enlarged to 64x64, as an
# ImageNet network's stride of 32 needs, and each epoch takes minutes on two cores: set `EPOCHS` to
# 1, and `RATE` lower for so large a network. (That way was tried with random weights, which took
# seven minutes; no published file was at hand.) What is said of results below is said of the small
# network.

# %%
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from resnext_jax.config import build
from resnext_jax.data.pipeline import eval_batches
from resnext_jax.data.sources import open_source
from resnext_jax.interop.torch import (
    identify,
    load_weights,
    read_state_dict,
    save_weights,
    to_state_dict,
)
from resnext_jax.models import create_model
from resnext_jax.models.variables import merge, split
from resnext_jax.runs.log import read_metrics
from resnext_jax.training.classification import train
from resnext_jax.training.state import TrainState

sys.path.insert(0, "..")  # configs/, seen from this notebook's folder
from resnext_jax.configs import digits_resnext29

# A file of weights, .safetensors or .pth; None: one that is made here.
WEIGHTS: str | None = None
EPOCHS = 3.0  # of fine-tuning, and of training from scratch
RATE = 0.05  # of both, at first
SEEN = range(5)  # digits that the network is pretrained on

logging.set_verbosity(logging.ERROR)  # as train.py: tfds and Orbax tell of every step
folder = tempfile.TemporaryDirectory()
# Compiled programs are kept, as train.py keeps them: two of the runs below are one program.
jax.config.update("jax_compilation_cache_dir", f"{folder.name}/compiled")

# %% [markdown]
# ## A file of pretrained weights
#
# The project reads images from folders, one for each class. So the digits 0 to 4 are written as
# such a folder, the same images for training and for testing as in the data set `digits`.

# %%
with contextlib.redirect_stderr(io.StringIO()):  # tfds says that it prepares the data
    sources = {
        part: open_source("digits", part, f"{folder.name}/data") for part in ("train", "test")
    }


def write_folder(digits: range, path: Path) -> None:
    for part, name in (("train", "train"), ("test", "val")):
        examples = sources[part].examples
        for index in range(len(examples)):
            example = examples[index]
            if example["label"] in digits:
                image = path / name / str(example["label"]) / f"{index}.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(example["image"])


def digits_config() -> ConfigDict:
    config = digits_resnext29.get_config()
    config.model.name = "resnext20_4x4d"
    config.model.stem_width = 16
    config.model.template_width = 32
    config.data.data_dir = f"{folder.name}/data"
    return config


def run(config: ConfigDict, name: str) -> tuple[TrainState, list[str]]:
    """Train; return the last state, and the console's lines but for those that name folders."""
    console = io.StringIO()
    with contextlib.redirect_stdout(console), contextlib.redirect_stderr(io.StringIO()):
        state = train(config, f"{folder.name}/{name}")
    return state, [line for line in console.getvalue().splitlines() if folder.name not in line]


if WEIGHTS is None:
    write_folder(SEEN, Path(folder.name, "zero_to_four"))
    config = digits_config()
    config.data.name = "folder"
    config.data.manual_dir = f"{folder.name}/zero_to_four"
    config.num_epochs = config.eval_every_epochs = config.checkpoint_every_epochs = 8.0
    pretrained, lines = run(config, "pretraining")
    print(*lines, sep="\n")
    assert read_metrics(Path(folder.name, "pretraining"))[-1]["top1_error"] < 10

# %% [markdown]
# `save_weights` writes a network under torchvision's names. Training hands back arrays by name;
# `merge` puts them into the network. (From the shell:
# `python -m resnext_jax.interop.torch export --workdir=WORKDIR --out=FILE`.)

# %%
if WEIGHTS is None:
    model = create_model(
        "resnext20_4x4d", num_classes=len(SEEN), stem_width=16, template_width=32, rngs=nnx.Rngs(0)
    )
    graphdef, _, _ = split(model)
    trained = merge(graphdef, pretrained.params, pretrained.batch_stats)
    save_weights(trained, f"{folder.name}/pretrained.safetensors")
weights = WEIGHTS or f"{folder.name}/pretrained.safetensors"

# %% [markdown]
# ## Loading it
#
# From here on there is only the file. `identify` tells from names and shapes which network it is
# of, as arguments of `create_model`; `load_weights` fills the network, and refuses with one list
# whatever is missing, unexpected or of another shape.

# %%
state_dict = read_state_dict(weights)
for name in [*state_dict][:7]:
    print(f"{name:28s} {state_dict[name].shape}")
print(f"... {len(state_dict)} arrays, {sum(array.size for array in state_dict.values()):,} numbers")

identity = identify(state_dict)
print(identity)
untrained = create_model(**identity.arguments, rngs=nnx.Rngs(0))
model = create_model(**identity.arguments, rngs=nnx.Rngs(0))
load_weights(model, weights)

# %% [markdown]
# Loaded and saved again, every array has the file's bits.

# %%
again = to_state_dict(model)
kept = [name for name in state_dict if not name.endswith("num_batches_tracked")]
assert {*again} == {*kept}
assert all(np.array_equal(again[name], state_dict[name]) for name in kept)
print(f"{len(kept)} arrays are the same, bit for bit")

# %% [markdown]
# ## First-layer kernels
#
# The digits are grey: their three channels are one. What counts of a kernel is then its sum over
# the channels, drawn here in red where it is positive and in blue where it is negative, each kernel
# on a scale of its own. Above, the kernels as initialised; below, as pretrained.

# %%
figure, all_axes = plt.subplots(2, 16, figsize=(9, 1.4), layout="constrained")
for row, network in zip(all_axes, (untrained, model), strict=True):
    kernels = np.asarray(network.stem.conv.kernel).sum(axis=2)
    for axes, kernel in zip(row, np.moveaxis(kernels, -1, 0), strict=False):
        largest = np.abs(kernel).max()
        axes.imshow(kernel, cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set_axis_off()
plt.show()

# %% [markdown]
# ## Feature maps
#
# `model.features` returns the map at the end of each stage. Below is a test image of a 7, which the
# network was never shown, and the eight channels of each stage that vary most over it. The side is
# halved from stage to stage, and the channels are doubled.

# %%
config = digits_config()
config.model.name = identity.name
config.model.stem_width, config.model.template_width = identity.stem_width, identity.template_width
config.model.residual = identity.residual
if state_dict["conv1.weight"].shape[-1] == 7:  # ImageNet's stem
    config.data.image_size = 64


@nnx.jit
def features(network: nnx.Module, images: jax.Array) -> dict[str, jax.Array]:
    return network.features(images)


def test_batches(part: str) -> Iterator[tuple[np.ndarray, jax.Array, np.ndarray, np.ndarray]]:
    """Images as a test gets them: uint8, normalised, their labels, and which ones count."""
    size = 256
    for batch in eval_batches(
        sources[part], build.eval_transform(config), batch_size=size, positions=np.arange(size)
    ):
        normalised = build.device_transform(config).test(batch)
        # The last batch is filled up with blanks; the mask is False for them.
        yield batch["image"], normalised, batch["label"], batch["mask"]


untrained.eval()
model.eval()
pixels, images, digits, _ = next(test_batches("test"))
maps = features(model, images)
if WEIGHTS is None:
    trained.eval()
    for stage, expected in features(trained, images).items():
        np.testing.assert_array_equal(maps[stage], expected)
    print("all features are those of the network that was saved, bit for bit")

seven = int(np.flatnonzero(digits == 7)[0])
figure, all_axes = plt.subplots(len(maps), 9, figsize=(9, len(maps)), layout="constrained")
for row, (stage, values) in zip(all_axes, maps.items(), strict=True):
    channels = np.asarray(values[seven])
    row[0].imshow(pixels[seven])
    row[0].set_title(f"{stage}, {channels.shape[0]}x{channels.shape[1]}", fontsize=8)
    most = np.argsort(-channels.std(axis=(0, 1)))[:8]
    for axes, channel in zip(row[1:], most, strict=True):
        axes.imshow(channels[:, :, channel], cmap="viridis")
    for axes in row:
        axes.set_axis_off()
plt.show()

# %% [markdown]
# ## Pooled features
#
# What the classifier gets is the last map averaged over its positions. Is there more in it than
# the five classes of the pretraining? Below, the pooled features of all test images, projected onto
# their two principal components, of the network as initialised and as pretrained. Black digits are
# classes of the pretraining, coloured ones were never seen.
#
# Two dimensions show only part of it. A measure in all of them: how many test images lie nearer to
# the mean of another of the ten classes than to that of their own, where means are of the training
# images?


# %%
def pooled(network: nnx.Module) -> Callable[[jax.Array], jax.Array]:
    """A function of images `[N, H, W, 3]` to features `[N, channels]`."""

    def function(images: jax.Array) -> jax.Array:
        *_, last = features(network, images).values()
        return last.mean(axis=(1, 2))

    return function


def collect(function: Callable[[jax.Array], jax.Array], part: str) -> np.ndarray:
    """What a function gives for all images of a part of the data set."""
    return np.concatenate(
        [np.asarray(function(images))[mask] for _, images, _, mask in test_batches(part)]
    )


labels = {
    part: np.concatenate([label[mask] for _, _, label, mask in test_batches(part)])
    for part in ("train", "test")
}


def nearer_to_others(train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Share, in percent, of test images nearer to another class's mean."""
    means = np.stack([train[labels["train"] == digit].mean(axis=0) for digit in range(10)])
    wrong = cdist(test, means).argmin(axis=1) != labels["test"]
    seen = np.isin(labels["test"], SEEN)
    return {"0 to 4": 100 * wrong[seen].mean(), "5 to 9": 100 * wrong[~seen].mean()}


def report(name: str, shares: dict[str, float]) -> None:
    cells = [f"of {digits}: {share:4.1f} %" for digits, share in shares.items()]
    print(f"{name:10s} {', '.join(cells)}")


def draw(axes: plt.Axes, test: np.ndarray, title: str) -> None:
    points = PCA(2).fit_transform(test)
    for digit in range(10):
        color = "black" if digit in SEEN else f"C{digit - 5}"
        own = points[labels["test"] == digit]
        axes.scatter(*own.T, s=22, color=color, marker=f"${digit}$", linewidths=0.1)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


functions = {
    "untrained": pooled(untrained),
    "pretrained": pooled(model),
    "pixels": lambda images: images.reshape(len(images), -1),
}
found = {
    name: {part: collect(function, part) for part in ("train", "test")}
    for name, function in functions.items()
}
figure, both = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for axes, name in zip(both, ("untrained", "pretrained"), strict=True):
    draw(axes, found[name]["test"], name)
plt.show()

shares = {name: nearer_to_others(**parts) for name, parts in found.items()}
for name, share in shares.items():
    report(name, share)
if WEIGHTS is None:
    assert shares["pretrained"]["0 to 4"] < 25 < shares["untrained"]["0 to 4"]
    assert shares["pretrained"]["5 to 9"] < shares["untrained"]["5 to 9"] - 10

# %% [markdown]
# Pretraining on five classes has moved the other five apart as well, compared with a network of
# the same shape that was not trained, though not as far as its own five. (The last row is of the
# pixels themselves. Digits so small and well centred need no network for an error of 10 %; a pooled
# feature no longer says where in the image it was seen.)
#
# ## Fine-tuning
#
# `config.init_from` starts a run from a file of weights, all but the classifier; here a new one of
# ten classes. Everything else is the same in both runs: recipe, seed, order of images. On the
# command line:
#
# ```
# python train.py --config=configs/digits_resnext29.py --workdir=runs/mine --config.init_from=FILE
# ```
#
# with the file's model in `config.model`. Other fields keep stages as they are
# (`config.finetune.frozen_stages`) or give what is in front of the classifier a lower rate
# (`config.finetune.backbone_rate`). For the curves, tests are made four times an epoch.

# %%
config.num_epochs = EPOCHS
config.optimizer.learning_rate = RATE
config.eval_every_epochs = 0.25
states, errors = {}, {}
for name, start in (("fine-tuned", weights), ("from scratch", None)):
    config.init_from = start
    states[name], lines = run(config, name)
    print(f"{name}: {lines[-1]}")
    records = read_metrics(Path(folder.name, name))
    for part in ("train", "test"):
        errors[name, part] = {
            record["epoch"]: record["top1_error"] for record in records if record["split"] == part
        }

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for color, name in enumerate(states):
    for part, style in (("train", "--"), ("test", "-")):
        curve = errors[name, part]
        axes.plot([*curve], [*curve.values()], style, color=f"C{color}", label=f"{name}, {part}")
axes.axhline(90, color="black", linewidth=0.8, linestyle=":", label="chance")
axes.set_ylim(0, 100)
axes.set_xlabel("epoch")
axes.set_ylabel("top-1 error (%)")
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
plt.show()

first, last = {}, {}
for name in states:
    curve = errors[name, "test"]
    first[name] = next(error for epoch, error in curve.items() if epoch >= min(1, EPOCHS))
    last[name] = [*curve.values()][-1]
    print(f"{name:12s} after one epoch {first[name]:5.2f} %, at the end {last[name]:5.2f} %")
if WEIGHTS is None:
    assert first["fine-tuned"] < first["from scratch"] - 10
    assert last["fine-tuned"] < 20

# %% [markdown]
# The pretrained network is far ahead in the first epoch. From scratch, the first tests are at
# chance although training errors fall: batch norm's running statistics, which only tests use, lag
# behind weights that change fast. After that the lead shrinks, as both come near what this network
# can do. The data set is small and easy, and half of it is what the pretraining saw; this shows how
# to fine-tune, not what it is worth elsewhere.
#
# The features once more, of the fine-tuned network:

# %%
graphdef, _, _ = split(create_model(**identity.arguments | {"num_classes": 10}, rngs=nnx.Rngs(0)))
tuned = merge(graphdef, states["fine-tuned"].params, states["fine-tuned"].batch_stats)
tuned.eval()
after = {part: collect(pooled(tuned), part) for part in ("train", "test")}
figure, axes = plt.subplots(figsize=(4.5, 4), layout="constrained")
draw(axes, after["test"], "fine-tuned")
plt.show()
share = nearer_to_others(**after)
report("fine-tuned", share)
if WEIGHTS is None:
    assert share["5 to 9"] < shares["pretrained"]["5 to 9"]

# %%
folder.cleanup()
