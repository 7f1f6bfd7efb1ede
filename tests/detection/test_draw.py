"""Boxes are drawn where they are, with a name and a score that can be read."""

import itertools

import numpy as np
import pytest

from resnext_jax.detection.finder import colour, draw_detections

GREY = np.full((120, 160, 3), 90, np.uint8)


def changed(picture: np.ndarray, background: np.ndarray = GREY) -> np.ndarray:
    return (picture != background).any(axis=-1)


def test_a_box_is_drawn_on_its_pixels() -> None:
    picture = draw_detections(GREY, np.array([[20, 40, 100, 110]]), ["dog"], np.array([0.87]))
    assert picture.shape == GREY.shape
    assert picture.dtype == np.uint8
    assert (GREY == 90).all()
    drawn = (picture == colour("dog")).all(axis=-1)
    for edge in (drawn[40, 20:100], drawn[109, 20:100], drawn[40:110, 20], drawn[40:110, 99]):
        assert edge.all()
    # Nothing inside, or outside but for the text above.
    assert not changed(picture)[45:105, 25:95].any()
    assert not changed(picture)[110:].any()
    assert not changed(picture)[:, 100:].any()
    assert not changed(picture)[:, :20].any()
    assert changed(picture)[:40].any()


def test_texts_can_be_told_apart() -> None:
    """The text above the box depends on the name and the score, and stands out from its ground."""
    box, texts = np.array([[20, 40, 100, 110]]), []
    for name, score in itertools.product(["dog", "cat"], [0.87, 0.12]):
        picture = draw_detections(GREY, box, [name], np.array([score]))
        rows, columns = (
            slice(int(np.min(place)), int(np.max(place)))
            for place in changed(picture)[:40].nonzero()
        )
        crop = picture[rows, columns]
        ink = np.abs(crop.astype(int) - colour(name)).sum(axis=-1)
        assert ink.max() > 250
        assert 0.05 < (ink > 125).mean() < 0.6
        texts.append((ink > 125).tobytes())
    assert len(set(texts)) == 4
    unscored = draw_detections(GREY, box, ["dog"])
    scored = draw_detections(GREY, box, ["dog"], np.array([0.5]))
    assert changed(unscored)[:40].sum() < changed(scored)[:40].sum()


def test_a_label_without_room_above_is_inside() -> None:
    picture = draw_detections(GREY, np.array([[150, 0, 160, 30]]), ["giraffe"], np.array([1]))
    label = changed(picture)
    assert label[0:10, 100:160].mean() > 0.5
    # Not cut off at the right: as wide as where there is room.
    free = changed(draw_detections(GREY, np.array([[5, 60, 15, 90]]), ["giraffe"], np.array([1])))
    assert label[2].sum() == free[:60].any(axis=0).sum()


@pytest.mark.parametrize(
    "box", [[-50, -50, 500, 500], [200, 200, 300, 300], [10, 10, 10, 10], [30, 30, 20, 20]]
)
def test_any_box_is_drawn_somehow(box: list[float]) -> None:
    assert changed(draw_detections(GREY, np.array([box]), ["x"], np.array([0.1]))).any()


def test_nothing_found_is_the_image_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_detections(image, np.zeros((0, 4)), []), image)


def test_the_best_are_on_top() -> None:
    boxes = np.array([[20, 40, 100, 110], [20, 40, 100, 110]])
    for scores, best in (([0.9, 0.3], "dog"), ([0.3, 0.9], "cat")):
        picture = draw_detections(GREY, boxes, ["dog", "cat"], np.array(scores))
        assert tuple(picture[80, 20]) == colour(best)


def test_small_images_are_enlarged() -> None:
    box = np.array([[10, 20, 30, 25]])
    picture = draw_detections(GREY, box, ["dog"], np.array([0.5]), enlarge=3)
    assert picture.shape == (360, 480, 3)
    drawn = (picture == colour("dog")).all(axis=-1)
    assert drawn[60, 30:90].all()
    assert drawn[74, 30:90].all()


def test_colours_are_of_the_name_alone() -> None:
    assert colour("dog") == colour("dog") == (61, 168, 245)
    names = ["person", "bicycle", "car", "dog", "cat", "7", "8", "9"]
    assert len({colour(name) for name in names}) == len(names)
