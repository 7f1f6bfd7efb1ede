"""What `train_step.py` times: a step of ours or of PyTorch's, ready to be run again and again."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from benchmarks import measure
from resnext_jax.models import Complexity
from resnext_jax.models.blocks import BOTTLENECK
from resnext_jax.models.capacity import complexity
from resnext_jax.models.registry import parse_name
from resnext_jax.models.resnext import Architecture

Mode = Literal["inference", "training"]
MODES: tuple[Mode, ...] = ("inference", "training")

# Training multiplies three times: forward, and for the gradients of inputs and of kernels.
_PASSES: dict[Mode, int] = {"inference": 1, "training": 3}

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# The recipes' optimiser, but for the rate: a low one keeps the weights sane
# however often the same random batch is learnt.
LEARNING_RATE = 1e-3
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a network is to work on.

    Attributes:
      model: its name.
      dtype: of the computation; parameters are float32.
      batch: images a step, on all devices together.
      asked_size: height and width of the images, None for the usual.
    """

    model: str
    dtype: str
    batch: int
    asked_size: int | None = None

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        return self.asked_size or parse_name(self.model).usual_image_size

    @property
    def classes(self) -> int:
        """Width of the classifier: ImageNet's or CIFAR-10's."""
        return parse_name(self.model).usual_classes

    @property
    def cost(self) -> Complexity:
        """Parameters and multiply-adds of the network."""
        return _cost(self.model, self.image_size, self.classes)

    def flops(self, mode: Mode) -> int:
        """Floating-point operations of a step.

        Analytic: two (multiply, add) for each multiply-add of convolutions and
        classifier, three times over in training. What a lowering computes in
        addition, batch norm and the update do not count.
        """
        return 2 * _PASSES[mode] * self.cost.macs * self.batch

    def random_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw uint8 images `[N, H, W, 3]` and int32 labels `[N]`."""
        rng = np.random.default_rng(0)
        shape = (self.batch, self.image_size, self.image_size, 3)
        images = rng.integers(0, 256, shape, np.uint8)
        return images, rng.integers(0, self.classes, self.batch, np.int32)


def plain_architecture(name: str) -> Architecture:
    """Read the name of a network that the modules written for comparison have the parts of.

    Raises:
      ValueError: no such model, or one with other parts than a plain stem and bottleneck blocks.
    """
    architecture = parse_name(name)
    if architecture.preactivation or architecture.deep or architecture.block is not BOTTLENECK:
        raise ValueError(
            f"{name!r} is not among the networks for comparison: they have plain stems and "
            "bottleneck blocks, such as resnet50 and resnext50_32x4d."
        )
    return architecture


@functools.cache
def _cost(model: str, image_size: int, classes: int) -> Complexity:
    return complexity(model, image_size=image_size, num_classes=classes)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What compiling a step took, and the memory it is planned to need.

    Attributes:
      compile_seconds: tracing included; of PyTorch, which compiles when it is
        first called, the first step.
      temporary_bytes: for intermediate results, on each device; None where the
        compiler does not say.
      planned_bytes: the same with arguments and results, those in the
        arguments' place counted once.
    """

    compile_seconds: float
    temporary_bytes: int | None = None
    planned_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, with the arrays it works on.

    Attributes:
      run: takes one step and returns its result, perhaps not yet computed.
      wait: waits for that result.
      plan: what compiling took.
      peak_of_a_step: takes a step and returns the most memory in use on a
        device meanwhile, without what other programs hold; None where the
        platform does not say or a higher peak before hides it.
    """

    run: Callable[[], Any]
    wait: measure.Wait
    plan: Plan
    peak_of_a_step: Callable[[], int | None]


class Network(Protocol):
    """A network with its arrays on the device, of which steps can be compiled.

    One mode at a time: a new step may put the network into another mode.
    """

    def training(self) -> Program:
        """Compile the training step; each run continues from the one before."""

    def inference(self) -> Program:
        """Compile the logits of a batch, in evaluation mode."""


class Variant(Protocol):
    """A row of the tables: a model, and what computes it."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def what(self) -> str:
        """What computes it, in a word or three."""

    def describe(self) -> dict[str, Any]:
        """Return what the JSON file says of it."""

    def build(self, setting: Setting) -> Network:
        """Make the network."""
