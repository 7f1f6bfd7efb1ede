"""The same networks as plain PyTorch modules, to be timed beside ours.

Written for the benchmarks alone: every convolution, batch norm and ReLU is
PyTorch's own, in the order of the paper, so that its speed is PyTorch's speed.
Where timm or torchvision is installed, their networks are timed instead.
"""

import torch
from torch import nn

from benchmarks.program import plain_architecture


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 (paper Figure 3c)."""

    def __init__(self, inputs: int, width: int, outputs: int, groups: int, stride: int):
        """Make the block."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[N, inputs, H, W]` to `[N, outputs, H / stride, W / stride]`."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        return self.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def build(name: str, num_classes: int) -> nn.Sequential:
    """Build the network that `create_model(name)` builds, in PyTorch.

    Raises:
      ValueError: see `plain_architecture`.
    """
    architecture = plain_architecture(name)
    features = architecture.stem_width
    if architecture.stem == "imagenet":
        layers: list[nn.Module] = [nn.Conv2d(3, features, 7, stride=2, padding=3, bias=False)]
    else:
        layers = [nn.Conv2d(3, features, 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
    if architecture.stem == "imagenet":
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    for stage, blocks in enumerate(architecture.blocks):
        width = architecture.cardinality * architecture.group_width * 2**stage
        outputs = architecture.template_width * 2**stage
        for index in range(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(Bottleneck(features, width, outputs, architecture.cardinality, stride))
            features = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes)]
    return nn.Sequential(*layers)
