"""PyTorch's weights in our networks, and ours in PyTorch's.

    load_weights(model, "resnext50_32x4d.safetensors")
    save_weights(model, "mine.safetensors")

Names and layouts. A state dict is torchvision's (`conv1.weight`, `layer1.0.downsample.0.weight`,
`fc.weight`), for all networks that `create_model` builds by name but the pre-activation ones: with
ImageNet's stem, and our CIFAR networks by the same scheme (`layer1` to `layer3`). timm has the same
names, and those of ResNet-D (`resnet50d`) and squeeze-and-excitation (`seresnext50_32x4d`) are its
own, whoever trained them. The weights that the authors released are for Torch7 (.t7), which is not
read; their conversions by pretrained-models.pytorch (`features.0.weight`, `last_linear.weight`)
are. Any block form takes any of them, and gives form c's.

What is refused, by names and shapes that do not fit: timm's other deep stems (`resnet50c`, `s`,
`t`), other attention (`ecaresnet...`, `skresnext...`, `resnest...`, `resnetrs...`, and the first
SENets, `legacy_seresnet...`), group norm (`resnet50_gn`), and pre-activation (`resnetv2...`). Our
own pre-activation networks have no usual names in PyTorch, nor have blocks of one's own. What
leaves no trace in names and shapes cannot be refused, and would compute something else: timm's
anti-aliased networks (`resnetaa50`, `resnetblur50`, `seresnextaa101d_32x8d`), other activations
than ReLU, dilated strides, and networks with the stride on the first 1x1 of a block, as Caffe's.

Strictness. Every name must be there and fit, both ways; one `WeightsError` lists those that do
not. Passed over are only PyTorch's counters of batches, `num_batches_tracked`; they are not
written either, and PyTorch does without. Names may begin with DataParallel's "module.", and the
state dict may be an entry ("state_dict", "model", "model_ema", "state_dict_ema") of what a
training saved.

Files. `.safetensors`, and what `torch.save` writes (`.pth`), also in its format before 1.6, which
torchvision's older files have. Both are read without PyTorch and without running anything; pickles
that want to run something are refused. Writing `.pth` needs PyTorch. A `.safetensors` that a run's
weights are exported to has the names of its classes (`class_names` in its metadata, a JSON list).

As a command (raw weights, or with `--ema` their average; of the newest checkpoint, or that of
`--checkpoint=best` or a step):

    python -m resnext_jax.interop.torch inspect FILE
    python -m resnext_jax.interop.torch export --workdir=WORKDIR --out=FILE [--ema]
"""

import os
import sys
from collections.abc import Sequence

import numpy as np

from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import (
    read_class_names,
    read_state_dict,
    source,
    write_state_dict,
)
from resnext_jax.interop.identify import Identity, identify
from resnext_jax.interop.state_dicts import (
    Network,
    load_arrays,
    load_state_dict,
    spec_of,
    to_state_dict,
    weights_from_torch,
    weights_to_torch,
)

__all__ = [
    "Identity",
    "WeightsError",
    "identify",
    "load_state_dict",
    "load_weights",
    "read_class_names",
    "read_state_dict",
    "save_weights",
    "spec_of",
    "to_state_dict",
    "weights_from_torch",
    "weights_to_torch",
    "write_state_dict",
]


def load_weights(
    model: Network, path: str | os.PathLike[str], *, classifier: bool = True, ema: bool = False
) -> None:
    """Load a file of PyTorch weights into a network, in place.

    Args:
      model: see `load_state_dict`.
      path: see `read_state_dict`.
      classifier: False leaves the model's classifier as it is.
      ema: take the average that a training saved beside the weights.

    Raises:
      WeightsError: the file cannot be read, or does not fit; the model is as it was.
    """
    state_dict: dict[str, np.ndarray] = read_state_dict(path, ema=ema)
    load_arrays(model, state_dict, classifier=classifier, source=source(path))


def save_weights(
    model: Network, path: str | os.PathLike[str], class_names: Sequence[str] | None = None
) -> None:
    """Save a network's weights under torchvision's names; see `to_state_dict`.

    Args:
      model: of `create_model`.
      path: ends in `.safetensors`, or in `.pth` or `.pt`, for which PyTorch is needed.
      class_names: of its classes, in label order, kept in a `.safetensors`.

    Raises:
      WeightsError: a pre-activation network, no PyTorch, or the file cannot be written.
    """
    write_state_dict(to_state_dict(model), path, class_names)


if __name__ == "__main__":
    from resnext_jax.commands.weights import main

    main(sys.argv[1:])
