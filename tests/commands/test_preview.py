"""The picture shows what training and evaluation get, under the right names."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from resnext_jax.commands.preview import draw, lay_out, training_images
from resnext_jax.commands.preview import test_images as images_of_test
from resnext_jax.config import build
from resnext_jax.configs import digits_resnext29, folder
from resnext_jax.data.decode import decode_rgb
from resnext_jax.data.mixing import mix
from resnext_jax.data.pipeline import HostBatch, train_batches
from resnext_jax.data.sources import open_split
from resnext_jax.errors import ConfigError, DataError, UserError
from tests.data.images import PHOTOGRAPHS, write_photographs
from tests.programs import ROOT, xla_flags

# Layout of the picture in pixels: side of an image, from one to the next, and what is above.
SIDE, ACROSS, DOWN, ABOVE_FIRST, HEADING, LEFT = 144, 152, 170, 48, 30, 8

LONG = "a name of a class that is much too long"
FORMULA = "5 $ and 大 $_{$"


@pytest.fixture
def digits(data_dir: Path) -> ConfigDict:
    config = digits_resnext29.get_config()
    config.data.data_dir = str(data_dir)
    return config


@pytest.fixture
def photographs(tmp_path: Path) -> ConfigDict:
    """The ImageNet recipe at 32x32 on two photographs."""
    write_photographs(tmp_path / "images")
    return folder_config(tmp_path)


def folder_config(tmp_path: Path) -> ConfigDict:
    config = folder.get_config()
    config.data.manual_dir = str(tmp_path / "images")
    config.data.data_dir = str(tmp_path / "data")
    config.data.image_size = 32
    config.batch_size = 8
    config.bn_group_size = 8
    return config


def training_batch(config: ConfigDict, step: int) -> HostBatch:
    """Batch `step` of a whole run from the start."""
    batches = train_batches(
        open_split(config, "train"),
        build.train_transform(config),
        seed=config.seed,
        batch_size=config.batch_size,
        positions=np.arange(config.batch_size),
        start_step=0,
        num_steps=100,
    )
    with contextlib.closing(batches):
        return next(batch for number, batch in enumerate(batches) if number == step)


def undone(config: ConfigDict, normalised: np.ndarray) -> np.ndarray:
    return normalised * np.asarray(config.data.std) + np.asarray(config.data.mean)


@pytest.mark.parametrize("step", [0, 3])
def test_training_images_are_the_first_of_the_batch(digits: ConfigDict, step: int) -> None:
    batch = training_batch(digits, step)
    shown = training_images(digits, 5, step)
    assert shown.heading == f"training, batch {step}: 5 of 32 images"
    assert shown.titles == tuple(str(label) for label in batch["label"][:5])
    device = {name: jnp.asarray(array) for name, array in batch.items()}
    normalised = np.asarray(build.device_transform(digits).train(device))[:5]
    assert shown.pixels.dtype == np.uint8
    np.testing.assert_allclose(shown.pixels, undone(digits, normalised), atol=0.5001)
    # They are shifted, and what comes in at the border is the mean.
    assert (shown.pixels != batch["image"][:5]).any()
    assert (shown.pixels == round(digits.data.mean[0])).any()


def test_without_the_devices_half_the_shipped_images_are_shown(digits: ConfigDict) -> None:
    digits.data.max_shift = 0
    shown = training_images(digits, 32, 1)
    np.testing.assert_array_equal(shown.pixels, training_batch(digits, 1)["image"])


def test_photographs_are_cropped_and_coloured_as_in_training(photographs: ConfigDict) -> None:
    photographs.data.brightness = 1.0
    batch = training_batch(photographs, 2)
    shown = training_images(photographs, 8, 2)
    assert shown.titles == tuple(PHOTOGRAPHS[label] for label in batch["label"])
    device = {name: jnp.asarray(array) for name, array in batch.items()}
    expected = undone(photographs, np.asarray(build.device_transform(photographs).train(device)))
    assert expected.max() > 256  # so that there is something to clip
    np.testing.assert_allclose(shown.pixels, np.clip(expected, 0, 255), atol=0.501)


@pytest.mark.parametrize("images", [8, 5])
def test_erased_and_mixed_images_are_shown_as_the_step_gets_them(
    photographs: ConfigDict, images: int
) -> None:
    """Also the last of an odd number, whose partner is not in the picture."""
    photographs.data.trivial_augment = True
    photographs.data.random_erase = 1.0
    photographs.data.mixup = photographs.data.cutmix = 1.0
    batch = training_batch(photographs, 1)
    device = {name: jnp.asarray(array) for name, array in batch.items()}
    mixed, shares = mix(build.device_transform(photographs).train(device), device["mix"])
    shown = training_images(photographs, images, 1)
    assert shown.heading == f"training, batch 1: {images} of 8 images, mixed in pairs"
    expected = np.clip(undone(photographs, np.asarray(mixed)), 0, 255)[:images]
    np.testing.assert_allclose(shown.pixels, expected, atol=0.501)
    assert shown.titles == tuple(
        f"{round(100 * float(share))}% {PHOTOGRAPHS[label]}"
        for share, label in zip(shares[:images], batch["label"], strict=False)
    )


def test_test_images_are_those_of_evaluation(digits: ConfigDict) -> None:
    source = open_split(digits, "test")
    shown = images_of_test(digits, 6)
    assert shown.heading == "test: 6 of 359 images"
    transform = build.eval_transform(digits)
    for index in range(6):
        example = source.examples[index]
        assert shown.titles[index] == str(example["label"])
        expected = transform({"image": decode_rgb(example["image"])})["image"]
        np.testing.assert_array_equal(shown.pixels[index], expected)


def test_shows_what_there_is_where_more_is_asked_for(photographs: ConfigDict) -> None:
    assert training_images(photographs, 20, 0).pixels.shape == (8, 32, 32, 3)
    shown = images_of_test(photographs, 20)
    assert shown.pixels.shape == (2, 32, 32, 3)
    assert shown.heading == "test: 2 of 2 images"
    assert set(shown.titles) == set(PHOTOGRAPHS)


def test_the_picture_holds_the_pixels(digits: ConfigDict, tmp_path: Path) -> None:
    """Two rows of eight for training and two for testing; the last is not full."""
    out = draw(digits, tmp_path / "batch.png", images=11, step=2)
    picture = Image.open(out)
    assert picture.format == "PNG"
    assert picture.size == (LEFT + 8 * ACROSS, 2 * HEADING + 4 * DOWN)
    pixels = np.asarray(picture.convert("RGB"))
    parts = [training_images(digits, 11, 2), images_of_test(digits, 11)]
    for part, above in zip(parts, (0, HEADING + 2 * DOWN), strict=True):
        for place, image in enumerate(part.pixels):
            row, column = divmod(place, 8)
            top, left = above + ABOVE_FIRST + row * DOWN, LEFT + column * ACROSS
            cell = pixels[top : top + SIDE, left : left + SIDE]
            # The middle of each of the 16x16 squares of 9x9.
            np.testing.assert_array_equal(cell[4::9, 4::9], image)
    # After the last test image there is paper.
    assert (pixels[-DOWN:, LEFT + 3 * ACROSS :] == 255).all()


def test_draws_photographs_as_they_are_stored(photographs: ConfigDict, tmp_path: Path) -> None:
    out = draw(photographs, str(tmp_path / "batch.PNG"), images=3)
    assert out == tmp_path / "batch.PNG"
    picture = Image.open(out)
    assert picture.size == (LEFT + 4 * ACROSS, 2 * HEADING + 2 * DOWN)
    # The first test image, each pixel 4.5 wide: the middle ones of all but the borders.
    top = HEADING + DOWN + ABOVE_FIRST
    cell = np.asarray(picture.convert("RGB"))[top : top + SIDE, LEFT : LEFT + SIDE]
    places = np.floor(4.5 * (np.arange(32) + 0.5)).astype(int)
    np.testing.assert_array_equal(
        cell[np.ix_(places, places)], images_of_test(photographs, 1).pixels[0]
    )


def test_titles_are_names_shortened_where_they_are_long(tmp_path: Path) -> None:
    names = ("n01440764", LONG, FORMULA)
    write_photographs(tmp_path / "images", names)
    config = folder_config(tmp_path)
    shown = images_of_test(config, 8)
    assert sorted(shown.titles) == sorted(names)
    axes = lay_out([shown]).axes
    drawn = [part.get_title() for part in axes]
    short = {LONG: "a name of a class t…"}
    assert drawn == [short.get(name, name) for name in shown.titles]
    draw(config, tmp_path / "batch.png")  # which fails on a warning, or on a bad formula


def test_says_which_images_are_bad(photographs: ConfigDict, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images" / split / "china" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"file 'china/0.jpg', cannot be decoded"):
        draw(photographs, tmp_path / "batch.png", images=2)
    photographs.data.on_error = "skip"
    shown = training_images(photographs, 2, 0)
    assert sorted(shown.titles) == ["flower", "flower (replacement)"]
    shown = images_of_test(photographs, 2)
    assert sorted(shown.titles) == ["cannot be decoded", "flower"]


def sentence(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("none/batch.png", "--out={tmp}/none/batch.png is in a folder that does not exist"),
        ("batch.jpg", "--out={tmp}/batch.jpg must end in .png"),
        ("batch", "--out={tmp}/batch must end in .png"),
    ],
)
def test_names_that_cannot_be_drawn_to(
    photographs: ConfigDict, tmp_path: Path, out: str, part: str
) -> None:
    with pytest.raises(UserError) as error:
        draw(photographs, tmp_path / out)
    assert part.format(tmp=tmp_path) in sentence(error)
    assert not (tmp_path / "data").exists()  # told before anything is prepared


def test_a_picture_that_cannot_be_written(digits: ConfigDict, tmp_path: Path) -> None:
    (tmp_path / "batch.png").mkdir()
    with pytest.raises(UserError) as error:
        draw(digits, tmp_path / "batch.png")
    message = sentence(error)
    assert f"the picture {tmp_path}/batch.png cannot be written (Is a directory)" in message


@pytest.mark.parametrize("images", [-1, 0, 257])
def test_numbers_of_images_that_are_none(
    photographs: ConfigDict, tmp_path: Path, images: int
) -> None:
    with pytest.raises(UserError) as error:
        draw(photographs, tmp_path / "batch.png", images=images)
    assert f"--images={images} must be from 1 to 256" in sentence(error)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("step", [-1, 539])
def test_steps_that_training_has_not(digits: ConfigDict, tmp_path: Path, step: int) -> None:
    assert len(training_images(digits, 1, 538).titles) == 1
    with pytest.raises(UserError) as error:
        draw(digits, tmp_path / "batch.png", step=step)
    assert f"--step={step} is not one of the 539 steps" in sentence(error)


def test_the_config_is_checked_first(digits: ConfigDict, tmp_path: Path) -> None:
    digits.data.crop = "none"
    with pytest.raises(ConfigError, match=r"config\.data\.crop='none'"):
        draw(digits, tmp_path / "none" / "batch.png")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla_flags()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_takes_the_flags_of_training(digits: ConfigDict, tmp_path: Path) -> None:
    open_split(digits, "test")  # preparing would print its progress
    command = ["-m", "resnext_jax.data.preview", "--config=configs/digits_resnext29.py"]
    command += [f"--config.data.data_dir={digits.data.data_dir}", "--images=2", "--step=7"]
    out = tmp_path / "batch.png"
    result = run(*command, "--config.seed=5", "--config.data.max_shift=0", f"--out={out}")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{out}\n", "")
    digits.seed, digits.data.max_shift = 5, 0
    expected = draw(digits, tmp_path / "expected.png", images=2, step=7)
    assert out.read_bytes() == expected.read_bytes()

    without = run(*command)
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr == (
        "error: --out is missing; give the picture to write, as in --out=batch.png.\n"
    )


def test_flags_are_defined_by_the_command_only() -> None:
    """Beside train.py, which has a --config too."""
    result = run("-c", "import train, resnext_jax.commands.preview; print('done')")
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
