"""Flat names of a model's arrays."""

import jax.numpy as jnp
from flax import nnx

from resnext_jax.models import create_model
from resnext_jax.models.variables import merge, split


def test_names_are_paths_and_merge_is_the_inverse() -> None:
    model = create_model("resnext11_2x4d", rngs=nnx.Rngs(0), template_width=16, num_classes=3)
    graphdef, params, batch_stats = split(model)
    assert {
        "stem.conv.kernel",
        "stages.conv2.0.conv2.kernel",
        "stages.conv4.0.shortcut.norm.scale",
    } <= set(params)
    assert {"stages.conv3.0.norm2.mean", "stages.conv3.0.norm2.var"} <= set(batch_stats)

    changed = {name: array + 1 for name, array in params.items()}
    again = merge(graphdef, changed, batch_stats)
    _, params_again, batch_stats_again = split(again)
    assert list(params_again) == list(params)
    assert all((params_again[name] == params[name] + 1).all() for name in params)
    assert all((batch_stats_again[name] == batch_stats[name]).all() for name in batch_stats)
    again.eval()
    assert again(jnp.ones((1, 8, 8, 3))).shape == (1, 3)


def test_lists_longer_than_ten_keep_their_order() -> None:
    model = nnx.eval_shape(
        lambda: create_model("resnext101_2x4d", rngs=nnx.Rngs(0), template_width=16)
    )
    graphdef, params, batch_stats = split(model)
    names = [f"stages.conv4.{block}.conv1.kernel" for block in range(23)]
    assert set(names) <= set(params)
    again = merge(graphdef, params, batch_stats)
    assert len(again.stages["conv4"]) == 23
