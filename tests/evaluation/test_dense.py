"""Multi-scale dense testing: every image once a scale, all positions averaged."""

from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from resnext_jax.config import build
from resnext_jax.data.augment import Batch
from resnext_jax.data.decode import decode_rgb
from resnext_jax.data.shapes import BLANK
from resnext_jax.errors import DataError
from resnext_jax.evaluation import dense
from resnext_jax.evaluation.dense import DenseEvaluation, PendingImages, short_sides
from resnext_jax.evaluation.run import Evaluation
from resnext_jax.models.variables import Arrays, Network, merge
from resnext_jax.parallel.mesh import make_mesh
from tests.data.images import noise_file
from tests.evaluation.small_test_sets import (
    CLASSES,
    SIZES,
    images_of,
    score,
    small_config,
    small_weights,
)
from tests.evaluation.test_crops import same

IMAGES = 11  # divides nothing
# Without header, and with a header that promises an image.
BAD = {3: b"no image", 5: noise_file(9, 9)[:60]}


def test_scales_are_he_et_als() -> None:
    assert short_sides(224) == (224, 256, 384, 480, 640)
    assert short_sides(320) == (320, 366, 549, 686, 914)
    assert short_sides(32) == (32, 37, 55, 69, 91)


def use_scales(monkeypatch: pytest.MonkeyPatch, *scales: int) -> None:
    """Fewer of them: each shape has to be compiled."""
    monkeypatch.setattr(dense, "short_sides", lambda image_size: scales)


def test_scores_are_averaged_over_positions_and_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    use_scales(monkeypatch, 8, 14)
    config = small_config(eval_crops="dense", eval_first_classes=3)
    sizes = [(16, 16), (16, 28)]
    source = images_of(sizes, IMAGES)
    graphdef, params, batch_stats = small_weights(config)
    model = merge(graphdef, params, batch_stats)
    model.eval()

    @jax.jit
    def apply(image: jax.Array) -> jax.Array:
        images = build.device_transform(config).test({"image": image[None]})
        (last,) = model.features(images)["conv4"]
        rows, columns = (side - 1 for side in last.shape[:2])
        windows = [
            last[top : top + 2, left : left + 2].mean(axis=(0, 1))
            for top in range(rows)
            for left in range(columns)
        ]
        return sum(model.fc(window) for window in windows) / len(windows)

    # As Pillow resizes and cuts: 14x24 is a multiple of four long already.
    logits = np.zeros((IMAGES, CLASSES))
    for index in range(IMAGES):
        picture = Image.fromarray(decode_rgb(source.examples[index]["image"]))
        for short, long, box in ((8, 14, (1, 0, 13, 8)), (14, 24, (0, 0, 24, 14))):
            wide = picture.width > picture.height
            resized = picture.resize((long if wide else short, short), Image.Resampling.BICUBIC)
            image = np.asarray(resized.crop(box) if wide else resized)
            logits[index] += np.asarray(apply(jnp.asarray(image))) / 2
    labels = np.arange(IMAGES) % CLASSES
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(IMAGES), labels]

    result = score(config, source)
    assert (result.images, result.skipped) == (IMAGES, 0)
    assert result.top1_error == pytest.approx(100 * (logits.argmax(axis=1) != labels).mean())
    wrong = (labels >= 3) | (logits[:, :3].argmax(axis=1) != labels)
    assert result.among_first[3][0] == pytest.approx(100 * wrong.mean())
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)
    # It tells: the centre alone scores otherwise.
    alone = score(small_config(), source)
    assert abs(alone.loss - result.loss) > 0.01


def test_at_one_scale_square_images_are_scored_as_in_the_centre_crop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_scales(monkeypatch, 8)
    source = images_of([(8, 8)], IMAGES)
    expected = score(small_config(eval_short_side=8), source)
    same(score(small_config(eval_crops="dense"), source), expected)


def test_says_once_how_often_it_compiles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_scales(monkeypatch, 8, 14)
    config = small_config(eval_crops="dense")
    mesh = make_mesh(64, None, jax.devices()[:1])
    evaluation = DenseEvaluation(config, images_of([(8, 8), (16, 28)], 4), mesh)
    compiled: set[tuple[int, ...]] = set()

    def step(params: Arrays, batch_stats: Arrays, batch: Batch) -> dict[str, jax.Array]:
        shape = batch["image"].shape
        compiled.add(shape)
        return {
            "logits": jnp.zeros((shape[0], CLASSES)),
            "label": batch["label"],
            "mask": batch["mask"],
        }

    monkeypatch.setattr(evaluation, "_step", lambda graphdef: step)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        evaluation.score([Network(nnx.graphdef(nnx.Module()), {}, {})], [(0,)])
    line = "dense testing compiles once for each of 4 image shapes\n"
    assert capsys.readouterr().err == line
    assert evaluation.shapes == len(compiled) == 4


def no_batches(evaluation: DenseEvaluation) -> Generator[Batch, None, None]:
    yield from ()


def test_only_process_0_says_how_often_it_compiles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dense.DenseEvaluation, "_batches", no_batches)
    monkeypatch.setattr(dense.DenseEvaluation, "_make_plan", lambda self: [])
    config = small_config(eval_crops="dense")
    for process, lines in ((0, 1), (1, 0)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        mesh = make_mesh(64, None, jax.devices()[:1])
        DenseEvaluation(config, images_of(SIZES, 1), mesh).score([], [])
        assert capsys.readouterr().err.count("\n") == lines


def test_devices_do_not_matter_and_bad_images_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    use_scales(monkeypatch, 8)
    config = small_config(eval_crops="dense", on_error="skip")
    source = images_of(SIZES, IMAGES, BAD)
    expected = score(config, source)
    assert (expected.images, expected.skipped) == (IMAGES - 2, 2)
    same(score(config, source, devices=8), expected)


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_image_stops(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its header, or when it is decoded."""
    use_scales(monkeypatch, 8)
    source = images_of([(8, 8)], IMAGES, {bad: BAD[bad]})
    config = small_config(eval_crops="dense")
    mesh = make_mesh(64, None, jax.devices()[:1])
    graphdef, params, batch_stats = small_weights(config)
    with pytest.raises(DataError, match=f"image {bad} of 'noise', split 'test', cannot be decode"):
        Evaluation(config, source, graphdef, mesh).run(params, batch_stats)


def test_nothing_but_bad_images_is_an_error() -> None:
    config = small_config(eval_crops="dense", on_error="skip")
    with pytest.raises(DataError, match="no test image can be decoded"):
        score(config, images_of(SIZES, 2, {0: b"-", 1: b"-"}))


def test_an_image_is_done_with_its_last_scale_and_skipped_if_it_lacks_one() -> None:
    pending = PendingImages(scales=2)
    labels = np.array([2, 0, 1])
    logits = np.eye(3, dtype=np.float32)[[2, 0, 0]]
    mask = np.array([True, True, False])
    batch = {"logits": logits, "label": labels, "mask": mask}
    assert pending.add(np.array([3, 1, BLANK]), [batch, batch]) == []
    assert len(pending) == 2
    mask = np.array([False, True, True])
    batch = {"logits": logits[:, ::-1], "label": np.array([0, 2, 1]), "mask": mask}
    ((image, label, averaged),) = pending.add(np.array([1, 3, 0]), [batch, batch])
    assert (image, label) == (3, 2)
    np.testing.assert_array_equal(averaged, [[0, 0, 1]] * 2)
    # 1 lacks its second scale; 0 waits for it, and lacks it too.
    assert len(pending) == 1
    batch["mask"] = np.array([False, False, False])
    assert pending.add(np.array([0, BLANK, BLANK]), [batch, batch]) == []
    assert len(pending) == 0


def test_few_images_wait_for_their_last_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of them: no array of all images' logits is kept."""
    waiting = []

    class Watched(PendingImages):
        def add(self, *arguments: Any) -> Any:
            done = super().add(*arguments)
            waiting.append(len(self))
            return done

    monkeypatch.setattr(dense, "PendingImages", Watched)
    use_scales(monkeypatch, 8, 14)
    result = score(small_config(eval_crops="dense"), images_of([(16, 16), (16, 28)], 40))
    assert result.images == 40
    assert max(waiting) <= 8
    assert waiting[-1] == 0
