"""Samples of more than 8 bits: which become pixels by a rule, and which are refused.

What is expected is computed from the samples that the files were written from, by whole numbers,
not by an image library.
"""

import io
import struct
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext_jax.data import deep_images
from resnext_jax.data.decode import ImageFile, UndecodableImageError, decode_rgb
from resnext_jax.data.pipeline import eval_batches, train_batches
from resnext_jax.data.reading import DecodedExamples
from resnext_jax.data.shapes import image_sizes
from resnext_jax.data.sources import Source
from tests.data.deep_files import png, pnm, tiff
from tests.data.images import encoded, noise, noise_source, photograph

HEIGHT, WIDTH = 21, 33
ORDERS = pytest.mark.parametrize("order", "<>")
COMPRESSED = pytest.mark.parametrize("compressed", [False, True])


def deep(*colours: int, below: int = 65536, dtype: Any = np.uint16) -> np.ndarray:
    """Return noise whose first row holds the values around which rounding matters."""
    rng = np.random.default_rng(below)
    samples = rng.integers(0, below, (HEIGHT, WIDTH, *colours))
    edges = (np.arange(WIDTH) * 256 - WIDTH % 3) % below
    samples[0] = edges.reshape(WIDTH, *(1 for _ in colours))
    samples[1, 0], samples[1, 1] = 0, below - 1
    return samples.astype(dtype)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return pixels `[H, W]`, or `[H, W, 3]` and more, as decoding has to give them."""
    return np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]


def check(data: bytes, expected: np.ndarray) -> None:
    actual = decode_rgb(data)
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, as_rgb(expected))
    np.testing.assert_array_equal(np.asarray(ImageFile(data)), actual)


@pytest.mark.parametrize("colours", [(), (3,), (4,)])
def test_the_high_bytes_of_a_png_are_used(colours: tuple[int, ...]) -> None:
    samples = deep(*colours)
    check(png(samples), samples >> 8)


def test_the_high_bytes_of_a_grey_png_with_alpha_are_used() -> None:
    samples = deep(2)
    check(png(samples), samples[..., 0] >> 8)


@ORDERS
@COMPRESSED
@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize(("colours", "photometric"), [((), 1), ((3,), 2)])
def test_the_high_bytes_of_a_tiff_are_used(
    colours: tuple[int, ...], photometric: int, tile: int, compressed: bool, order: str
) -> None:
    samples = deep(*colours)
    options: dict[str, Any] = {"order": order, "compressed": compressed, "tile": tile}
    check(tiff(samples, photometric=photometric, **options), samples >> 8)


@COMPRESSED
@pytest.mark.parametrize(("colours", "photometric"), [((), 1), ((), 0), ((3,), 2)])
def test_the_high_bytes_of_a_bigtiff_are_used(
    colours: tuple[int, ...], photometric: int, compressed: bool
) -> None:
    samples = deep(*colours)
    data = tiff(samples, photometric=photometric, compressed=compressed, big=True)
    check(data, samples >> 8 if photometric else 255 - (samples >> 8))


@ORDERS
@pytest.mark.parametrize("tile", [0, 16])
def test_colours_in_planes_of_their_own_are_read_where_compressed(tile: int, order: str) -> None:
    samples = deep(3)
    options: dict[str, Any] = {"photometric": 2, "apart": True, "order": order, "tile": tile}
    check(tiff(samples, compressed=True, **options), samples >> 8)
    with pytest.raises(UndecodableImageError, match=r"PlanarConfiguration 2\); save it compressed"):
        decode_rgb(tiff(samples, **options))


@ORDERS
@COMPRESSED
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("apart", [False, True])
def test_white_may_be_zero(dtype: Any, apart: bool, compressed: bool, order: str) -> None:
    """Also where the only plane is one of its own, as some programs write it."""
    samples = deep(below=np.iinfo(dtype).max + 1, dtype=dtype)
    options: dict[str, Any] = {"order": order, "compressed": compressed, "apart": apart}
    high = samples if dtype == np.uint8 else samples >> 8
    check(tiff(samples, photometric=0, **options), 255 - high)
    check(tiff(samples, photometric=1, **options), high)


@ORDERS
@pytest.mark.parametrize("apart", [False, True])
def test_white_may_be_zero_in_two_colours(apart: bool, order: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), np.uint8)
    rows = np.packbits(bits, axis=1)
    options: dict[str, Any] = {"order": order, "apart": apart, "tags": {256: WIDTH, 258: 1}}
    check(tiff(rows, photometric=0, **options), np.uint8(255) * (1 - bits))
    check(tiff(rows, photometric=1, **options), np.uint8(255) * bits)


def scaled(samples: np.ndarray, maxval: int) -> np.ndarray:
    """Return the high bytes of `sample * 65535 / maxval`, rounded, a half upwards."""
    rounded = [(2 * int(sample) * 65535 + maxval) // (2 * maxval) for sample in samples.flat]
    return (np.array(rounded) >> 8).reshape(samples.shape).astype(np.uint8)


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_twelve_bits_are_scaled(white_is_zero: bool) -> None:
    samples = deep(below=4096)
    bits = (samples[..., None] >> np.arange(11, -1, -1)) & 1
    rows = np.packbits(bits.reshape(HEIGHT, -1), axis=1)
    data = tiff(rows, photometric=0 if white_is_zero else 1, tags={256: WIDTH, 258: 12})
    high = scaled(samples, 4095)
    check(data, 255 - high if white_is_zero else high)
    assert not is_dim(data)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("maxval", [256, 510, 1023, 4095, 16383, 65534, 65535])
def test_a_maxval_above_255_is_scaled_to_16_bits(maxval: int, plain: bool) -> None:
    for colours in ((), (3,)):
        samples = deep(*colours, below=maxval + 1)
        check(pnm(samples, maxval, plain=plain), scaled(samples, maxval))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("maxval", [1, 15, 100, 255])
def test_a_maxval_up_to_255_is_scaled_to_8_bits(maxval: int, plain: bool) -> None:
    for colours in ((), (3,)):
        samples = deep(*colours, below=maxval + 1)
        expected = np.rint(samples * 255 / maxval)  # a half to the even number
        check(pnm(samples, maxval, plain=plain), expected.astype(np.uint8))


@pytest.mark.parametrize("plain", [False, True])
def test_samples_above_maxval_are_refused(plain: bool) -> None:
    samples = deep(below=1024)
    samples[3, 4] = 1024
    with pytest.raises(UndecodableImageError, match=r"outside 0\.\.1023, its maxval"):
        decode_rgb(pnm(samples, 1023, plain=plain))


@ORDERS
@pytest.mark.parametrize(
    ("dtype", "what"),
    [
        (np.int8, "8-bit signed integers"),
        (np.int16, "16-bit signed integers"),
        (np.int32, "32-bit signed integers"),
        (np.uint32, "32-bit integers"),
        (np.uint64, "64-bit integers"),
        (np.float16, "16-bit floating-point numbers"),
        (np.float32, "32-bit floating-point numbers"),
        (np.float64, "64-bit floating-point numbers"),
        (np.complex64, "64-bit complex numbers"),
    ],
)
@pytest.mark.parametrize("colours", [(), (3,)])
def test_samples_of_unknown_range_are_refused(
    colours: tuple[int, ...], dtype: Any, what: str, order: str
) -> None:
    data = tiff(
        deep(*colours, below=100, dtype=dtype), photometric=2 if colours else 1, order=order
    )
    with pytest.raises(UndecodableImageError, match=rf"{what}, .* choose both, .* 8-bit PNG$"):
        decode_rgb(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tiff(deep(2), tags={338: 2}), "BitsPerSample 16/16, PhotometricInterpretation 1"),
        (tiff(deep(), photometric=3), "BitsPerSample 16, PhotometricInterpretation 3"),
        (tiff(deep(), tags={258: 10}), "BitsPerSample 10, PhotometricInterpretation 1"),
        (tiff(deep(5), photometric=1), "BitsPerSample 16/16/16/16/16, Photometric"),
    ],
)
def test_a_tiff_of_another_kind_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(UndecodableImageError, match=f"{what}.*; save it as 8-bit or 16-bit PNG"):
        decode_rgb(data)


def test_a_big_endian_bigtiff_is_refused() -> None:
    with pytest.raises(UndecodableImageError, match="a big-endian BigTIFF, which is not read"):
        decode_rgb(tiff(deep(), order=">", big=True))


def fits() -> bytes:
    cards = ("SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 4", "NAXIS2  = 2", "END")
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"Pf\n4 2\n-1.0\n" + bytes(32), "floating-point numbers, .* choose both"),
        (fits(), "of FITS files only those with unsigned 8-bit samples are read"),
    ],
)
def test_deep_samples_of_other_files_are_refused(data: bytes, what: str) -> None:
    with pytest.raises(UndecodableImageError, match=what):
        decode_rgb(data)


@pytest.mark.parametrize("colours", [(), (3,)])
@pytest.mark.parametrize("depth", [9, 11, 15, 0x87])
def test_jpeg_2000_is_read_of_8_bits_only(depth: int, colours: tuple[int, ...]) -> None:
    """Pillow lets the brightest 16-bit colours turn black."""
    picture = Image.fromarray(noise(16, 16) if colours else noise(16, 16)[..., 0])
    data = bytearray(encoded(picture, "JPEG2000"))
    np.testing.assert_array_equal(decode_rgb(bytes(data)), np.asarray(picture.convert("RGB")))
    components = data.index(b"\xff\x4f\xff\x51") + 40
    assert struct.unpack_from(">H", data, components) == (3 if colours else 1,)
    data[components + 2] = depth  # bits less one, and whether they are signed
    with pytest.raises(UndecodableImageError, match="of JPEG2000 files only those with unsigned"):
        decode_rgb(bytes(data))


def test_associated_alpha_is_divided_out_as_in_8_bits() -> None:
    samples = np.array([[[0x2000, 0x4000, 0x8000, 0x8000]]], np.uint16)
    data = tiff(samples, photometric=2, tags={338: 1})
    assert decode_rgb(data).tolist() == [[[0x20 * 255 // 0x80, 0x40 * 255 // 0x80, 255]]]
    eight = tiff((samples >> 8).astype(np.uint8), photometric=2, tags={338: 1})
    np.testing.assert_array_equal(decode_rgb(data), decode_rgb(eight))


def test_cmyk_of_16_bits_is_as_of_8() -> None:
    samples = deep(4)
    shallow = (samples >> 8).astype(np.uint8)
    expected = np.asarray(
        Image.frombytes("CMYK", (WIDTH, HEIGHT), shallow.tobytes()).convert("RGB")
    )
    np.testing.assert_array_equal(decode_rgb(tiff(shallow, photometric=5)), expected)
    check(tiff(samples, photometric=5), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_is_turned_as_its_tag_says(dtype: Any) -> None:
    """And its size, which evaluation reads from the head, is that of the turned image."""
    samples = deep(below=np.iinfo(dtype).max + 1, dtype=dtype)
    data = tiff(samples, tags={274: 6})
    check(data, np.rot90(samples >> (8 if dtype == np.uint16 else 0), -1))
    examples = DecodedExamples(noise_source(1, bad={0: data}))
    assert image_sizes(examples).tolist() == [[WIDTH, HEIGHT]]


def test_the_first_page_is_taken() -> None:
    pages = [Image.fromarray(deep(below=below)) for below in (65536, 30000)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.n_frames == 2  # type: ignore[attr-defined]
    check(data, deep() >> 8)


DEEP_FILES = {
    "grey PNG": png(deep()),
    "PNG": png(deep(3)),
    "grey TIFF": tiff(deep()),
    "big-endian white-is-zero TIFF": tiff(deep(), photometric=0, order=">"),
    "TIFF": tiff(deep(3), photometric=2),
    "compressed TIFF": tiff(deep(3), photometric=2, compressed=True),
    "BigTIFF": tiff(deep(), big=True),
    "PGM": pnm(deep(), 65535),
    "plain PGM": pnm(deep(), 65535, plain=True),
    "PPM": pnm(deep(3), 65535),
    "plain PPM": pnm(deep(3), 65535, plain=True),
}


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", DEEP_FILES)
def test_a_file_cut_short_is_refused(kind: str, share: float) -> None:
    data = DEEP_FILES[kind]
    with pytest.raises(UndecodableImageError) as error:
        decode_rgb(data[: int(share * len(data))])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", DEEP_FILES)
def test_a_picture_of_absurd_size_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(UndecodableImageError, match="decompression bomb"):
        decode_rgb(DEEP_FILES[kind])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["BigTIFF", "grey TIFF", "big-endian white-is-zero TIFF"])
def test_a_damaged_head_is_an_image_or_is_refused(kind: str) -> None:
    """Whatever its tags say: numbers of values, types and places are all tried."""
    whole = DEEP_FILES[kind]
    directory = HEIGHT * WIDTH * 2 + 8
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        place = int(rng.choice([*range(2, 16), *range(directory, len(data))]))
        data[place] = int(rng.integers(256))
        try:
            assert decode_rgb(bytes(data)).ndim == 3
        except UndecodableImageError as error:
            assert str(error)  # noqa: PT017


def is_dim(data: bytes) -> bool:
    file = ImageFile(data)
    assert not file.is_dim  # not yet decoded
    np.asarray(file)
    return file.is_dim


@pytest.mark.parametrize("colours", [(), (3,), (4,)])
def test_an_image_of_12_of_16_bits_is_dim(colours: tuple[int, ...]) -> None:
    samples = deep(*colours, below=4096)
    if colours == (4,):
        samples[..., 3] = 65535  # opaque
    brighter = samples.copy()
    brighter.reshape(HEIGHT, WIDTH, -1)[5, 6, 0] = 4096
    photometric = 2 if colours else 1
    for write in (png, lambda each: tiff(each, photometric=photometric)):
        assert is_dim(write(samples))
        assert not is_dim(write(brighter))
        assert not is_dim(write((samples >> 8).astype(np.uint8)))
    if colours == (4,):
        return
    assert is_dim(pnm(samples, 65535))
    assert not is_dim(pnm(samples, 4095))  # which says what is white


def test_an_image_of_8_bits_is_not_dim() -> None:
    for kind in ("JPEG", "PNG", "TIFF", "GIF"):
        assert not is_dim(encoded(Image.new("RGB", (8, 8)), kind))


@pytest.fixture
def unnoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was noted in this process."""
    monkeypatch.setattr(deep_images, "_unnoted", threading.Lock())


def test_the_first_dim_image_is_noted(unnoted: None, capsys: pytest.CaptureFixture[str]) -> None:
    deep_images.note_dim(lambda: "one.png")
    deep_images.note_dim(lambda: pytest.fail("the second one's name was looked up"))
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert "16-bit samples of one.png are all below 4096" in note
    assert "by 16" in note


def dim_source(dim: tuple[int, ...]) -> Source:
    return noise_source(8, bad={index: png(deep(3, below=4096)) for index in dim})


def whole(example: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
    return example | {"image": np.asarray(example["image"])[:4, :4]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_training_process_notes_what_its_workers_see(
    num_workers: int, unnoted: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once, though each worker and each pass over the images meets dim ones."""
    source, positions = dim_source((1, 2, 5, 6)), np.arange(2)
    options: dict[str, Any] = {"batch_size": 2, "positions": positions}
    steps: dict[str, Any] = {"start_step": 0, "num_steps": 4, "num_workers": num_workers}
    batches = train_batches(source, whole, seed=0, **steps, **options)
    assert all(batch.keys() == {"image", "label"} for batch in batches)
    for batch in eval_batches(source, whole, **options):
        assert batch.keys() == {"image", "label", "mask"}
        assert batch["mask"].all()
    notes = capfd.readouterr().err
    assert notes.count("16-bit samples") == 1
    assert "of 'noise', split 'train', file '" in notes


def test_images_that_are_not_dim_are_not_noted(
    unnoted: None, capfd: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "positions": np.arange(2)}
    assert len(list(eval_batches(dim_source(()), whole, **options))) == 4
    assert "16-bit" not in capfd.readouterr().err


def test_a_data_set_with_samples_of_unknown_range_is_explained() -> None:
    examples = DecodedExamples(noise_source(2, bad={1: tiff(deep(dtype=np.float32))}))
    assert examples[1]["bad_index"] == 1
    explanation = examples.explain(1)
    assert "file '1.png', cannot be decoded (its samples are 32-bit floating-point" in explanation
    assert "as 8-bit PNG); repair the data set" in explanation


def test_what_is_not_deep_is_left_to_pillow() -> None:
    picture = photograph("china", 31, 20)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        for options in ({}, {"compression": "tiff_lzw"}):
            data = encoded(picture.convert(mode), "TIFF", **options)
            with Image.open(io.BytesIO(data)) as stored:
                expected = np.asarray(stored.convert("RGB"))
            np.testing.assert_array_equal(decode_rgb(data), expected, err_msg=mode)
