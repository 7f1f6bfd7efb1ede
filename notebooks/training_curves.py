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
# # Reading runs
#
# A run leaves a folder, its workdir, and in it `metrics.jsonl`: what it measured, a line at a time.
# This notebook reads such folders: curves as in the paper's Figure 5, errors by epoch with mean and
# standard deviation over seeds, averaged weights beside the raw ones, speed.
#
# It makes its own runs, six small ones on the 8x8 digits, which take a minute or two in all. To
# read yours instead, name their folders below.

# %%
import contextlib
import io
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from ml_collections import ConfigDict

from resnext_jax.data.sources import open_source
from resnext_jax.reports.capacity_tables import cost_of
from resnext_jax.reports.curves import errors_by_epoch
from resnext_jax.reports.runs import Group, Score, find_workdirs, group_runs, labels, read_run
from resnext_jax.runs.log import read_metrics
from resnext_jax.training.classification import train

sys.path.insert(0, "..")  # configs/, seen from this notebook's folder
from resnext_jax.configs import digits_resnext29

# Folders of runs, or patterns such as "../runs/*/seed*"; none: runs made here.
WORKDIRS: list[str] = []

# %% [markdown]
# ## Six small runs
#
# Two networks of about the same number of parameters, a ResNet's single path of width 16 and a
# ResNeXt's 4 branches of width 7, from three seeds each. The rate stays high for five of seven
# epochs and is then divided by ten. `ema.decay` has each run keep an average of its weights as
# well, here over some twenty steps, and test both.
#
# `train.py` does no more than the call of `train` below. The same program is compiled once for all
# seeds, because compiled programs are kept in the temporary folder, as `train.py` keeps them in the
# user's.

# %%
folder = tempfile.TemporaryDirectory()
MODELS = ("resnet11_1x16d", "resnext11_4x7d")
SEEDS = (0, 1, 2)


def small_run(model: str, seed: int) -> ConfigDict:
    config = digits_resnext29.get_config()
    config.seed = seed
    config.model.name = model
    config.model.stem_width = 16
    config.model.template_width = 32
    config.data.image_size = 8
    config.data.max_shift = 1
    config.data.data_dir = f"{folder.name}/data"
    config.batch_size = config.optimizer.base_batch_size = 64
    config.optimizer.learning_rate = 0.1
    config.num_epochs = 7.0
    config.schedule.name = "step"
    config.schedule.boundaries = (5.0,)
    config.ema.decay = 0.95
    config.log_every_steps = 10_000  # at tests only, that is each epoch
    return config


if not WORKDIRS:
    jax.config.update("jax_compilation_cache_dir", f"{folder.name}/compiled")
    with contextlib.redirect_stderr(io.StringIO()):  # tfds says that it prepares the data
        open_source("digits", "train", f"{folder.name}/data")
    for model in MODELS:
        for seed in SEEDS:
            begin = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):  # the lines of a console
                train(small_run(model, seed), f"{folder.name}/runs/{model}/seed{seed}")
            print(f"{model}, seed {seed}: {time.perf_counter() - begin:.0f} s")

# %% [markdown]
# ## What a run wrote
#
# `read_metrics` gives the lines of `metrics.jsonl` as dictionaries. Lines of the training are
# averages since the line before, taken while the weights changed and images were varied; lines of a
# test are of all test images, once for each kind of weights.

# %%
workdirs = find_workdirs(WORKDIRS or [f"{folder.name}/runs/*/seed*"])
records = read_metrics(Path(workdirs[0]))
kinds = {(record["split"], record.get("weights")): record for record in records}
for record in kinds.values():  # the last one of each kind
    print(json.dumps(record, indent=1))

# %% [markdown]
# ## Experiments
#
# Runs that differ in nothing but their seeds are one experiment: `group_runs` compares their
# configs. Where experiments have the same model, `labels` names the fields they differ in. The
# errors are those of the last test, mean ± standard deviation over seeds. Runs that are not
# finished are told apart, and do not count.

# %%
groups = group_runs(map(read_run, workdirs))
names = dict(zip(groups, labels(groups), strict=True))
for group, name in names.items():
    print(f"{name}: {cost_of(group.example).params:,} parameters")
    print(f"  finished: seeds {', '.join(str(run.seed) for run in group.runs)}")
    for weights in ("raw", "ema"):
        if score := group.score("top1_error", weights):
            print(f"  last test, {weights} weights: {score} %")
    for _, reason in group.others:
        print(f"  left out: {reason}")

# %% [markdown]
# The paper compares networks at equal cost, and so do these runs: the numbers of parameters are
# within 2 % of each other.

# %%
if not WORKDIRS:
    assert [len(group.runs) for group in groups] == [len(SEEDS)] * len(MODELS)
    assert not any(group.others for group in groups)
    few, many = sorted(cost_of(group.example).params for group in groups)
    assert many < 1.02 * few
    # They have learned: nine of ten guesses would be wrong.
    assert all(group.score("top1_error", "raw").mean < 20 for group in groups)

# %% [markdown]
# ## Curves
#
# As the paper draws its Figure 5: training error dashed, test error solid; of each experiment the
# first seed. The command line draws such a picture too, with all seeds:
#
# ```
# python -m resnext_jax.reports curves --workdir 'runs/*/seed*' --out=curves.png
# ```

# %%
display(Image(errors_by_epoch(group_runs(group.example for group in groups))))

# %% [markdown]
# The two errors are not measured alike. A training error is an average over the epoch before its
# point, of shifted images, normalised by the statistics of their batch. A test error is of the
# weights at its point, on images as they are, normalised by running statistics; while weights
# change fast these lag behind. So the test error may begin above the training error and end below
# it.
#
# ## A table by epoch
#
# A single run's curve is one draw. Over seeds there is a mean, and a standard deviation (n - 1)
# that says how much a run differs from the next; the mean's own standard error is that divided by
# the root of their number.


# %%
def tests(group: Group, weights: str) -> tuple[list[float], np.ndarray]:
    """Epochs of the tests that all runs have, and errors in percent, `[runs, tests]`."""
    runs = [
        {
            record["step"]: record
            for record in run.records
            if (record["split"], record.get("weights")) == ("test", weights)
        }
        for run in group.runs
    ]
    steps = sorted(set.intersection(*map(set, runs)))
    epochs = [runs[0][step]["epoch"] for step in steps]
    return epochs, np.array([[run[step]["top1_error"] for step in steps] for run in runs])


def over_seeds(values: np.ndarray) -> Score:
    values = values.tolist()
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Score(statistics.fmean(values), deviation, len(values))


finished = {group: name for group, name in names.items() if group.runs}
for group, name in finished.items():
    print(f"{name}, test error in percent")
    print(f"{'epoch':>7s} {'raw':>15s} {'averaged':>15s}")
    epochs, raw = tests(group, "raw")
    _, averaged = tests(group, "ema")  # empty, if the run keeps no average
    for row in np.unique(np.linspace(0, len(epochs) - 1, 12).round().astype(int)):  # 12 at most
        cells = [over_seeds(errors[:, row]) for errors in (raw, averaged) if errors.size]
        print(f"{epochs[row]:7.2f}", *(f"{cell!s:>15s}" for cell in cells))
    assert over_seeds(raw[:, -1]) == group.score("top1_error", "raw")

# %% [markdown]
# The last row is what `python -m resnext_jax.reports tables` prints of a run. To tell whether one
# network is better than the other, set the difference of their means beside its standard error,
# the root of the sum of the two means' squared:

# %%
if not WORKDIRS:
    one, other = (group.score("top1_error", "raw") for group in groups)
    error = np.hypot(one.standard_error, other.standard_error)
    print(f"difference {one.mean - other.mean:+.2f} %, standard error {error:.2f} %")

# %% [markdown]
# A difference of less than about two standard errors says little, and with three seeds the
# standard error is itself a rough guess. One of the 359 test images is 0.28 %. (For comparisons
# with more seeds there is `python -m resnext_jax.reports sweep`.)
#
# ## Raw and averaged weights
#
# `weights` tells the lines of a test apart: `raw` are the weights as trained, `ema` their moving
# average. Mean over seeds, and one standard deviation to either side; dotted lines where the rate
# is divided.

# %%
rows = math.ceil(len(finished) / 2)
figure = plt.figure(figsize=(9, 3.4 * rows), layout="constrained")
for index, (group, name) in enumerate(finished.items()):
    axes = figure.add_subplot(rows, 2, index + 1)
    for weights, label, color in (("raw", "raw", "C0"), ("ema", "averaged", "C1")):
        epochs, errors = tests(group, weights)
        if not epochs:
            continue
        mean = errors.mean(axis=0)
        spread = errors.std(axis=0, ddof=1) if len(errors) > 1 else np.zeros_like(mean)
        axes.plot(epochs, mean, color=color, label=label)
        axes.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.2)
    config = group.example.config
    for boundary in config.schedule.boundaries if config.schedule.name == "step" else ():
        if boundary < config.num_epochs:
            axes.axvline(boundary, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, None if WORKDIRS else 40)
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test error (%)")
    axes.grid(alpha=0.3)
    axes.legend()
plt.show()

# %% [markdown]
# While the rate is high, steps throw the weights to and fro around where they are going, and the
# average of some twenty steps' weights is better than those of any one. Once the rate is low there
# is little left to average away, and raw and averaged weights end alike. So an average shows early
# how good a run will be, and raw and averaged errors of two runs should not be compared with each
# other.

# %%
if not WORKDIRS:
    for group, name in names.items():
        high = slice(2, 5)  # epochs 3 to 5: most is learned, and the rate is still high
        means = {weights: tests(group, weights)[1][:, high].mean() for weights in ("raw", "ema")}
        last = {weights: group.score("top1_error", weights) for weights in means}
        print(
            f"{name}, epochs 3 to 5: raw {means['raw']:.1f} %, averaged {means['ema']:.1f} %; "
            f"at the end {last['raw']} % and {last['ema']} %"
        )
        assert means["ema"] < 0.8 * means["raw"]
        assert abs(last["ema"].mean - last["raw"].mean) < 3

# %% [markdown]
# ## Speed
#
# Lines of the training also have `images_per_second`, without compilation, tests and checkpoints,
# and `data_wait_fraction`: how much of that time the steps waited for images. Near 0 the device is
# what limits the run; with much more, `config.data.num_workers` decodes in more processes. Numbers
# are this machine's, whatever else it was doing.

# %%
print(f"{'experiment':16s} {'seed':>4s} {'images/s, median':>17s} {'lowest':>7s} {'waiting':>8s}")
for group, name in names.items():
    for run in [*group.runs, *(run for run, _ in group.others)]:
        timed = [record for record in run.records if record.get("images_per_second")]
        if not timed:
            continue  # not yet so far
        speeds = [record["images_per_second"] for record in timed]
        waiting = statistics.median(record["data_wait_fraction"] for record in timed)
        print(
            f"{name:16s} {run.seed:4d} {statistics.median(speeds):17,.0f} {min(speeds):7,.0f} "
            f"{waiting:8.1%}"
        )
        assert min(speeds) > 0
        assert 0 <= waiting <= 1

# %%
folder.cleanup()
