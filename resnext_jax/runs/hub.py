"""Weights as a repository for the Hugging Face Hub, as timm reads it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from resnext_jax.config import build
from resnext_jax.errors import UserError
from resnext_jax.interop.files import write_state_dict
from resnext_jax.interop.pretrained import published
from resnext_jax.interop.state_dicts import weights_to_torch
from resnext_jax.models.registry import model_name, network_spec
from resnext_jax.runs.weights import LoadedNetwork


def export_hub(found: LoadedNetwork, folder: Path) -> None:
    """Write a repository for the Hugging Face Hub, as timm reads it.

    `config.json`, `model.safetensors` and a model card, `README.md`. timm's
    `create_model("local-dir:FOLDER", pretrained=True)` builds the network from it.

    Args:
      found: the weights.
      folder: the folder to create.

    Raises:
      UserError: the folder exists already or cannot be written, or timm has no such network.
    """
    spec, network = found.member.spec, found.member.network
    name = model_name(spec.architecture)
    known = {row["name"].partition(".")[0] for row in published()}
    usual = name in known and spec.architecture == network_spec(name).architecture
    if not usual or not spec.residual:
        raise UserError(
            f"timm has no network like this one ({found.config.model.name}); --format=hub is for "
            f"those that list_models(pretrained=True) names: {', '.join(sorted(known))}."
        )
    state_dict = weights_to_torch(network.params, network.batch_stats, spec)
    config = hub_config(found, str(name), num_features=int(state_dict["fc.weight"].shape[1]))
    if folder.exists():
        raise UserError(f"{folder} exists already; name another folder with --out=FOLDER.")
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (temporary / "README.md").write_text(_card(found, config))
        write_state_dict(state_dict, temporary / "model.safetensors", found.class_names)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); name another folder with --out=FOLDER."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hub_config(found: LoadedNetwork, name: str, *, num_features: int) -> dict[str, Any]:
    """Return the `config.json` of a network for the hub, in timm's terms.

    Args:
      found: the weights.
      name: of the network.
      num_features: channels before the classifier.
    """
    transform, data = build.eval_transform(found.config), found.config.data
    size, short_side = transform.image_size, transform.short_side
    crop_pct = 1.0
    if short_side is not None:
        crop_pct = size / short_side
        if math.floor(size / crop_pct) != short_side:  # of rounding; timm rounds down as well
            crop_pct = size / (short_side + 0.5)
    images = {
        "input_size": [3, size, size],
        "fixed_input_size": False,
        "interpolation": "bilinear" if transform.interpolation == "bilinear" else "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": "squash" if short_side is None else "center",
        "mean": [number / 255 for number in data.mean],
        "std": [number / 255 for number in data.std],
        "num_classes": found.member.spec.num_classes,
        "pool_size": [-(-size // 32)] * 2,
        "first_conv": "conv1.0" if found.member.spec.architecture.deep else "conv1",
        "classifier": "fc",
    }
    if found.wants is not None and found.wants.licence:
        images["license"] = found.wants.licence
    config = {
        "architecture": name,
        "num_classes": found.member.spec.num_classes,
        "num_features": num_features,
        "global_pool": "avg",
        "pretrained_cfg": images,
    }
    return config | ({"label_names": list(found.class_names)} if found.class_names else {})


def _card(found: LoadedNetwork, config: dict[str, Any]) -> str:
    images = config["pretrained_cfg"]
    licence = images.get("license")
    mean, std = (", ".join(f"{x:.4g}" for x in images[name]) for name in ("mean", "std"))
    origin = found.member.origin if found.wants is not None else Path(found.member.origin).name
    return f"""---
tags:
- image-classification
- timm
library_name: timm
{f"license: {licence}" if licence else "# license: choose one before you publish this"}
---
# {config["architecture"]}

An image classifier with {config["num_classes"]:,} classes, exported by resnext_jax from {origin}
({found.member.short_name}).

- Images: {images["input_size"][1]} pixels square, crop_pct {images["crop_pct"]:.4g},
  {images["interpolation"]}, mean {mean}, standard deviation {std}
- Licence: {licence or "not given"}

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```
"""
