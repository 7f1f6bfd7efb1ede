"""Objects in image files: found as in testing, drawn and written down, whatever the files are."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_jax.commands import export, predict, preview, weights
from resnext_jax.commands.infer import infer, main
from resnext_jax.config.fields import base_config
from resnext_jax.detection import finder
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.detector import Detector
from resnext_jax.detection.finder import Detection, Finder, ImageDetections, draw_detections
from resnext_jax.detection.proposals import Proposer
from resnext_jax.detection.setup import stored_weights
from resnext_jax.errors import ConfigError, DataError
from resnext_jax.runs.workdir import stored_config, write_config
from tests.data.deep_files import tiff
from tests.detection.coco_files import random_split
from tests.detection.plain import read_image
from tests.detection.workdirs import NAMES, drawn_config, make_workdir
from tests.programs import run

# Of three classes some are found above it.
SCORE = 0.2

# What the command prints, and what it says on standard error; its exit status.
Output = tuple[str, str, int]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    """Images of three shapes."""
    return random_split(tmp_path_factory.mktemp("data"), landscape=3, portrait=2, odd=2)


@pytest.fixture(scope="module")
def runs(split: CocoSplit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Workdirs of an RPN and of Fast R-CNN."""
    folder, data = tmp_path_factory.mktemp("runs"), split.folder.parent
    return (
        make_workdir(folder / "rpn", drawn_config("rpn", data)),
        make_workdir(folder / "fast_rcnn", drawn_config("fast_rcnn", data)),
    )


@pytest.fixture(scope="module")
def paths(split: CocoSplit) -> list[str]:
    return [str(split.path(index)) for index in range(len(split))]


@pytest.fixture(scope="module")
def found(runs: tuple[Path, Path], split: CocoSplit) -> list[ImageDetections]:
    """What is found in the folder of images."""
    return infer(*runs, [split.folder], score=SCORE)


@pytest.fixture
def told(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Output]:
    """Run the command; its output goes to `out`."""

    def tell(*arguments: str | Path, both: tuple[Path | None, Path] = runs) -> Output:
        status = 0
        start = [f"--workdir={both[1]}", f"--out={tmp_path}/out"]
        if both[0] is not None:
            start.append(f"--rpn={both[0]}")
        try:
            main([*start, *map(str, arguments)])
        except SystemExit as left:
            status = int(left.code or 0)
        captured = capsys.readouterr()
        return captured.out, captured.err, status

    return tell


def assert_same(actual: ImageDetections, expected: ImageDetections) -> None:
    assert (actual.height, actual.width) == (expected.height, expected.width)
    assert [each.name for each in actual.detections] == [each.name for each in expected.detections]
    for one, other in zip(actual.detections, expected.detections, strict=True):
        assert one.box == pytest.approx(other.box, abs=0.01)
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_objects_are_those_of_the_two_stages(
    runs: tuple[Path, Path], split: CocoSplit, paths: list[str], found: list[ImageDetections]
) -> None:
    """As in testing, on a split with annotations; higher scores alone."""
    config, weights = stored_weights(runs[0], "rpn")
    proposer = Proposer(config, weights.graphdef, weights.mesh, training=False)
    proposals = {
        index: boxes for index, boxes, _ in proposer.run(split, weights.params, weights.batch_stats)
    }
    config, weights = stored_weights(runs[1], "fast_rcnn")
    assert config.detections.score < SCORE
    detector = Detector(config, weights.graphdef, weights.mesh)
    assert [each.file for each in found] == paths
    names: set[str] = set()
    for index, detections in detector.run(
        split, weights.params, weights.batch_stats, proposals=proposals.__getitem__
    ):
        high = detections.scores > SCORE
        assert 0 < high.sum() < len(high)
        expected = tuple(
            Detection((x1, y1, x2, y2), NAMES[label - 1], score)
            for (x1, y1, x2, y2), label, score in zip(
                detections.boxes[high].tolist(),
                detections.classes[high].tolist(),
                detections.scores[high].tolist(),
                strict=True,
            )
        )
        size = int(split.heights[index]), int(split.widths[index])
        assert_same(found[index], ImageDetections("", *size, expected))
        names.update(each.name for each in found[index].detections)
        assert not found[index].error
    assert len(names) > 1


def test_one_network_makes_its_own_proposals(
    told: Callable[..., Output], split: CocoSplit, paths: list[str], tmp_path: Path
) -> None:
    workdir = make_workdir(tmp_path / "joint", drawn_config("faster_rcnn", split.folder.parent))
    config, weights = stored_weights(workdir, "faster_rcnn")
    config.detections.score = SCORE
    detector = Detector(config, weights.graphdef, weights.mesh)
    found = infer(None, workdir, paths, score=SCORE)
    for index, detections in detector.run(split, weights.params, weights.batch_stats):
        scores = [each.score for each in found[index].detections]
        assert scores == pytest.approx(detections.scores.tolist(), abs=1e-4)
        assert len(scores) > 0
    out, err, status = told(f"--score={SCORE}", paths[0], both=(None, workdir))
    assert (err, status) == ("", 0)
    assert out.startswith(f"{paths[0]}: {len(found[0].detections)} found")
    out, err, status = told(paths[0], both=(workdir, workdir))
    assert (out, status) == ("", 2)
    assert err.endswith(
        "holds a run of one network, which makes its own proposals; leave --rpn out.\n"
    )


def test_pictures_and_a_json_file_are_written(
    told: Callable[..., Output], split: CocoSplit, found: list[ImageDetections], tmp_path: Path
) -> None:
    out, err, status = told(split.folder, f"--score={SCORE}", "--enlarge=3")
    assert (err, status) == ("", 0)
    *lines, last = out.splitlines()
    assert last == f"{tmp_path}/out/detections.json"
    rows = json.loads(Path(last).read_text())
    assert len(rows) == len(lines) == len(found)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(Path(each.file).name for each in found),
        "detections.json",
    ]
    for row, line, expected in zip(rows, lines, found, strict=True):
        picture = tmp_path / "out" / Path(expected.file).name
        best = expected.detections[0]
        assert line.startswith(
            f"{expected.file}: {len(expected.detections)} found ({best.name}: {best.score:.2f}"
        )
        assert line.endswith(f" -> {picture}")
        assert row.keys() == {"file", "height", "width", "picture", "detections"}
        assert (row["file"], row["picture"]) == (expected.file, picture.name)
        detections = tuple(
            Detection(tuple(each["box"]), each["name"], each["score"]) for each in row["detections"]
        )
        assert_same(ImageDetections(row["file"], row["height"], row["width"], detections), expected)
        assert all(score > SCORE for score in (each.score for each in detections))
        drawn = draw_detections(
            read_image(Path(expected.file)),
            np.array([each.box for each in detections]),
            [each.name for each in detections],
            np.array([each.score for each in detections]),
            enlarge=3,
        )
        np.testing.assert_array_equal(read_image(picture), drawn)


def test_images_of_any_kind_and_number(
    runs: tuple[Path, Path],
    paths: list[str],
    found: list[ImageDetections],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same again and again, in another order, and as other kinds of files; few at a time."""
    image = Image.open(paths[4])
    image.save(tmp_path / "same.bmp")
    image.convert("RGBA").save(tmp_path / "transparent.png")
    monkeypatch.setattr(finder, "_BATCHES", 1)
    network = Finder(*runs, score=SCORE, most_images=3)
    order = [6, 4, 4, 0, 5, 6, 1]
    files = [*(paths[index] for index in order), f"{tmp_path}/same.bmp"]
    files.append(f"{tmp_path}/transparent.png")
    again = list(network.find(iter(files)))
    assert [each.file for each in again] == files
    for index, each in zip([*order, 4, 4], again, strict=True):
        assert_same(each, found[index])
    assert list(network.find([])) == []


def test_what_cannot_be_read_does_not_stop_the_others(
    told: Callable[..., Output], paths: list[str], found: list[ImageDetections], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(Path(paths[0]).read_bytes()[:300])
    (tmp_path / "empty.png").touch()
    (tmp_path / "deep.tif").write_bytes(tiff(np.zeros((48, 64), np.float32)))
    names = ("text.jpg", "cut.png", "empty.png", "none.jpg", "deep.tif")
    bad = [f"{tmp_path}/{name}" for name in names]
    out, err, status = told(bad[0], paths[2], *bad[1:], paths[0], f"--score={SCORE}")
    assert status == 2
    assert [line.partition(":")[0] for line in out.splitlines()[:-1]] == [paths[2], paths[0]]
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["file"] for row in rows] == [paths[2], paths[0]]
    assert len(rows[0]["detections"]) == len(found[2].detections)
    sentences = err.splitlines()
    assert len(sentences) == len(bad)
    for path, sentence in zip(bad, sentences, strict=True):
        assert sentence.startswith(f"error: {path} cannot be ")
    assert "it is no image of a known kind" in sentences[0]
    assert "the file is empty" in sentences[2]
    assert "No such file" in sentences[3]
    assert "its samples are 32-bit floating-point numbers" in sentences[4]
    assert sentences[4].endswith(", as 8-bit PNG).")
    # Of none that can be read nothing is found.
    out, err, status = told(bad[0])
    assert (out, status) == (f"{tmp_path}/out/detections.json\n", 2)
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []


def test_images_are_never_replaced(
    told: Callable[..., Output], paths: list[str], tmp_path: Path
) -> None:
    """Pictures go beside images of the same name, and images of one name have a picture each."""
    folder = tmp_path / "out"
    (folder / "more").mkdir(parents=True)
    content = Path(paths[0]).read_bytes()
    images = [folder / "a.png", folder / "more" / "a.png", folder / "more" / "a_2.png"]
    for image in images:
        image.write_bytes(content)
    out, err, status = told(f"{folder}/**/*.png", f"--score={SCORE}")
    assert (err, status) == ("", 0)
    assert all(image.read_bytes() == content for image in images)
    pictures = [row["picture"] for row in json.loads((folder / "detections.json").read_text())]
    assert pictures == ["a_2.png", "a_3.png", "a_2_2.png"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("a.png", "a_2.png", "a_2_2.png", "a_3.png", "detections.json", "more")
    ]
    assert len(out.splitlines()) == 4


def test_wrong_workdirs_are_told_in_a_sentence(
    told: Callable[..., Output], runs: tuple[Path, Path], paths: list[str], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    rpn, fast_rcnn = runs
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    write_config(base_config(), classifier)
    mistakes: dict[tuple[Path | None, Path], str] = {
        (None, fast_rcnn): f"{fast_rcnn} holds a run of Fast R-CNN, which detects among proposals",
        (None, rpn): f"{rpn} holds an RPN, which only proposes; name it with --rpn=..., and the ",
        (rpn, rpn): f"{rpn} holds an RPN, which only proposes",
        (None, classifier): f"{classifier} holds a classifier; python -m resnext_jax.predict says",
        (fast_rcnn, fast_rcnn): "config.task='fast_rcnn'; give one of 'rpn'",
        (empty, fast_rcnn): f"{empty} has no config.json",
        (rpn, empty): f"{empty} has no config.json",
        (rpn, tmp_path / "none"): "none does not exist",
    }
    for both, part in mistakes.items():
        out, err, status = told(paths[0], both=both)
        assert (out, status) == ("", 2)
        (sentence,) = err.splitlines()
        assert sentence.startswith("error: ")
        assert part in sentence
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_told_in_a_sentence(
    told: Callable[..., Output], paths: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    mistakes: dict[str, list[str | Path]] = {
        "empty has no images": [tmp_path / "empty"],
        "no file matches the pattern": [f"{tmp_path}/*.jpg"],
        "the following arguments are required: IMAGE": [],
        "'1.5' is not from 0 to 1": [paths[0], "--score=1.5"],
        "'much' is not from 0 to 1": [paths[0], "--score=much"],
        "'0' is not a whole number above 0": [paths[0], "--enlarge=0"],
        "there is no checkpoint": [paths[0], "--checkpoint=7"],
        "best.json is missing": [paths[0], "--rpn_checkpoint=best"],
        "has no average of the weights": [paths[0], "--ema"],
        "cannot be written": [paths[0], f"--out={paths[0]}/out"],
    }
    for part, arguments in mistakes.items():
        out, err, status = told(*arguments)
        assert (out, status) == ("", 2), part
        (sentence,) = err.splitlines()
        assert sentence.startswith("error: ")
        assert part in sentence


def test_both_runs_must_have_images_of_one_size(
    runs: tuple[Path, Path], split: CocoSplit, paths: list[str], tmp_path: Path
) -> None:
    config = drawn_config("fast_rcnn", split.folder.parent)
    config.data.long_side = 96
    other = make_workdir(tmp_path / "other", config)
    with pytest.raises(ConfigError) as caught:
        infer(runs[0], other, paths)
    sentence = str(caught.value)
    assert f"the RPN in {runs[0]} was trained on images of short_side=64, long_side=64" in sentence
    assert f"Fast R-CNN in {other} on short_side=64, long_side=96" in sentence


def test_a_program_is_told_its_mistakes(runs: tuple[Path, Path], paths: list[str]) -> None:
    with pytest.raises(DataError, match="there are no images"):
        infer(*runs, [])
    with pytest.raises(ConfigError, match=r"a score of -0\.1 is impossible"):
        infer(*runs, paths, score=-0.1)


@pytest.mark.slow
def test_as_a_command(runs: tuple[Path, Path], paths: list[str], tmp_path: Path) -> None:
    result = run(
        *("-m", "resnext_jax.detection.infer", "--rpn", runs[0], "--workdir", runs[1]),
        *("--out", tmp_path, "--score", "0", paths[0], "none.png"),
    )
    assert result.returncode == 2
    assert result.stderr == "error: none.png cannot be read: No such file or directory.\n"
    assert result.stdout.startswith(f"{paths[0]}: ")
    assert (tmp_path / Path(paths[0]).name).exists()


def test_commands_for_classifiers_name_this_one(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a detector's run or config."""
    out = f"--out={tmp_path}/out"
    for workdir in map(str, runs):
        for command in (
            functools.partial(predict.main, [f"--workdir={workdir}", "x.png"]),
            functools.partial(export.main, [f"--workdir={workdir}", out]),
            functools.partial(weights.main, ["export", f"--workdir={workdir}", out]),
        ):
            with pytest.raises(SystemExit) as left:
                command()
            (sentence,) = capsys.readouterr().err.splitlines()
            assert left.value.code == 2
            assert sentence.startswith(f"error: {workdir}/config.json cannot be used: config.task=")
            assert "a detector's, and this is for classifiers; " in sentence
            assert "use python -m resnext_jax.detection.infer (docs/detection.md)" in sentence
    with pytest.raises(ConfigError, match=r"use python -m resnext_jax\.detection\.infer"):
        preview.draw(stored_config(runs[0]), tmp_path / "batch.png")
