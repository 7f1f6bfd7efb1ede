"""Which files of a folder are images, by their names, and one line on those that are not."""

import collections
import sys
from collections.abc import Iterable
from pathlib import Path, PurePath

# Files of a folder that are taken for images.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp")

# What systems and network drives put into every folder, thumbnails for instance; in lower case.
_OF_SYSTEMS = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "__macosx",
        "desktop.ini",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
# Kinds of ignored files in a note.
_NAMED = 12


def is_hidden(name: str) -> bool:
    """Whether a file or folder is nobody's data: it begins with a dot, or is a system's own."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def is_image(name: str) -> bool:
    """Whether a file is taken for an image."""
    return name.lower().endswith(SUFFIXES)


def note_ignored(folder: Path, names: Iterable[str], outside: int = 0) -> None:
    """Say on stderr how many files of which kinds are left out; nothing if there are none.

    Args:
      folder: that holds them.
      names: of files that are no images.
      outside: number of images that are in no class's folder.
    """
    kinds = collections.Counter(PurePath(name).suffix.lower() or "no extension" for name in names)
    if not kinds and not outside:
        return
    parts = [
        f"{kind if kind.isprintable() else ascii(kind)} {count:,}"
        for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    ]
    if len(parts) > _NAMED:
        parts[_NAMED:] = [f"{len(parts) - _NAMED} more kinds"]
    if outside:
        parts.append(f"{outside:,} image{'s' * (outside > 1)} outside the classes' folders")
    total = kinds.total() + outside
    print(
        f"ignored: {total:,} file{'s' * (total > 1)} ({', '.join(parts)}) in {folder}, "
        f"where images end in {', '.join(SUFFIXES)}",
        file=sys.stderr,
    )
