"""ImageNet's synsets: the 1,000 of ImageNet-1K, and choosing and listing the 5,000 of ImageNet-5K.

A synset is named by its WordNet id, such as n01440764. A list of synsets is a
text file with one in a line, in label order, optionally with a tab and a number
of images after it; `#` starts a comment.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from resnext_jax.errors import DataError

_SYNSET = re.compile(r"n\d{8}")
# Names of synsets that a sentence spells out: to show what is meant, and to be acted upon.
_FEW = 3
_MOST = 50


@functools.cache
def imagenet1k() -> tuple[str, ...]:
    """Return ImageNet-1K's 1,000 synsets in label order, which is tfds's."""
    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())


@functools.cache
def imagenet1k_names() -> tuple[str, ...]:
    """Return readable names of ImageNet-1K's classes, in label order, each after its synset.

    As in "n01440764 tench, Tinca tinca": some names are those of two classes. The words are those
    of WordNet 3.0 (Princeton University).
    """
    words = Path(__file__).with_name("imagenet1k_words.txt").read_text().splitlines()
    return tuple(f"{synset} {word}" for synset, word in zip(imagenet1k(), words, strict=True))


def choose_synsets(
    counts: Mapping[str, int], imagenet1k: Sequence[str], total: int = 5000
) -> list[tuple[str, int]]:
    """Choose ImageNet-5K's synsets from the full ImageNet (ResNeXt paper, Sec. 5.2).

    Args:
      counts: number of images of each synset of the full ImageNet.
      imagenet1k: ImageNet-1K's synsets in label order; these come first.
      total: number of synsets to choose.

    Returns:
      (synset, number of images) in label order: ImageNet-1K's, then the others
      with the most images, by falling number, those with as many by synset.

    Raises:
      DataError: a synset of ImageNet-1K has no images, or too few others have.
    """
    missing = [synset for synset in imagenet1k if not counts.get(synset)]
    if missing:
        raise DataError(
            f"the full ImageNet lacks images of {len(missing):,} of the {len(imagenet1k):,} "
            f"ImageNet-1K synsets ({most(missing)}); put their archives, which "
            "ILSVRC2012_img_train.tar holds, one nXXXXXXXX.tar each, into the manual_dir as well."
        )
    first = set(imagenet1k)
    others = [synset for synset, count in counts.items() if count and synset not in first]
    wanted = total - len(imagenet1k)
    if len(others) < wanted:
        raise DataError(
            f"the full ImageNet has {len(others):,} synsets with images beside ImageNet-1K's, "
            f"{wanted:,} are to be chosen; check that all its archives are in the manual_dir."
        )
    others.sort(key=lambda synset: (-counts[synset], synset))
    return [(synset, counts[synset]) for synset in (*imagenet1k, *others[:wanted])]


def few(synsets: Sequence[str]) -> str:
    """Name the first three synsets of a sequence, for a sentence."""
    return _named(synsets, _FEW)


def most(synsets: Sequence[str]) -> str:
    """Name all synsets of a sequence, but no more than 50, for a sentence that asks for them."""
    return _named(synsets, _MOST)


def _named(synsets: Sequence[str], limit: int) -> str:
    named = ", ".join(synsets[:limit])
    more = len(synsets) - limit
    return f"{named} and {more:,} more" if more > 0 else named


def synsets_hash(synsets: Iterable[str]) -> str:
    """Return the sha256, in hexadecimal, of the synsets in order, one in a line."""
    return hashlib.sha256("".join(f"{synset}\n" for synset in synsets).encode()).hexdigest()


def write_synsets(path: Path, chosen: Sequence[tuple[str, int]]) -> None:
    """Write (synset, number of images) in label order as a list that `read_synsets` reads."""
    images = sum(count for _, count in chosen)
    lines = [
        "# ImageNet synsets in label order, and how many training images each has.",
        f"# synsets: {len(chosen)}",
        f"# images: {images}",
        f"# sha256 of the synsets, one in a line: {synsets_hash(synset for synset, _ in chosen)}",
        *(f"{synset}\t{count}" for synset, count in chosen),
    ]
    path.write_text("\n".join(lines) + "\n")


def read_synsets(path: Path) -> list[tuple[str, int | None]]:
    """Read a list of more than 1,000 synsets, of which ImageNet-1K's are the first.

    Returns:
      (synset, number of images, None where the list gives none) in label order.

    Raises:
      DataError: the file cannot be read, a line is not a synset and a number, a
        synset is there twice, or the list does not begin with ImageNet-1K's.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise DataError(
            f"list of synsets {path} cannot be read ({reason}); check its name and folder."
        ) from error
    found: dict[str, int | None] = {}
    for number, line in enumerate(lines, start=1):
        entry = line.partition("#")[0].rstrip()
        if not entry:
            continue
        synset, count = _parse(entry, f"line {number} of {path}")
        if synset in found:
            raise DataError(
                f"line {number} of {path} has synset {synset} a second time; remove one of the two."
            )
        found[synset] = count
    _check_begins_with_imagenet1k(list(found), path)
    return list(found.items())


def _parse(entry: str, where: str) -> tuple[str, int | None]:
    synset, tab, count = entry.partition("\t")
    if not _SYNSET.fullmatch(synset) or (tab and not (count.isascii() and count.isdigit())):
        raise DataError(
            f"{where} is {entry[:40]!r}, not a synset such as n01440764, "
            "optionally followed by a tab and its number of images; correct the list."
        )
    return synset, int(count) if tab else None


def _check_begins_with_imagenet1k(synsets: list[str], path: Path) -> None:
    expected = imagenet1k()
    for label, synset in enumerate(expected):
        if synsets[label : label + 1] != [synset]:
            there = synsets[label] if label < len(synsets) else "nothing"
            raise DataError(
                f"list of synsets {path} has {there} at label {label} where ImageNet-1K has "
                f"{synset}; labels 0 to {len(expected) - 1} must be ImageNet-1K's, in its order."
            )
    if len(synsets) == len(expected):
        raise DataError(
            f"list of synsets {path} has none beside ImageNet-1K's; "
            "add others, or use the data set imagenet2012."
        )
