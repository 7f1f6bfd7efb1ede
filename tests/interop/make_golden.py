"""Writes what PyTorch computes and saves to tests/interop/golden.

Run as `python -m tests.interop.make_golden`. Needs PyTorch, safetensors and timm, which the tests
that read the files do not. Weights and images are drawn again by the tests
(tests/interop/weights.py), so that only results are stored.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from timm.models import resnet as timm_resnet

from resnext_jax.models.resnext import NetworkSpec
from tests.interop import recipe, reference
from tests.interop.weights import (
    CIFAR_SPEC,
    FAMILY,
    FAMILY_SIZE,
    IMAGENET_SPEC,
    random_images,
    random_state_dict,
    small_spec,
)

FOLDER = Path(__file__).parent / "golden"

# Of the training, these arrays are stored whole, and of all how far they moved.
FINAL_ARRAYS = (
    "conv1.weight",
    "bn1.running_mean",
    "bn1.running_var",
    "layer1.1.conv2.weight",
    "layer2.0.downsample.1.weight",
    "layer3.0.bn2.bias",
    "layer3.0.bn3.running_var",
    "fc.bias",
)


def write_networks() -> None:
    """Write logits and feature maps of the golden networks."""
    arrays = {}
    for name, spec in (("imagenet", IMAGENET_SPEC), ("cifar", CIFAR_SPEC)):
        network = reference.ResNet(spec)
        reference.load(network, random_state_dict(spec))
        logits, features = reference.apply(network, random_images(2, 32))
        arrays[f"{name}/logits"] = logits
        if name == "imagenet":  # CIFAR's are large
            arrays |= {f"{name}/{stage}": maps for stage, maps in features.items()}
    np.savez_compressed(FOLDER / "networks.npz", **arrays)  # type: ignore[arg-type]


def timm_network(spec: NetworkSpec, seed: int = 0) -> torch.nn.Module:
    """Build what timm has for a small network of the ImageNet design, with weights."""
    architecture = spec.architecture
    basic = architecture.basic
    channels = architecture.template_width // (1 if basic else 4)
    network = timm_resnet.ResNet(
        timm_resnet.BasicBlock if basic else timm_resnet.Bottleneck,
        architecture.blocks,
        num_classes=spec.num_classes,
        in_chans=architecture.in_channels,
        cardinality=architecture.cardinality,
        base_width=64 if basic else 64 * architecture.group_width // channels,
        channels=tuple(channels * 2**stage for stage in range(4)),
        stem_width=architecture.stem_width // 2,
        stem_type="deep" if architecture.deep else "",
        avg_down=architecture.deep,
        block_args={"attn_layer": "se" if "SE" in architecture.block.c.__name__ else None},
    )
    return reference.load(network, random_state_dict(spec, seed)).eval()


def write_family() -> None:
    """Write logits of small relatives of the paper's networks, as timm computes them."""
    logits = {}
    for name, spec in FAMILY.items():
        images = random_images(2, FAMILY_SIZE, channels=spec.architecture.in_channels)
        with torch.no_grad():
            logits[name] = timm_network(spec)(reference.images_of(images)).numpy()
    np.savez_compressed(FOLDER / "family.npz", **logits)


def write_weights() -> None:
    """Write the CIFAR network's weights, in every format."""
    tensors = {
        name: torch.from_numpy(array) for name, array in random_state_dict(CIFAR_SPEC).items()
    }
    safetensors.torch.save_file(tensors, FOLDER / "plain.safetensors")
    torch.save(tensors, FOLDER / "plain.pth")
    # As a training on several GPUs writes it, in the format before 1.6.
    wrapped = {
        "epoch": 3,
        "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()},
    }
    path = FOLDER / "wrapped_before_1.6.pth"
    torch.save(wrapped, path, _use_new_zipfile_serialization=False)


def write_training() -> None:
    """Write losses and results of the training in `recipe`."""
    before = random_state_dict(small_spec("float64"), dtype="float64")
    network = reference.ResNet(small_spec())
    reference.load(network, before)
    losses = reference.train(network, recipe.batches(recipe.STEPS, "float64"), recipe.RATES)
    after = reference.arrays_of(network)
    network = reference.ResNet(small_spec())
    reference.load(network, random_state_dict(small_spec()))
    rates = recipe.FLOAT32_RATES
    float32_losses = reference.train(network, recipe.batches(len(rates), "float32"), rates)
    changes = recipe.changes(before, after)
    np.savez_compressed(
        FOLDER / "training.npz",
        losses=losses,
        float32_losses=float32_losses,
        changed=np.array(list(changes)),
        changes=np.array(list(changes.values())),
        **{name: after[name] for name in FINAL_ARRAYS},  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    FOLDER.mkdir(exist_ok=True)
    print(f"timm {timm.__version__}, PyTorch {torch.__version__}")
    write_networks()
    write_family()
    write_weights()
    write_training()
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")
