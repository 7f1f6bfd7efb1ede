"""Every kind of 8-bit image file is decoded as by Pillow, or refused; deeper ones elsewhere."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from resnext_jax.data import decode
from resnext_jax.data.decode import ImageFile, UndecodableImageError, decode_rgb
from resnext_jax.data.reading import DecodedExamples
from resnext_jax.data.shapes import image_sizes
from resnext_jax.data.sources import Source
from tests.data.images import PHOTOGRAPHS, encoded, photograph, photograph_file


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photograph("china", 60, 40), "JPEG", exif=exif)


def with_thumbnail() -> bytes:
    """A JPEG with a whole JPEG, end marker and all, in its first kilobytes."""
    thumbnail = encoded(photograph("flower", 16, 16), "JPEG")
    return encoded(photograph("china", 60, 40), "JPEG", comment=thumbnail)


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded(photograph("china", 61, 43), "JPEG", quality=90),
    "JPEG 4:4:4": lambda: encoded(photograph("china", 61, 43), "JPEG", subsampling=0),
    "JPEG 4:2:2": lambda: encoded(photograph("china", 61, 43), "JPEG", subsampling=1),
    "progressive JPEG": lambda: encoded(photograph("china", 61, 43), "JPEG", progressive=True),
    "grey JPEG": lambda: encoded(photograph("china", 61, 43).convert("L"), "JPEG"),
    "CMYK JPEG": lambda: encoded(photograph("china", 61, 43).convert("CMYK"), "JPEG"),
    "turned JPEG": lambda: turned(6),
    "JPEG with a thumbnail": with_thumbnail,
    "PNG": lambda: encoded(photograph("china", 61, 43), "PNG"),
    "grey PNG": lambda: encoded(photograph("china", 61, 43).convert("L"), "PNG"),
    "PNG with a palette": lambda: encoded(photograph("china", 61, 43).quantize(16), "PNG"),
    "PNG with transparency": lambda: encoded(photograph("china", 61, 43).convert("RGBA"), "PNG"),
    "PNG with a transparent colour": lambda: encoded(
        photograph("china", 61, 43), "PNG", transparency=(0, 0, 0)
    ),
    "two-colour PNG": lambda: encoded(photograph("china", 61, 43).convert("1"), "PNG"),
    "PNG with a palette and transparency": lambda: encoded(
        photograph("china", 61, 43).quantize(16), "PNG", transparency=3
    ),
    "grey PNG with a transparent shade": lambda: encoded(
        photograph("china", 61, 43).convert("L"), "PNG", transparency=9
    ),
    "four-colour PNG": lambda: encoded(photograph("china", 61, 43).quantize(4), "PNG", bits=2),
    "GIF": lambda: encoded(photograph("china", 61, 43), "GIF"),
    "BMP": lambda: encoded(photograph("china", 61, 43), "BMP"),
    "WebP": lambda: encoded(photograph("china", 61, 43), "WEBP"),
    "TIFF": lambda: encoded(photograph("china", 61, 43), "TIFF"),
}
BY_OPENCV = {
    "JPEG",
    "JPEG 4:4:4",
    "JPEG 4:2:2",
    "progressive JPEG",
    "grey JPEG",
    "turned JPEG",
    "JPEG with a thumbnail",
    "PNG",
    "grey PNG",
    "PNG with a transparent colour",
    "grey PNG with a transparent shade",
}


@pytest.mark.parametrize("kind", FILES)
def test_comes_out_as_pillow_gives_it(kind: str) -> None:
    data = FILES[kind]()
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture.convert("RGB"))
    actual = decode_rgb(data)
    assert (actual.dtype.name, actual.ndim, actual.shape[2]) == ("uint8", 3, 3)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_come_out_as_pillow_gives_them(name: str) -> None:
    data = photograph_file(name)
    np.testing.assert_array_equal(decode_rgb(data), np.asarray(photograph(name)))


@pytest.mark.parametrize("kind", FILES)
def test_opencv_decodes_the_usual_kinds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For speed: Pillow is asked only where the two would differ."""
    data = FILES[kind]()

    class AskedPillowError(Exception):
        pass

    def refuse(file: io.BytesIO, formats: tuple[str, ...]) -> None:
        raise AskedPillowError

    monkeypatch.setattr(decode.Image, "open", refuse)
    if kind in BY_OPENCV:
        decode_rgb(data)
    else:
        with pytest.raises(UndecodableImageError, match="AskedPillowError"):
            decode_rgb(data)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_short_is_refused(kind: str, share: float) -> None:
    data = FILES[kind]()
    with pytest.raises(UndecodableImageError) as error:
        decode_rgb(data[: int(share * len(data))])
    assert str(error.value)
    assert "\n" not in str(error.value)


def test_a_whole_jpeg_followed_by_garbage_is_accepted() -> None:
    """Some cameras and some download tools leave bytes behind the end marker."""
    data = FILES["JPEG"]()
    for garbage in (b"\0" * 100, b"\xff\xda and more", with_thumbnail()[:2000]):
        np.testing.assert_array_equal(decode_rgb(data + garbage), decode_rgb(data))


def telephone_file(kind: str, data: bytes) -> bytes:
    """A photograph with what telephones put behind it, whose end looks like that of a JPEG."""
    if kind == "second picture":
        return data + encoded(photograph("flower", 300, 200), "JPEG")
    if kind == "film":
        return data + b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 9 + b"\xff\xd9" + bytes(50)
    pictures = photograph("china", 61, 83), photograph("flower", 61, 83)
    return encoded(pictures[0], "MPO", save_all=True, append_images=[pictures[1]])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("kind", ["second picture", "film", "MPO"])
def test_a_telephones_photograph_ends_where_it_ends(
    kind: str, options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    alone = encoded(photograph("china", 61, 83), "JPEG", **options)
    data = telephone_file(kind, alone)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(ImageFile(data)[:20, :], expected[:20])
    np.testing.assert_array_equal(decode_rgb(data), expected)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "grey JPEG", "CMYK JPEG"])
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_what_follows_does_not_make_a_cut_jpeg_whole(
    kind: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """A second picture, or the zeros that a download which broke off left."""
    data = FILES[kind]()
    cut = data[: int(share * len(data))]
    for more in (data, data[:200], b"\0" * 10_000, b"\xff" + data):
        for read in (decode_rgb, lambda file: ImageFile(file)[:9, :]):
            with pytest.raises(UndecodableImageError, match=r"^the image is cut short$"):
                read(cut + more)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("default_image", [False, True])
def test_the_still_image_of_an_animation_is_taken(default_image: bool) -> None:
    """It is what programs show that do not know of animations, and may not be a frame of it."""
    colours = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
    still, *frames = (Image.new("RGB", (8, 6), colour) for colour in colours)
    options: dict[str, Any] = {"save_all": True, "append_images": frames}
    for kind, mode in (("PNG", "RGB"), ("PNG", "L"), ("GIF", "RGB")):
        chosen = options | ({"default_image": default_image} if kind == "PNG" else {})
        data = encoded(still.convert(mode), kind, **chosen)
        with Image.open(io.BytesIO(data)) as picture:
            expected = np.asarray(picture.convert("RGB"))
        assert tuple(expected[0, 0]) == tuple(np.asarray(still.convert(mode).convert("RGB"))[0, 0])
        np.testing.assert_array_equal(decode_rgb(data), expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "no image of a known kind"),
        (b"\xff\xd8\xff", "no image of a known kind"),
        (b"\x89PNG\r\n\x1a\n", "no image of a known kind"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImageError, match=reason):
        decode_rgb(data)


def test_no_program_is_run_for_postscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called: Pillow would run the first `gs` of PATH."""
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\n")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    data = encoded(photograph("china", 8, 8), "EPS")
    with pytest.raises(UndecodableImageError, match="it is no image of a known kind"):
        decode_rgb(data)
    source = Source("postscript", "test", [{"image": data, "label": 0}], ("a",))
    assert image_sizes(DecodedExamples(source)).tolist() == [[0, 0]]
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("kind", ["BMP", "JPEG", "grey JPEG", "CMYK JPEG", "PNG", "grey PNG"])
def test_a_picture_of_absurd_size_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes may unfold into gigabytes."""
    data = FILES[kind]()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UndecodableImageError, match="decompression bomb"):
        decode_rgb(data)
    with pytest.raises(UndecodableImageError, match="decompression bomb"):
        ImageFile(data)[:1, :1]


@pytest.mark.parametrize("end", range(1, 12))
def test_a_scan_without_contents_is_refused(end: int) -> None:
    data = FILES["JPEG"]()
    scan = data.index(b"\xff\xda")
    with pytest.raises(UndecodableImageError):
        decode_rgb(data[: scan + end] + b"\xff\xd9")


def test_opencv_uses_one_thread() -> None:
    assert cv2.getNumThreads() == 1


SUBSAMPLINGS = [0, 1, 2]  # 4:4:4, 4:2:2, 4:2:0


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_the_first_rows_are_those_of_the_whole_image(name: str, subsampling: int) -> None:
    data = encoded(photograph(name, 61, 83), "JPEG", quality=90, subsampling=subsampling)
    whole = decode_rgb(data)
    for stop in range(1, 84):
        part = ImageFile(data)[stop // 2 : stop, 3:40]
        np.testing.assert_array_equal(part, whole[stop // 2 : stop, 3:40])


@pytest.mark.parametrize("kind", FILES)
def test_a_part_of_any_file(kind: str) -> None:
    data = FILES[kind]()
    whole = decode_rgb(data)
    assert ImageFile(data).shape == whole.shape
    np.testing.assert_array_equal(ImageFile(data)[1:9, 2:7], whole[1:9, 2:7])
    image = ImageFile(data)
    np.testing.assert_array_equal(np.asarray(image), whole)
    np.testing.assert_array_equal(image[1:9, 2:7], whole[1:9, 2:7])


def decoded_heights(data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Heights that OpenCV is asked to decode for the first five rows."""
    heights = []
    real: Any = cv2.imdecode

    def watch(buffer: np.ndarray, flags: int) -> Any:
        image = real(buffer, flags)
        heights.append(len(image))
        return image

    monkeypatch.setattr(cv2, "imdecode", watch)
    assert ImageFile(data).shape[0] == 83
    assert heights == []  # the size is known without decoding
    ImageFile(data)[:5, :]
    return heights


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_rows_below_are_not_decoded(subsampling: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photograph("china", 61, 83), "JPEG", subsampling=subsampling)
    assert decoded_heights(data, monkeypatch) == [16]


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_rows": 1}], ids=["progressive", "restarts"]
)
def test_jpegs_that_must_be_decoded_whole(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(photograph("china", 61, 83), "JPEG", **options)
    assert decoded_heights(data, monkeypatch) == [83]


def test_decoding_a_part_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """The library would complain about what follows the last row."""
    for name in PHOTOGRAPHS:
        data = photograph_file(name)
        for garbage in (b"", b"\0" * 100, b"\xff\xda and more"):
            ImageFile(data + garbage)[:100, :]
    assert "Corrupt" not in capfd.readouterr().err


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_cut_short_is_refused_whatever_part_is_wanted(share: float) -> None:
    data = FILES["JPEG"]()
    with pytest.raises(UndecodableImageError):
        ImageFile(data[: int(share * len(data))])[:2, :]
    with pytest.raises(UndecodableImageError):
        ImageFile(b"").shape  # noqa: B018
