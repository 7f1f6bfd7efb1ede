"""Writes tests/interop/golden/preprocessing.npz: photographs as timm prepares them for a test.

Run as `python -m tests.interop.make_preprocessing`. Needs timm and torchvision.
"""

import numpy as np
from timm.data import create_transform

from tests.data.images import photograph
from tests.interop.test_published_networks import (
    CROP,
    CROP_PCTS,
    GOLDEN,
    INTERPOLATIONS,
    SIZES,
)


def main() -> None:
    """Write uint8 `[image, CROP, CROP, 3]` for each setting."""
    arrays = {}
    for crop_pct in CROP_PCTS:
        for interpolation in INTERPOLATIONS:
            transform = create_transform(
                CROP,
                is_training=False,
                interpolation=interpolation,
                mean=(0.0,) * 3,
                std=(1.0,) * 3,
                crop_pct=crop_pct,
            )
            made = [transform(photograph("china", *size)).numpy() for size in SIZES]
            pixels = np.rint(np.stack(made).transpose(0, 2, 3, 1) * 255)
            arrays[f"{crop_pct}/{interpolation}"] = pixels.astype(np.uint8)
    np.savez_compressed(GOLDEN, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
