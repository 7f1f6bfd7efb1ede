"""Small test sets of several shapes, and a small network to score them with."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.checks import validate
from resnext_jax.config.fields import base_config
from resnext_jax.data.sources import Source
from resnext_jax.evaluation.images import EvalResult, ImageRecords
from resnext_jax.evaluation.run import Evaluation
from resnext_jax.interop.state_dicts import weights_from_torch
from resnext_jax.models.variables import Arrays, Network, merge
from resnext_jax.parallel.mesh import make_mesh, replicated_sharding
from tests.data.images import noise_file
from tests.interop.weights import random_state_dict

CLASSES = 7
# With a short side of 8 these make images of 8x8, 8x12 and 12x8.
SIZES = [(16, 16), (16, 28), (28, 16), (16, 26), (17, 17), (9, 9), (31, 18)]


def images_of(
    sizes: list[tuple[int, int]], count: int, bad: dict[int, bytes] | None = None
) -> Source:
    """Return `count` images of noise; sizes and labels take turns.

    Args:
      sizes: height and width of images.
      count: number of images.
      bad: what stands in place of some image files.
    """
    examples: list[dict[str, Any]] = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        file = (bad or {}).get(index) or noise_file(height, width, seed=index)
        examples.append({"image": file, "label": index % CLASSES})
    return Source("noise", "test", examples, tuple("abcdefg"))


def small_config(**data: Any) -> ConfigDict:
    """Return the config of a small network on 8x8 images, with changes to its data section."""
    config = base_config()
    config.model.name = "resnext11_2x4d"
    config.model.stem_width, config.model.template_width = 8, 16
    config.data.name = "digits"
    config.data.image_size = 8
    config.eval_batch_size = 4
    config.data.update(data)
    validate(config)
    return config


def small_weights(config: ConfigDict, seed: int = 0) -> tuple[Any, Arrays, Arrays]:
    """Return graph, parameters and statistics that give each image other logits."""
    graphdef, *shapes = build.abstract_weights(config, CLASSES, make_mesh(8, None))
    spec = merge(graphdef, *shapes).spec
    # Drawn, and not initialised: that compiles a program for each shape.
    params, batch_stats = weights_from_torch(random_state_dict(spec, seed), spec)
    params["fc.kernel"] *= 5
    return graphdef, params, batch_stats


def small_networks(config: ConfigDict, count: int, mesh: Mesh) -> list[Network]:
    """Return networks with weights of their own, on all devices of a mesh."""
    sharding = replicated_sharding(mesh)
    networks = []
    for seed in range(count):
        graphdef, *weights = small_weights(config, seed)
        networks.append(Network(graphdef, *jax.device_put(weights, sharding)))
    return networks


def score(config: ConfigDict, source: Source, devices: int = 1) -> EvalResult:
    """Evaluate the small network on some of the devices."""
    mesh = make_mesh(64, None, jax.devices()[:devices])
    graphdef, *weights = small_weights(config)
    params, batch_stats = jax.device_put(weights, replicated_sharding(mesh))
    return Evaluation(config, source, graphdef, mesh).run(params, batch_stats)


def records_of(label: list[int], predicted: list[int], rank: list[int]) -> ImageRecords:
    """Return records of images by hand, of which no more than this is looked at."""
    top5 = np.full((len(label), 5), -1, np.int32)
    top5[:, 0] = predicted
    index, loss = np.arange(len(label)), np.zeros(len(label))
    return ImageRecords(index, np.array(label), loss, np.array(rank), None, top5)
