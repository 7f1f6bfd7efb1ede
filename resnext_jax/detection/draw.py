"""Pictures of detections: boxes with names and scores."""

import colorsys
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Of the picture's longer side.
_LINE, _TEXT = 1 / 320, 1 / 42
_SMALLEST_TEXT, _LARGEST_TEXT = 11, 28

# Of a colour, weighted as the eye does; on brighter ones black is read best.
_BRIGHT = 140


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    *,
    enlarge: int = 1,
) -> np.ndarray:
    """Draw boxes on an image, the best ones on top.

    Args:
      image: uint8 `[H, W, 3]`, RGB; it is not changed.
      boxes: `[n, 4]`, x1, y1, x2, y2 in its pixels; what is outside is cut off.
      names: n, of the objects. A name's colour is always the same.
      scores: `[n]`, from 0 to 1; None draws names alone, as for annotations.
      enlarge: the picture is so many times as large as the image, for legible text on small ones.

    Returns:
      uint8 `[enlarge * H, enlarge * W, 3]`.
    """
    height, width = (enlarge * side for side in image.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(image)).resize((width, height))
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(height, width) * _LINE))
    size = min(max(round(max(height, width) * _TEXT), _SMALLEST_TEXT), _LARGEST_TEXT)
    font = ImageFont.load_default(size)
    corners = _pixels(np.asarray(boxes, np.float64).reshape(-1, 4) * enlarge, height, width)
    order = range(len(corners)) if scores is None else np.argsort(scores, kind="stable").tolist()
    # All boxes first: no line goes through a text.
    for place in order:
        draw.rectangle(corners[place], outline=colour(names[place]), width=line)
    for place in order:
        text = names[place] if scores is None else f"{names[place]}: {scores[place]:.2f}"
        _write(draw, text, corners[place][:2], width, font, colour(names[place]))
    return np.asarray(picture)


def colour(name: str) -> Colour:
    """Return the colour of a name, RGB from 0 to 255: a bright one, the same on every machine."""
    number = zlib.crc32(name.encode())
    hue, lightness = (number % 360) / 360, 0.5 + 0.05 * (number // 360 % 4)
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _pixels(boxes: np.ndarray, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Return the first and last pixels, inclusive, of boxes inside the picture."""
    last = np.array([width - 1, height - 1])
    first_pixels = np.clip(np.rint(boxes[:, :2]), 0, last)
    last_pixels = np.clip(np.rint(boxes[:, 2:]) - 1, first_pixels, last)
    x1, y1, x2, y2 = np.concatenate([first_pixels, last_pixels], axis=1).astype(int).T.tolist()
    return list(zip(x1, y1, x2, y2, strict=True))


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[int, int],
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    background: Colour,
) -> None:
    """Write on a coloured ground above a box, or inside it where there is no room above."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    ground_width, ground_height = round(right - left) + 4, round(bottom - top) + 4
    x = max(0, min(corner[0], width - ground_width))
    y = corner[1] - ground_height if corner[1] >= ground_height else corner[1]
    draw.rectangle((x, y, x + ground_width - 1, y + ground_height - 1), fill=background)
    red, green, blue = background
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > _BRIGHT
    place = (x + 2 - round(left), y + 2 - round(top))
    draw.text(place, text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)
