"""PyTorch's steps for `train_step.py`; imports torch.

Set up as its tuning guide says: channels last, bfloat16 by autocast, gradients
set to None, the fused SGD. Images arrive as uint8 and are normalised on the
device, as ours. The networks are timm's or torchvision's where installed, and
those of `torch_resnext.py` otherwise.
"""

import dataclasses
import functools
import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from benchmarks import measure, torch_device, torch_resnext
from benchmarks.program import (
    LEARNING_RATE,
    MEAN,
    MOMENTUM,
    STD,
    WEIGHT_DECAY,
    Plan,
    Program,
    Setting,
)

How = Literal["eager", "compile"]

# What lists a library's networks, whose names are ours. In order of preference.
_LIBRARIES: dict[str, Callable[[Any], list[str]]] = {
    "timm": lambda timm: timm.list_models(),
    "torchvision": lambda torchvision: torchvision.models.list_models(),
}

# Compiled steps of one benchmark share code, which PyTorch would take for
# recompiling one step without end.
_MOST_COMPILATIONS = 64


@dataclasses.dataclass(frozen=True)
class TorchVariant:
    """A model in PyTorch.

    Attributes:
      model: its name.
      how: "eager", or "compile" for `torch.compile`.
    """

    model: str
    how: How

    @property
    def source(self) -> str:
        """Whose network it is."""
        return source_of(self.model)

    @property
    def what(self) -> str:
        """As in `torch eager (timm)`."""
        return f"torch {self.how} ({self.source})"

    def describe(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""
        return {"framework": "torch", "how": self.how, "source": self.source}

    def build(self, setting: Setting) -> "TorchNetwork":
        """Make the network."""
        return TorchNetwork(self, setting)


@functools.cache
def source_of(model: str) -> str:
    """Name the first library that has the model and can be imported."""
    for library, models_of in _LIBRARIES.items():
        if importlib.util.find_spec(library):
            try:
                models = models_of(importlib.import_module(library))
            except (ImportError, OSError, RuntimeError) as error:  # built for another PyTorch
                measure.progress(f"{library} is left out: {measure.shortened(error)}")
            else:
                if model in models:
                    return library
    return "torch_resnext"


def make_network(setting: Setting) -> nn.Module:
    """Build a model.

    Raises:
      ValueError: PyTorch's has not as many parameters as ours, or there is none.
    """
    model, classes = setting.model, setting.classes
    source = source_of(model)
    if source == "timm":
        network = importlib.import_module("timm").create_model(
            model, pretrained=False, num_classes=classes
        )
    elif source == "torchvision":
        network = importlib.import_module("torchvision.models").get_model(
            model, weights=None, num_classes=classes
        )
    else:
        network = torch_resnext.build(model, classes)
    count = sum(parameter.numel() for parameter in network.parameters())
    expected = setting.cost.params
    if count != expected:
        raise ValueError(f"{model} of {source} has {count:,} parameters, ours has {expected:,}.")
    return network


class TorchNetwork:
    """A network with its arrays and a batch on the device."""

    def __init__(self, variant: TorchVariant, setting: Setting):
        """Make them."""
        torch._dynamo.config.recompile_limit = _MOST_COMPILATIONS
        self._device = torch_device.device()
        self._how = variant.how
        self._bfloat16 = setting.dtype == "bfloat16"
        network = make_network(setting)
        self._network = network.to(self._device, memory_format=torch.channels_last)
        images, labels = setting.random_batch()
        # [N, H, W, 3] in memory, [N, 3, H, W] by name: channels last.
        self._images = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        self._labels = torch.from_numpy(labels).to(self._device, torch.int64)
        self._mean, self._std = (
            torch.tensor(values, device=self._device).view(1, 3, 1, 1) for values in (MEAN, STD)
        )

    def training(self) -> Program:
        """Make the training step and take it once; each run continues from the one before."""
        self._network.train()
        optimizer = torch.optim.SGD(
            self._network.parameters(),
            lr=LEARNING_RATE,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )

        def loss_fn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(self._logits(images), labels)

        loss_fn = self._compiled(loss_fn)

        def run() -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_fn(self._images, self._labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return self._program(run, optimizer)

    def inference(self) -> Program:
        """Make the logits of a batch in evaluation mode, and compute them once."""
        self._network.eval()
        logits = self._compiled(self._logits)

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return logits(self._images)

        return self._program(run, None)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        normalised = (images.float() - self._mean) / self._std
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            logits: torch.Tensor = self._network(normalised)
        return logits.float()

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # For these shapes: code for any batch would be slower.
        return torch.compile(function, dynamic=False) if self._how == "compile" else function

    def _program(
        self, run: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer | None
    ) -> Program:
        start = time.perf_counter()
        run()
        torch_device.wait(None)
        seconds = time.perf_counter() - start

        def peak_of_a_step() -> int | None:
            if self._device.type != "cuda":
                return None
            before = torch.cuda.memory_allocated()
            own = self._bytes(optimizer)
            torch.cuda.reset_peak_memory_stats()
            run()
            torch_device.wait(None)
            return torch.cuda.max_memory_allocated() - before + own

        return Program(run, torch_device.wait, Plan(seconds), peak_of_a_step)

    def _bytes(self, optimizer: torch.optim.Optimizer | None) -> int:
        """Bytes that the network holds between two steps."""
        parameters = list(self._network.parameters())
        held = [*parameters, *self._network.buffers(), self._images, self._labels]
        held += [parameter.grad for parameter in parameters if parameter.grad is not None]
        for state in optimizer.state.values() if optimizer else ():
            held += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.nbytes for tensor in held)
