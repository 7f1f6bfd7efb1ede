"""Predicting image files: scikit-learn's photographs, and files that are none."""

import dataclasses
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from resnext_jax.commands import predict
from resnext_jax.commands.predict import find_images, main
from resnext_jax.config import build
from resnext_jax.config.fields import base_config
from resnext_jax.data import deep_images
from resnext_jax.data.transforms import EvalTransform
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.files import write_state_dict
from resnext_jax.models.registry import network_spec
from resnext_jax.models.variables import merge
from resnext_jax.runs.weights import FileWeights, load_network
from tests.data.deep_files import pnm, tiff
from tests.data.images import PHOTOGRAPHS, encoded, noise_file, photograph, photograph_file
from tests.evaluation.workdirs import digits_config, make_workdir
from tests.interop.weights import CIFAR_SPEC, random_state_dict
from tests.programs import run

IMAGENET = network_spec("resnext50_4x1d", stem_width=4, template_width=4, num_classes=6)
SMALL = dataclasses.replace(CIFAR_SPEC, num_classes=6)
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")

# What is said of every file that no run here wrote.
TWINS = "note: names and shapes do not distinguish"
ANTI_ALIASED = (
    "from networks that compute something else: anti-aliased (timm's resnetaa50 and "
    "resnetblur50), dilated, with other pooling, strides or activations"
)

# What the command prints, and what it says on standard error; its exit status.
Output = tuple[str, str, int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both photographs, names of classes, and weights: of ImageNet's kind and of a small one."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        (folder / f"{name}.jpg").write_bytes(photograph_file(name))
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    state_dict = random_state_dict(IMAGENET)
    state_dict["fc.weight"] *= np.float32(1e-3)  # or one class has it all
    write_state_dict(state_dict, folder / "weights.safetensors")
    write_state_dict(random_state_dict(SMALL), folder / "small.safetensors")
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    """Run the command."""

    def tell(*arguments: str | Path) -> Output:
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as left:
            status = int(left.code or 0)
        captured = capsys.readouterr()
        return captured.out, captured.err, status

    return tell


def expected(folder: Path, short_side: int, size: int) -> np.ndarray:
    """Probabilities of both photographs `[2, K]`, prepared by Pillow."""
    single = load_network(file=folder / "weights.safetensors")
    network = single.member.network
    images = []
    for name in PHOTOGRAPHS:
        picture = photograph(name)
        width = 640 * short_side // 427
        resized = np.asarray(picture.resize((width, short_side), Image.Resampling.BICUBIC))
        top, left = (-((size - side) // 2) for side in resized.shape[:2])
        images.append(resized[top : top + size, left : left + size])
    # ImageNet's mean and standard deviation.
    pixels = (np.stack(images) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    model = merge(network.graphdef, network.params, network.batch_stats)
    model.eval()
    logits = jax.jit(lambda x: model(x))(jnp.asarray(pixels, jnp.float32))
    return np.asarray(jax.nn.softmax(logits))


def test_photographs_are_predicted_as_they_are_tested(
    folder: Path, told: Callable[..., Output]
) -> None:
    weights, names = f"--weights={folder}/weights.safetensors", f"--classes={folder}/names.txt"
    out, err, status = told(weights, names, "--json", folder)
    assert status == 0
    ignored, twins = err.splitlines()
    assert ignored.startswith(
        f"ignored: 3 files (.safetensors 2, .txt 1) in {folder}, where images"
    )
    assert twins == f"{TWINS} resnext50_4x1d {ANTI_ALIASED}"
    lines = list(map(json.loads, out.splitlines()))
    assert [line["image"] for line in lines] == [f"{folder}/{name}.jpg" for name in PHOTOGRAPHS]
    wanted = expected(folder, 256, 224)
    assert abs(wanted[0] - wanted[1]).max() > 0.01
    for line, probabilities in zip(lines, wanted, strict=True):
        found = line["predictions"]
        best = np.argsort(-probabilities)[:5]
        assert [guess["label"] for guess in found] == best.tolist()
        assert [guess["name"] for guess in found] == [NAMES[label] for label in best]
        shares = [guess["probability"] for guess in found]
        np.testing.assert_allclose(shares, probabilities[best], rtol=1e-3)


def test_as_a_command(folder: Path, told: Callable[..., Output]) -> None:
    """In text, one photograph after the other, by number of class."""
    arguments = [f"--weights={folder}/small.safetensors", "--image_size=16", f"{folder}/*.jpg"]
    result = run("-m", "resnext_jax.predict", *arguments, "--batch_size=1", "--top=2")
    assert result.returncode == 0, result.stderr
    assert result.stderr == (
        f"{TWINS} resnext11_2x1d {ANTI_ALIASED}\n"
        "note: the weight file has no class names; --classes=FILE sets them\n"
    )
    lines = result.stdout.splitlines()
    predictions = [json.loads(line) for line in told(*arguments, "--json")[0].splitlines()]
    for place, prediction in enumerate(predictions):
        path, *guesses = lines[3 * place : 3 * place + 3]
        assert path == prediction["image"]
        for line, guess in zip(guesses, prediction["predictions"], strict=False):
            assert line == f"{100 * guess['probability']:8.2f} %  class {guess['label']}"
    assert len(predictions) == 2
    assert predictions[0]["predictions"] != predictions[1]["predictions"]


def test_an_image_that_cannot_be_read_does_not_stop_the_others(
    folder: Path, tmp_path: Path, told: Callable[..., Output]
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(noise_file(9, 9)[:60])
    (tmp_path / "thin.png").write_bytes(encoded(Image.new("RGB", (200, 3)), "PNG"))
    (tmp_path / "deep.tif").write_bytes(tiff(np.zeros((8, 8), np.float32)))
    bad = [tmp_path / name for name in ("text.jpg", "cut.png", "thin.png", "none.jpg", "deep.tif")]
    weights = f"--weights={folder}/small.safetensors"
    names = f"--classes={folder}/names.txt"
    size = "--image_size=16"
    good = folder / "china.jpg"
    out, err, status = told(weights, names, size, bad[0], good, *bad[1:])
    assert status == 2
    assert out.splitlines()[0] == str(good)
    assert len(out.splitlines()) == 6
    sentences = err.splitlines()[1:]
    assert len(sentences) == len(bad)
    for path, sentence in zip(bad, sentences, strict=True):
        assert sentence.startswith(f"error: {path} ")
    assert "it is no image of a known kind" in sentences[0]
    assert "200x3 pixels, too long and thin" in sentences[2]
    assert "No such file" in sentences[3]
    assert "its samples are 32-bit floating-point numbers" in sentences[4]
    assert sentences[4].endswith(", as 8-bit PNG).")
    out, _, status = told(weights, names, size, "--json", *bad[:1], good)
    assert status == 2
    first, second = map(json.loads, out.splitlines())
    assert "cannot be decoded" in first["error"]
    assert len(second["predictions"]) == 5


def test_the_first_dim_image_is_noted(
    folder: Path, tmp_path: Path, told: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deep_images, "_unnoted", threading.Lock())
    images = [tmp_path / f"{index}.pgm" for index in range(3)]
    for image in images:
        image.write_bytes(pnm(np.full((16, 16), 4095), 65535))
    weights = f"--weights={folder}/small.safetensors"
    options = (weights, f"--classes={folder}/names.txt", "--image_size=16")
    out, err, status = told(*options, tmp_path)
    assert ([line for line in out.splitlines() if "/" in line], status) == ([*map(str, images)], 0)
    (dim,) = (line for line in err.splitlines() if not line.startswith(TWINS))
    assert dim.startswith(f"note: the 16-bit samples of {tmp_path}/")


def test_names_of_images_may_be_anything(
    folder: Path, tmp_path: Path, told: Callable[..., Output]
) -> None:
    names = ["a\nb.png", os.fsdecode(b"\xff.png"), "\x1b[2Jc.png", "grün 大.png"]
    for name in names:
        (tmp_path / name).write_bytes(noise_file(9, 9) if "c" not in name else b"")
    options = (f"--weights={folder}/small.safetensors", "--image_size=16", "--top=1")
    out, err, status = told(*options, *(tmp_path / name for name in names))
    assert status == 2
    assert out.splitlines()[::2] == [
        rf"'{tmp_path}/a\nb.png'",
        rf"'{tmp_path}/\udcff.png'",
        f"{tmp_path}/grün 大.png",
    ]
    assert rf"error: '{tmp_path}/\x1b[2Jc.png cannot be decoded (the file is empty).'" in err
    out, _, _ = told(*options, "--json", tmp_path)
    images = {json.loads(line)["image"] for line in out.splitlines()}
    assert images == {f"{tmp_path}/{name}" for name in names}


def test_mistakes_are_told_in_a_sentence(
    folder: Path, tmp_path: Path, told: Callable[..., Output]
) -> None:
    weights = f"--weights={folder}/small.safetensors"
    image = folder / "china.jpg"
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    write_state_dict({"conv1.0.weight": np.zeros((2, 3, 3, 3))}, tmp_path / "deep.safetensors")
    broken = random_state_dict(SMALL)
    broken["fc.weight"] = np.full_like(broken["fc.weight"], np.nan)
    write_state_dict(broken, tmp_path / "nan.safetensors")
    cases: list[tuple[list[str | Path], str]] = [
        ([image], "--weights --workdir is required"),
        ([weights], "IMAGE"),
        ([weights, tmp_path], "has no images"),
        ([weights, f"{tmp_path}/*.jpg"], "no file matches the pattern"),
        ([f"--weights={image}", image], "neither .safetensors nor a file of torch.save"),
        ([f"--weights={tmp_path}/deep.safetensors", image], "no model of this package fits"),
        ([f"--weights={tmp_path}/none.pth", image], "No such file"),
        ([f"--workdir={tmp_path}/none", image], "does not exist"),
        ([weights, "--ema", image], "has no averaged weights"),
        (
            [weights, f"--classes={tmp_path}/few.txt", image],
            "has 2 class names, one per line, but",
        ),
        ([weights, f"--classes={tmp_path}/none.txt", image], "No such file"),
        ([weights, f"--classes={tmp_path}/bytes.txt", image], "it is not text"),
        ([weights, "--top=0", image], "not a whole number above 0"),
        ([f"--weights={tmp_path}/nan.safetensors", "--image_size=16", image], "are not finite"),
    ]
    for arguments, part in cases:
        out, err, status = told(*arguments)
        sentence = err.splitlines()[-1]
        assert (out, status) == ("", 2), arguments
        assert sentence.startswith("error: "), sentence
        assert part in sentence, sentence


def test_a_run_knows_its_images_and_classes(
    folder: Path, tmp_path: Path, told: Callable[..., Output]
) -> None:
    """Whole images made square, the run's classes, and its average where that is asked for."""
    config: ConfigDict = digits_config()
    config.data.crop = "whole"
    workdir = make_workdir(tmp_path / "run", config, ema=True, steps=(4,))
    image = folder / "flower.jpg"
    both = []
    for average in ([], ["--ema"]):
        out, err, status = told(f"--workdir={workdir}", "--json", "--top=20", *average, image)
        assert (err, status) == ("", 0)
        both.append({g["name"]: g["probability"] for g in json.loads(out)["predictions"]})
        assert sum(both[-1].values()) == pytest.approx(1, abs=1e-5)
        assert set(both[-1]) == set("0123456789")
    assert both[0] != both[1]
    network = load_network(workdir=workdir).member.network
    pixels = EvalTransform(8, None, antialias=False)({"image": np.asarray(photograph("flower"))})
    model = merge(network.graphdef, network.params, network.batch_stats)
    model.eval()
    normalised = build.device_transform(config).test({"image": jnp.asarray(pixels["image"][None])})
    probabilities = jax.nn.softmax(jax.jit(lambda x: model(x))(normalised))[0]
    for name, share in both[0].items():
        assert share == pytest.approx(float(probabilities[int(name)]), rel=1e-4)
    none = make_workdir(tmp_path / "none", config, steps=(4,))
    _, err, status = told(f"--workdir={none}", "--ema", image)
    assert status == 2
    assert "has no average of the weights" in err


def test_photographs_are_turned_for_weights_from_elsewhere(
    folder: Path, tmp_path: Path, told: Callable[..., Output]
) -> None:
    """A run sees them as its config says, and what was exported from it likewise."""
    picture, exif = photograph("china", 48, 32), Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(turned)
    upright = picture.transpose(Image.Transpose.ROTATE_270)
    (tmp_path / "upright.png").write_bytes(encoded(upright, "PNG"))
    (tmp_path / "stored.png").write_bytes(encoded(picture, "PNG"))
    images = [tmp_path / f"{name}.png" for name in ("turned", "upright", "stored")]

    def predictions(*options: str) -> tuple[list[Any], str]:
        out, err, status = told(*options, "--json", "--image_size=16", *images)
        assert status == 0
        return [json.loads(line)["predictions"] for line in out.splitlines()], err

    weights, named = folder / "small.safetensors", tmp_path / "named.safetensors"
    (first, second, third), err = predictions(f"--weights={weights}")
    assert first == second != third
    assert "turned: 1 of 3 images, as their EXIF orientation says\n" in err
    write_state_dict(random_state_dict(SMALL), named, NAMES)
    (first, second, third), err = predictions(f"--weights={named}")
    assert first == third != second
    assert "turned" not in err
    config = digits_config()
    for kind in ("ignore", "follow"):
        config.data.exif = kind
        workdir = make_workdir(tmp_path / kind, config)
        (first, second, third), err = predictions(f"--workdir={workdir}")
        assert (first == second, first == third) == (kind == "follow", kind == "ignore")
        assert ("turned: 1 of 3" in err) == (kind == "follow")


def test_a_file_may_have_names_of_classes(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    state_dict = random_state_dict(SMALL)
    write_state_dict(state_dict, path, NAMES)
    assert predict.class_names(load_network(file=path), None) == (list(NAMES), "")
    # Whoever changed the classifier left the names.
    write_state_dict(state_dict, path, NAMES[:-1])
    assert predict.class_names(load_network(file=path), None)[0][0] == "class 0"


def test_imagenets_classes_have_names(folder: Path) -> None:
    spec = network_spec("resnext50_4x1d", stem_width=4, template_width=4)
    write_state_dict(random_state_dict(spec), folder / "thousand.safetensors")
    names, remark = predict.class_names(load_network(file=folder / "thousand.safetensors"), None)
    assert (len(names), names[0], names[999]) == (
        1000,
        "n01440764 tench, Tinca tinca",
        "n15075141 toilet tissue, toilet paper, bathroom tissue",
    )
    assert "ImageNet-1K's" in remark


def test_weights_for_grey_images_are_refused(folder: Path) -> None:
    """Images are read in RGB; `export` and `create_model` take such networks."""
    spec = network_spec("cifar_resnet20", in_channels=1, stem_width=4, template_width=4)
    write_state_dict(random_state_dict(spec), folder / "grey.safetensors")
    with pytest.raises(
        WeightsError, match=r"of a network with in_channels=1; images are read in RGB"
    ):
        load_network(file=folder / "grey.safetensors")


def test_weights_of_basic_blocks_have_no_other_form(folder: Path) -> None:
    spec = network_spec("cifar_resnet20", stem_width=4, template_width=4)
    write_state_dict(random_state_dict(spec), folder / "basic.safetensors")
    config = base_config()
    config.model.form = "a"
    with pytest.raises(WeightsError, match=r"of cifar_resnet20: Basic blocks .* use 'c'\.$"):
        FileWeights(config, folder / "basic.safetensors")


def test_arguments_stand_for_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        "d.avif",
        "._b.png",
        "more/c.webp",
        "more/@eaDir/c.webp",
        "[x].png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([str(tmp_path)]) == [
        f"{tmp_path}/{name}" for name in ("[x].png", "a.JPG", "b.png")
    ]
    assert capsys.readouterr().err.startswith(
        f"ignored: 2 files (.avif 1, .txt 1) in {tmp_path}, where images end in .jpg, "
    )
    assert find_images([f"{tmp_path}/more/@eaDir/*"]) == [f"{tmp_path}/more/@eaDir/c.webp"]
    assert find_images([f"{tmp_path}/**/*.webp"]) == [f"{tmp_path}/more/c.webp"]
    assert find_images([f"{tmp_path}/[x].png"]) == [f"{tmp_path}/[x].png"]
    assert find_images(["nowhere.jpg", f"{tmp_path}/notes.txt"]) == [
        "nowhere.jpg",
        f"{tmp_path}/notes.txt",
    ]
