"""Images that EXIF would turn are found before training, by their headers alone."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_jax.detection import headers
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.headers import check_headers
from resnext_jax.errors import DataError
from tests.data.deep_files import tiff
from tests.detection.coco_files import annotation, image, random_split, write_coco


def marked(orientation: int, height: int, width: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    """Three images of 48x64, and one of 40x40."""
    images = [*map(image, (3, 5, 7)), image(9, 40, 40)]
    return write_coco(tmp_path, images, [annotation(1, 3, 1, [1, 1, 5, 5])])


def test_images_as_they_should_be_are_not_mentioned(split: CocoSplit) -> None:
    split.path(0).write_bytes(marked(1, 48, 64))
    split.path(1).write_bytes(marked(0, 48, 64))  # means nothing
    split.path(2).write_bytes(tiff(np.zeros((48, 64, 3), np.uint8)))
    assert check_headers(split) == []
    # What is no image is explained when it is decoded.
    split.path(1).write_bytes(b"text")
    split.path(2).unlink()
    assert check_headers(split) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_marks_that_keep_the_size_are_noted(split: CocoSplit, orientation: int, kind: str) -> None:
    split.path(1).write_bytes(marked(orientation, 48, 64, kind))
    split.path(3).write_bytes(marked(6, 40, 40, kind))
    (note,) = check_headers(split)
    assert note.startswith("images with a mark to turn them (EXIF), which is not followed; if ")
    assert note.endswith(
        f": 2 (image id 5 is 64x48 and has EXIF orientation {orientation}, "
        "image id 9 is 40x40 and has EXIF orientation 6)"
    )


def test_sizes_of_turned_images_are_refused(split: CocoSplit) -> None:
    split.path(2).write_bytes(marked(6, 64, 48))
    with pytest.raises(
        DataError,
        match=r"not as large as annotated: 1 \(image id 7 is 48x64 and has EXIF orientation 6, "
        r"annotated as 64x48\); marks to turn an image \(EXIF\) are not followed: turn the files",
    ):
        check_headers(split)
    split.path(2).write_bytes(marked(1, 64, 48))
    with pytest.raises(DataError, match=r"as 64x48\); repair the files or their annotations\.$"):
        check_headers(split)


def test_of_many_images_a_sample_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "_MOST", 4)
    split = random_split(tmp_path)
    for place in (0, 1, 9):  # 0, 3, 6 and 9 are looked at
        height, width = int(split.heights[place]), int(split.widths[place])
        split.path(place).write_bytes(marked(3, height, width))
    (note,) = check_headers(split)
    assert "which is not followed (of 4 looked at); " in note
    assert ": 2 (image id 1 is 64x48 " in note
