"""ResNet and ResNeXt in PyTorch, with torchvision's names; and with those of Torch7's containers.

Written for the tests alone, from the paper and torchvision's documented names: what
`resnext_jax.interop` must agree with. Importing it needs PyTorch.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from resnext_jax.models.blocks import BlockSpec
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.resnext import Architecture, NetworkSpec


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 with the stride, 1x1, each with batch norm; then the shortcut."""

    def __init__(self, spec: BlockSpec):
        """Make the block."""
        super().__init__()
        inner, outer = spec.width, spec.out_features
        self.conv1 = nn.Conv2d(spec.in_features, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(
            inner, inner, 3, spec.strides, padding=1, groups=spec.cardinality, bias=False
        )
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU()
        self.downsample = _projection(spec) if spec.projects else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[N, in, H, W]` to `[N, out, H / stride, W / stride]`."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


def _projection(spec: BlockSpec) -> nn.Sequential:
    conv = nn.Conv2d(spec.in_features, spec.out_features, 1, spec.strides, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(spec.out_features))


def _blocks(architecture: Architecture) -> list[list[BlockSpec]]:
    return list(architecture.block_specs(LayerOptions(), residual=True).values())


class ResNet(nn.Module):
    """The classifier, with three stages (CIFAR) or four (ImageNet)."""

    def __init__(self, spec: NetworkSpec):
        """Make the network; the form is c, and there are shortcuts."""
        super().__init__()
        architecture = spec.architecture
        width, self.imagenet = architecture.stem_width, architecture.stem == "imagenet"
        self.conv1 = (
            nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
            if self.imagenet
            else nn.Conv2d(3, width, 3, padding=1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = _blocks(architecture)
        self.num_stages = len(stages)
        for number, blocks in enumerate(stages, start=1):
            self.add_module(f"layer{number}", nn.Sequential(*map(Bottleneck, blocks)))
        self.fc = nn.Linear(stages[-1][-1].out_features, spec.num_classes)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the map at the end of each stage; `images` are `[N, 3, H, W]`."""
        x = self.relu(self.bn1(self.conv1(images)))
        if self.imagenet:
            x = self.maxpool(x)
        maps = []
        for number in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
            maps.append(x)
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `[N, classes]`."""
        return self.fc(self.features(images)[-1].mean(dim=(2, 3)))


class _Pair(nn.Sequential):
    """Torch7's ConcatTable and CAddTable: both on one input, added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both."""
        first, second = self
        return first(x) + second(x)


def _torch7_block(spec: BlockSpec) -> nn.Sequential:
    inner, outer = spec.width, spec.out_features
    inside = nn.Sequential(
        nn.Conv2d(spec.in_features, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, inner, 3, spec.strides, padding=1, groups=spec.cardinality, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
    )
    function = nn.Sequential(inside, nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer))
    shortcut = _projection(spec) if spec.projects else nn.Identity()
    # The sum has a place of its own in Torch7, behind the pair and before the ReLU.
    return nn.Sequential(_Pair(function, shortcut), nn.Identity(), nn.ReLU())


class Torch7ResNet(nn.Module):
    """The authors' networks as pretrained-models.pytorch has them: nested containers."""

    def __init__(self, spec: NetworkSpec):
        """Make an ImageNet network."""
        super().__init__()
        width = spec.architecture.stem_width
        stages = _blocks(spec.architecture)
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            *(nn.Sequential(*map(_torch7_block, blocks)) for blocks in stages),
        )
        self.last_linear = nn.Linear(stages[-1][-1].out_features, spec.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `[N, classes]`."""
        return self.last_linear(self.features(images).mean(dim=(2, 3)))


def load(network: nn.Module, state_dict: dict[str, np.ndarray]) -> nn.Module:
    """Give a network these weights, and their dtype; strictly."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state_dict.items()}
    network.to(next(iter(tensors.values())).dtype)
    network.load_state_dict(tensors)
    return network


def images_of(images: np.ndarray) -> torch.Tensor:
    """Bring `[N, H, W, 3]` into PyTorch's layout."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def apply(network: ResNet, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return logits, and feature maps `[N, H, W, C]` by our names, in testing mode."""
    network.eval()
    with torch.no_grad():
        logits, maps = network(images_of(images)), network.features(images_of(images))
    return logits.numpy(), {
        f"conv{number}": np.ascontiguousarray(map_.numpy().transpose(0, 2, 3, 1))
        for number, map_ in enumerate(maps, start=2)
    }


def train(
    network: ResNet, batches: Iterable[tuple[np.ndarray, np.ndarray]], rates: Sequence[float]
) -> list[float]:
    """Take steps of SGD as the paper does, one a batch and rate; return their losses."""
    network.train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rates[0], momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    losses = []
    for (images, labels), rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = nn.functional.cross_entropy(network(images_of(images)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def arrays_of(network: nn.Module) -> dict[str, np.ndarray]:
    """Return a network's state dict as arrays."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}
