"""PyTorch's grouped convolution and its gradients, for `grouped_conv.py`; imports torch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks import torch_device


class TorchConv:
    """A 3x3 convolution of PyTorch, channels last, with random operands on the device."""

    def __init__(
        self, *, batch: int, size: int, channels: int, groups: int, stride: int, dtype: str
    ):
        """Draw the operands: `batch` maps of `size` x `size`, as many channels in as out."""
        self._groups = groups
        self._stride = stride
        out_size = size // stride
        self._x = _random((batch, channels, size, size), dtype)
        self._kernel = _random((channels, channels // groups, 3, 3), dtype)
        self._cotangent = _random((batch, channels, out_size, out_size), dtype)

    def forward(self) -> torch.Tensor:
        """Convolve."""
        with torch.inference_mode():
            return torch.nn.functional.conv2d(
                self._x, self._kernel, None, self._stride, 1, 1, self._groups
            )

    def input_gradient(self) -> torch.Tensor:
        """Return the gradient of the input alone."""
        return self._gradients([True, False, False])[0]

    def kernel_gradient(self) -> torch.Tensor:
        """Return the gradient of the kernel alone."""
        return self._gradients([False, True, False])[1]

    def _gradients(self, wanted: Sequence[bool]) -> Sequence[torch.Tensor]:
        # What autograd calls; without bias, dilation, transposition and output padding.
        with torch.inference_mode():
            gradients: Sequence[torch.Tensor] = torch.ops.aten.convolution_backward(
                self._cotangent,
                self._x,
                self._kernel,
                None,
                [self._stride, self._stride],
                [1, 1],
                [1, 1],
                False,
                [0, 0],
                self._groups,
                wanted,
            )
            return gradients

    def passes(self) -> tuple[Callable[[], torch.Tensor], ...]:
        """Return the three of them, called once: at first cuDNN tries its algorithms."""
        runs = (self.forward, self.input_gradient, self.kernel_gradient)
        for run in runs:
            run()
        torch_device.wait(None)
        return runs


def _random(shape: Sequence[int], dtype: str) -> torch.Tensor:
    values = np.random.default_rng(0).standard_normal(tuple(shape), np.float32)
    placed = torch.from_numpy(values).to(torch_device.device(), getattr(torch, dtype))
    return placed.contiguous(memory_format=torch.channels_last)
