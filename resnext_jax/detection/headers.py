"""Headers of image files against their annotations: sizes, and EXIF's marks to turn an image.

Pixels are taken as they are stored, as in py-faster-rcnn. Tools that follow the mark annotate the
turned image, so that boxes are beside their objects; only where the sides are exchanged do sizes
give it away.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from resnext_jax.data.deep_images import open_picture
from resnext_jax.data.headers import spread_sample
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.coco_fields import ProblemReport
from resnext_jax.errors import DataError

# Larger splits are sampled: this many images, spread evenly.
_MOST = 10_000
_THREADS = 8  # for disks that take their time

_ORIENTATION, _UPRIGHT, _MARKS = 0x0112, 1, range(2, 9)

_TURN = "turn the files (exiftran -ai, or PIL.ImageOps.exif_transpose) or annotate them as stored"


def check_headers(split: CocoSplit) -> list[str]:
    """Look at the headers of a split's images.

    Returns:
      What is unusual, a sentence each.

    Raises:
      DataError: images are not as large as their annotations say.
    """
    places = spread_sample(len(split), _MOST)
    with ThreadPoolExecutor(_THREADS) as threads:
        headers = list(threads.map(_header, map(split.path, places)))
    sizes = {
        place: (width, height, mark)
        for place, (width, height, mark) in zip(places, headers, strict=True)
        if width
    }

    def describe(place: int) -> str:
        width, height, mark = sizes[place]
        orientation = "" if mark == _UPRIGHT else f" and has EXIF orientation {mark}"
        return f"image id {split.image_ids[place]} is {width}x{height}{orientation}"

    sample = f" (of {len(places):,} looked at)" if len(places) < len(split) else ""
    wrong = [
        place
        for place, (width, height, _) in sizes.items()
        if (width, height) != (split.widths[place], split.heights[place])
    ]
    turned = [place for place in sizes if sizes[place][2] != _UPRIGHT]
    report = ProblemReport()
    report.mistake(
        f"images that are not as large as annotated{sample}",
        np.array(wrong),
        lambda place: (
            f"{describe(place)}, annotated as {split.widths[place]}x{split.heights[place]}"
        ),
    )
    if report.mistakes:
        remedy = "repair the files or their annotations"
        if set(wrong) & set(turned):
            remedy = f"marks to turn an image (EXIF) are not followed: {_TURN}"
        raise DataError(
            f"{split.annotations} and the images in {split.folder} do not fit; "
            f"{report.mistakes[0]}; {remedy}."
        )
    report.note(
        f"images with a mark to turn them (EXIF), which is not followed{sample}; if their boxes "
        f"are those of the turned images, {_TURN}",
        np.array(turned),
        describe,
    )
    return report.notes


def _header(path: Path) -> tuple[int, int, int]:
    """Return width, height and orientation; zeros where only decoding shows them."""
    try:
        with path.open("rb") as file, open_picture(file) as picture:
            if picture.format == "TIFF":  # whose own mark is followed
                return 0, 0, _UPRIGHT
            # After a PNG's pixels Pillow would find it only by decoding them.
            is_marked = picture.format != "PNG" or "exif" in picture.info
            mark = picture.getexif().get(_ORIENTATION, _UPRIGHT) if is_marked else _UPRIGHT
            return *picture.size, mark if mark in _MARKS else _UPRIGHT
    except Exception:  # Pillow's readers raise anything; decoding explains it
        return 0, 0, _UPRIGHT
