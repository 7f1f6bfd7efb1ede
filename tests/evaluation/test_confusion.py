"""Errors by class: exact counts, and files of them."""

import csv
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.evaluation.confusion import (
    Confusion,
    confusion_csv,
    confusion_npy,
    count,
    per_class_csv,
    summary,
)
from resnext_jax.evaluation.images import make_record_step, score_images
from resnext_jax.evaluation.metrics import LAST
from resnext_jax.evaluation.run import Evaluation
from resnext_jax.parallel.mesh import batch_sharding, make_mesh
from tests.evaluation.small_test_sets import (
    CLASSES,
    SIZES,
    images_of,
    records_of,
    small_config,
    small_networks,
)

NAMES = ("cat", "dog", "cow, brown", "none")
# Three cats, one of them taken for a dog; two dogs, taken for cows; a cow without a score.
RECORDS = records_of([0, 0, 0, 1, 1, 2], [0, 1, 0, 2, 2, -1], [0, 1, 0, 5, 1, LAST])


@pytest.fixture
def counts() -> Confusion:
    return count(RECORDS, NAMES)


def test_counts_by_hand(counts: Confusion) -> None:
    matrix = [[2, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(counts.matrix, matrix)
    assert counts.matrix.dtype == np.int64
    assert counts.images.tolist() == [3, 2, 1, 0]
    assert counts.top1_wrong.tolist() == [1, 2, 1, 0]
    assert counts.top5_wrong.tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(counts.top1_error, [100 / 3, 100, 100, np.nan])
    np.testing.assert_allclose(counts.top5_error, [0, 50, 100, np.nan])


def test_files(counts: Confusion) -> None:
    by_class = list(csv.DictReader(io.StringIO(per_class_csv(counts))))
    assert [row["name"] for row in by_class] == list(NAMES)
    assert by_class[1] == {
        "class": "1",
        "name": "dog",
        "images": "2",
        "top1_wrong": "2",
        "top5_wrong": "1",
        "top1_error": "100.0000",
        "top5_error": "50.0000",
    }
    assert by_class[3]["top1_error"] == ""
    head, *rows = csv.reader(io.StringIO(confusion_csv(counts)))
    assert head == ["true class", *NAMES]
    assert [row[0] for row in rows] == list(NAMES)
    np.testing.assert_array_equal([list(map(int, row[1:])) for row in rows], counts.matrix)
    np.testing.assert_array_equal(np.load(io.BytesIO(confusion_npy(counts))), counts.matrix)


def test_the_worst_classes_are_told(counts: Confusion) -> None:
    assert summary(counts) == [
        "'dog': top-1 error 100.00 % of 2 images, 2 taken for 'cow, brown'",
        "'cow, brown': top-1 error 100.00 % of 1 images",
        "'cat': top-1 error 33.33 % of 3 images, 1 taken for 'dog'",
        "scores that are not numbers: of 1 images, which are wrong",
    ]
    right = records_of([0, 1, 2, 3], [0, 1, 2, 3], [0] * 4)
    assert summary(count(right, NAMES)) == []
    many = records_of(list(range(9)), [0] * 9, [5] * 9)
    assert len(summary(count(many, tuple("abcdefghi")))) == 5


def test_the_guess_is_the_first_of_equals_and_none_without_numbers() -> None:
    scores = jnp.asarray([[1.0, 2.0, 2.0], [3.0, jnp.nan, 0.0], [jnp.inf, 0.0, 1.0]])
    columns = score_images([scores], jnp.asarray([2, 0, 1]), None)
    assert columns["top5"].tolist() == [[1, 2, 0, -1, -1], [-1] * 5, [0, 2, 1, -1, -1]]
    # Wrong, whatever is counted, where a score is not a number.
    assert columns["rank"].tolist() == [1, LAST, 2]


def test_every_device_hears_of_every_image() -> None:
    mesh = make_mesh(64, None)
    placed = jax.device_put(
        {"label": np.arange(8), "mask": np.arange(8) < 5, "image": np.zeros((8, 2))},
        batch_sharding(mesh),
    )
    scores = jax.device_put(np.eye(8, dtype=np.float32), batch_sharding(mesh))
    columns = make_record_step(mesh)([scores], placed)
    assert all(array.is_fully_replicated for array in columns.values())
    assert columns["top5"][:, 0].tolist() == list(range(8))
    assert columns["mask"].tolist() == [place < 5 for place in range(8)]


def test_each_image_is_counted_once() -> None:
    """On any number of devices, whatever their number does to the last batch."""
    images, matrices = 53, []  # divides nothing
    labels = np.arange(images) % CLASSES
    config, source = small_config(), images_of(SIZES[:1], images)
    config.eval_batch_size = 24
    for devices in (1, 8):
        mesh = make_mesh(64, None, jax.devices()[:devices])
        evaluation = Evaluation(config, source, None, mesh)
        (result,) = evaluation.score(small_networks(config, 1, mesh))
        assert result.records is not None
        counts = count(result.records, source.class_names)
        assert counts.matrix.sum() == counts.images.sum() == result.images == images
        np.testing.assert_array_equal(counts.images, np.bincount(labels))
        assert 100 * counts.top1_wrong.sum() / images == pytest.approx(result.top1_error)
        assert 100 * counts.top5_wrong.sum() / images == pytest.approx(result.top5_error)
        matrices.append(counts.matrix)
    np.testing.assert_array_equal(matrices[0], matrices[1])
    assert (matrices[0] > 0).sum() > CLASSES
