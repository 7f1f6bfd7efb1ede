"""Images to train on, the same bytes on every machine: folders of classes, and COCO's format."""

import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np

OLD_RUNS = Path(__file__).parent / "old_runs.tar.xz"

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def png(image: np.ndarray) -> bytes:
    """Encode `[H, W, 3]` uint8 without compressing, which zlib's versions do differently."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows, level=0),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )


def write_folders(folder: Path) -> Path:
    """Write images in train/CLASS and val/CLASS, for the data set `folder`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for name, colour in zip(("green", "red"), (COLOURS[1], COLOURS[0]), strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 50, (40, 48, 3), np.uint8) + np.array(colour, np.uint8)
                (folder / split / name / f"{number}.png").write_bytes(png(image))
    return folder


def write_scenes(folder: Path) -> Path:
    """Write rectangles on grey, 64x64, with annotations in COCO's format."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", 12), ("test", 4)):
        (folder / split).mkdir()
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for number in range(count):
            image = rng.integers(100, 140, (64, 64, 3), np.uint8)
            for left in (0, 32)[: 1 + number % 2]:
                (x, y), (width, height) = rng.integers(0, 12, 2), rng.integers(12, 20, 2)
                category = int(rng.integers(3))
                image[y : y + height, left + x : left + x + width] = COLOURS[category]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": category + 1,
                        "bbox": [left + int(x), int(y), int(width), int(height)],
                        "area": int(width * height),
                        "iscrowd": 0,
                    }
                )
            name = f"{number}.png"
            images.append({"id": number + 1, "file_name": name, "height": 64, "width": 64})
            (folder / split / name).write_bytes(png(image))
        names = ("red", "green", "blue")
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return folder


def write_all(folder: Path) -> None:
    """Write both, and the old runs `classifier` and `detector` with their `proposals`."""
    write_scenes(folder / "scenes")
    write_folders(folder / "folders")
    with tarfile.open(OLD_RUNS) as archive:
        archive.extractall(folder, filter="data")
