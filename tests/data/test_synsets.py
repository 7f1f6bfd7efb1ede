"""Choosing ImageNet-5K's synsets, and lists of synsets."""

import hashlib
from pathlib import Path

import pytest

from resnext_jax.data.builders.synsets import (
    choose_synsets,
    few,
    imagenet1k,
    most,
    read_synsets,
    synsets_hash,
    write_synsets,
)
from resnext_jax.errors import DataError

FIRST = ("n00000009", "n00000003")


def write_list(path: Path, *others: str) -> Path:
    path.write_text("\n".join([*imagenet1k(), *others]) + "\n")
    return path


def test_imagenet1k_is_in_label_order() -> None:
    synsets = imagenet1k()
    assert len(set(synsets)) == 1000
    # Tench, goldfish and, the last one, toilet tissue.
    assert (synsets[0], synsets[1], synsets[999]) == ("n01440764", "n01443537", "n15075141")
    assert list(synsets) == sorted(synsets)


def test_chooses_imagenet1k_then_those_with_most_images() -> None:
    counts = {"n00000001": 5, "n00000002": 7, "n00000003": 1, "n00000004": 6, "n00000009": 2}
    assert choose_synsets(counts, FIRST, total=4) == [
        ("n00000009", 2),
        ("n00000003", 1),
        ("n00000002", 7),
        ("n00000004", 6),
    ]


def test_ties_go_by_synset_whatever_the_order_of_the_archives() -> None:
    tied = {"n00000008": 4, "n00000005": 4, "n00000007": 4, "n00000006": 9}
    first = dict.fromkeys(FIRST, 1)
    chosen = choose_synsets(tied | first, FIRST, total=5)
    assert [synset for synset, _ in chosen[2:]] == ["n00000006", "n00000005", "n00000007"]
    backwards = dict(reversed(list((tied | first).items())))
    assert choose_synsets(backwards, FIRST, total=5) == chosen


def test_chooses_5000_by_default() -> None:
    others = {f"n9{number:07}": 1 + number for number in range(4500)}
    chosen = choose_synsets(dict.fromkeys(imagenet1k(), 1) | others, imagenet1k())
    assert len(chosen) == 5000
    assert [synset for synset, _ in chosen[:1000]] == list(imagenet1k())
    assert [count for _, count in chosen[1000:]] == list(range(4500, 500, -1))


def test_too_few_others_with_images() -> None:
    counts = dict.fromkeys(FIRST, 1) | {"n00000001": 5, "n00000002": 0}
    with pytest.raises(DataError, match=r"1 synsets with images beside .* 2 are to be chosen"):
        choose_synsets(counts, FIRST, total=4)


@pytest.mark.parametrize("counts", [{}, {"n00000009": 0}])
def test_imagenet1k_without_images(counts: dict[str, int]) -> None:
    counts = counts | {"n00000003": 1, "n00000001": 1}
    with pytest.raises(DataError, match=r"1 of the 2 ImageNet-1K synsets \(n00000009\); put"):
        choose_synsets(counts, FIRST, total=3)


@pytest.mark.parametrize(
    ("missing", "more"), [(50, ""), (51, " and 1 more"), (1000, " and 950 more")]
)
def test_synsets_that_a_release_lacks_are_named(missing: int, more: str) -> None:
    """They have to be fetched: all are named, but no more than can be read."""
    counts = dict.fromkeys(imagenet1k()[missing:], 1)
    with pytest.raises(DataError) as error:
        choose_synsets(counts, imagenet1k())
    names = ", ".join(imagenet1k()[:50])
    assert f"{missing:,} of the 1,000 ImageNet-1K synsets ({names}{more}); put" in str(error.value)
    assert "ILSVRC2012_img_train.tar" in str(error.value)


def test_few_names_three_and_most_fifty() -> None:
    names = [f"n{number}" for number in range(53)]
    assert few(names[:3]) == most(names[:3]) == "n0, n1, n2"
    assert few(names[:5]) == "n0, n1, n2 and 2 more"
    assert most(names[:50]) == ", ".join(names[:50])
    assert most(names) == f"{', '.join(names[:50])} and 3 more"


def test_hash_is_over_the_synsets_in_order() -> None:
    assert synsets_hash(FIRST) == hashlib.sha256(b"n00000009\nn00000003\n").hexdigest()
    assert synsets_hash(reversed(FIRST)) != synsets_hash(FIRST)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    chosen = [(synset, 3) for synset in imagenet1k()] + [("n90000001", 70), ("n90000000", 70)]
    path = tmp_path / "synsets.txt"
    write_synsets(path, chosen)
    assert read_synsets(path) == chosen
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert "# synsets: 1002" in header
    assert "# images: 3140" in header
    assert header[-1].endswith(synsets_hash(synset for synset, _ in chosen))


def test_reads_a_list_without_numbers_and_with_comments(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list", "", "# of my own", "n90000001 # dogs", "n90000000\t12")
    read = read_synsets(path)
    assert read[:1000] == [(synset, None) for synset in imagenet1k()]
    assert read[1000:] == [("n90000001", None), ("n90000000", 12)]


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        (["n90000000", "n01440764"], "line 1002 of .* has synset n01440764 a second time"),
        (["n9000000"], "line 1001 of .* is 'n9000000', not a synset"),
        (["n90000000\tmany"], "line 1001 of .* not a synset"),
        (["n90000000\t-1"], "line 1001 of .* not a synset"),
        (["n90000000 7"], "line 1001 of .* not a synset"),
        ([], "has none beside ImageNet-1K's"),
    ],
)
def test_bad_lists(tmp_path: Path, others: list[str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_synsets(write_list(tmp_path / "list", *others))


def test_list_in_another_order_than_imagenet1k(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("n01440764\nn90000000\n")
    with pytest.raises(DataError, match="n90000000 at label 1 where ImageNet-1K has n01443537"):
        read_synsets(path)
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="nothing at label 0 where ImageNet-1K has n01440764"):
        read_synsets(path)


def test_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_synsets(tmp_path / "none")
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="it is not text"):
        read_synsets(path)
