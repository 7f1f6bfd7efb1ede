"""Published networks compute what PyTorch's do, and their images are made as timm makes them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.data.transforms import EvalTransform
from resnext_jax.interop.pretrained import Wants, published
from resnext_jax.interop.state_dicts import load_state_dict
from resnext_jax.models.registry import network_spec
from tests.data.images import photograph
from tests.interop.weights import empty_model, random_state_dict
from tests.numerics import relative_difference

GOLDEN = Path(__file__).parent / "golden" / "preprocessing.npz"  # by make_preprocessing.py

# Sides of the crop and of the images, odd ones among them; and what weights ask for.
CROP = 48
SIZES = ((157, 101), (101, 158), (90, 90))
CROP_PCTS = (0.875, 0.95, 0.965, 1.0)
INTERPOLATIONS = ("bilinear", "bicubic")

NETWORKS = sorted({row["name"].partition(".")[0] for row in published()})


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_pct", CROP_PCTS)
def test_images_are_made_as_timm_makes_them(crop_pct: float, interpolation: str) -> None:
    wants = Wants("resnet50", 1000, CROP, crop_pct, interpolation, (0.5,) * 3, (0.5,) * 3)
    transform = EvalTransform(
        CROP, wants.short_side, interpolation=interpolation, centre="torchvision"
    )
    with np.load(GOLDEN) as golden:
        expected = golden[f"{crop_pct}/{interpolation}"]
    for (width, height), theirs in zip(SIZES, expected, strict=True):
        ours = transform({"image": np.asarray(photograph("china", width, height))})["image"]
        assert abs(ours.astype(int) - theirs).max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_pytorchs_do(name: str) -> None:
    """Needs PyTorch, timm and torchvision."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    torchvision = pytest.importorskip("torchvision")
    spec = network_spec(name)
    state_dict = random_state_dict(spec)
    tensors = {key: torch.from_numpy(array) for key, array in state_dict.items()}
    theirs = [timm.create_model(name, pretrained=False)]
    if name in torchvision.models.list_models(torchvision.models):
        theirs.append(torchvision.models.get_model(name, weights=None))
    for network in theirs:
        network.load_state_dict(tensors)
        network.eval()
    model = empty_model(spec)
    load_state_dict(model, state_dict)
    run = jax.jit(lambda images: model(images))
    for height, width in ((64, 64), (97, 61)):
        draw = np.random.RandomState(1).standard_normal((2, height, width, 3))
        images = draw.astype(np.float32)
        ours = np.asarray(run(jnp.asarray(images)))
        for network in theirs:
            with torch.no_grad():
                logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
            difference = relative_difference(ours, logits)
            print(name, type(network).__module__, (height, width), f"{difference:.2g}")
            assert difference < 1e-4
