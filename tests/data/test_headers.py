"""EXIF orientations are read as Pillow reads them, and images turned as it turns them."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnext_jax.commands import predict
from resnext_jax.data.decode import ImageFile
from resnext_jax.data.headers import orientation
from resnext_jax.data.pipeline import eval_batches
from resnext_jax.data.reading import DecodedExamples
from resnext_jax.data.shapes import image_sizes
from resnext_jax.data.sources import Source
from resnext_jax.data.transforms import EvalTransform
from tests.data.images import encoded, photograph

_ORIENTATION = 0x0112


def photographed(mark: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A file of 61x43 pixels with an orientation."""
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[_ORIENTATION] = mark
    return encoded(photograph("china", 61, 43).convert(mode), kind, exif=exif)


def with_exif(exif: bytes) -> bytes:
    return encoded(photograph("china", 61, 43), "JPEG", exif=b"Exif\0\0" + exif)


@pytest.mark.parametrize("mark", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB")]
)
def test_images_are_turned_as_pillow_turns_them(kind: str, mode: str, mark: int) -> None:
    data = photographed(mark, kind, mode)
    assert orientation(data) == mark
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    file = ImageFile(data, "follow")
    assert (file.shape, file.is_turned) == (expected.shape, mark != 1)
    np.testing.assert_array_equal(file[3:20, 5:30], expected[3:20, 5:30])
    np.testing.assert_array_equal(np.asarray(file), expected)
    ignoring = ImageFile(data)
    assert (ignoring.shape, ignoring.is_turned) == ((43, 61, 3), False)
    source = Source("turned", "test", [{"image": data, "label": 0}], ("a",), exif="follow")
    assert image_sizes(DecodedExamples(source)).tolist() == [[*expected.shape[:2]]]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [(3, "H"), (4, "I")])
def test_both_byte_orders_are_read(order: str, kind: tuple[int, str]) -> None:
    start = b"II*\0" if order == "<" else b"MM\0*"
    number, form = kind
    value = struct.pack(f"{order}{form}", 6).ljust(4, b"\0")
    tag = struct.pack(f"{order}HHI", _ORIENTATION, number, 1) + value
    head = start + struct.pack(f"{order}I", 8)
    assert orientation(with_exif(head + struct.pack(f"{order}H", 1) + tag + bytes(4))) == 6
    damaged = [
        b"",
        start,
        head,
        head + struct.pack(f"{order}H", 9) + tag,  # more tags than there are, one of them ours
        start + struct.pack(f"{order}I", 2**31),
        head + struct.pack(f"{order}H", 1) + tag.replace(value, bytes(4)),
    ]
    assert [orientation(with_exif(exif)) for exif in damaged] == [1, 1, 1, 6, 1, 1]


def test_only_the_photograph_itself_is_looked_at() -> None:
    plain, turned = photographed(1), photographed(6)
    assert orientation(plain + turned) == 1
    assert orientation(turned[:30]) == 1
    for data in (
        b"",
        b"RIFF\0\0\0\0WEBP",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe1\0\0Exif\0\0II*\0",
    ):
        assert orientation(data) == 1
    # A TIFF's own mark is followed where it is decoded.
    tiff = photographed(6, "TIFF")
    assert orientation(tiff) == 1
    np.testing.assert_array_equal(ImageFile(tiff), ImageFile(tiff, "follow"))
    assert ImageFile(tiff).shape == (61, 43, 3)


@pytest.mark.parametrize("exif", ["ignore", "follow"])
def test_evaluation_and_prediction_see_the_same(tmp_path: Path, exif: str) -> None:
    files = [photographed(mark, kind) for mark in (1, 3, 6, 8) for kind in ("JPEG", "PNG")]
    examples = [{"image": data, "label": 0} for data in files]
    source, transform = Source("turned", "test", examples, ("a",), exif=exif), EvalTransform(32, 40)
    (batch,) = eval_batches(source, transform, batch_size=8, positions=np.arange(8))
    for index, data in enumerate(files):
        path = tmp_path / str(index)
        path.write_bytes(data)
        image, turned = predict._read(str(path), transform, exif)
        np.testing.assert_array_equal(image, batch["image"][index])
        assert turned == (exif == "follow" and index >= 2)
