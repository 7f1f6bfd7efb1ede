"""Store what torchvision's and timm's RandAugment make of an image, for test_rand_augment.

Needs PyTorch, torchvision and timm, which the tests do not: python -m tests.data.make_golden
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "rand_augment.npz"
SIZE = 26
TORCHVISION_MAGNITUDE, TIMM_MAGNITUDE = 9, 7.0

# Our names of their operations.
TORCHVISION = {
    "Identity": "identity",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "colour",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterise",
    "Solarize": "solarise",
    "AutoContrast": "autocontrast",
    "Equalize": "equalise",
}
TIMM = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalise",
    "Invert": "invert",
    "Rotate": "rotate",
    "PosterizeIncreasing": "posterise",
    "SolarizeIncreasing": "solarise",
    "SolarizeAdd": "solarise_add",
    "ColorIncreasing": "colour",
    "ContrastIncreasing": "contrast",
    "BrightnessIncreasing": "brightness",
    "SharpnessIncreasing": "sharpness",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
}


def picture() -> np.ndarray:
    """Return a smooth image with some noise, uint8 `[SIZE, SIZE, 3]`."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = np.stack([np.sin(5 * x + 2 * y), np.cos(4 * x * y), np.sin(7 * y)], -1)
    noise = np.random.default_rng(0).normal(size=waves.shape)
    return np.clip(120 + 90 * waves + 8 * noise, 0, 255).astype(np.uint8)


def main() -> None:
    """Write the file."""
    import random

    import timm
    import torch
    import torchvision
    from timm.data import auto_augment
    from torchvision.transforms import autoaugment

    image = Image.fromarray(picture())
    stored: dict[str, Any] = {
        "versions": [torch.__version__, torchvision.__version__, timm.__version__]
    }
    space = autoaugment.RandAugment()._augmentation_space(31, (SIZE, SIZE))
    nearest = autoaugment.InterpolationMode.NEAREST
    for theirs, ours in TORCHVISION.items():
        magnitudes, signed = space[theirs]
        value = float(magnitudes[TORCHVISION_MAGNITUDE]) if magnitudes.ndim else 0.0
        for sign in (1, -1) if signed else (1,):
            made = autoaugment._apply_op(image, theirs, sign * value, nearest, None)
            stored[f"torchvision,{ours},{sign}"] = np.asarray(made)
    assert list(TIMM) == auto_augment._RAND_INCREASING_TRANSFORMS
    settings = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    for theirs, ours in TIMM.items():
        for sign in (1, -1):
            # timm negates where the number is above a half.
            random.random = lambda sign=sign: 0.25 if sign > 0 else 0.75  # type: ignore[misc]
            operation = auto_augment.AugmentOp(theirs, 1.0, TIMM_MAGNITUDE, settings)
            stored[f"increasing,{ours},{sign}"] = np.asarray(operation(image))
    np.savez_compressed(GOLDEN, **stored)


if __name__ == "__main__":
    main()
