"""The ImageNet transforms written out plainly in float64, to hold ours against."""

import itertools
import math
from collections.abc import Callable

import numpy as np

# Weights `[new, old]` of one axis, for sizes old and new.
Matrix = Callable[[int, int], np.ndarray]


def resized(image: np.ndarray, size: tuple[int, int], matrix: Matrix) -> np.ndarray:
    """Resize `[H, W, 3]` to a height and width, not rounded and not clipped."""
    rows, columns = matrix(image.shape[0], size[0]), matrix(image.shape[1], size[1])
    return np.einsum("sh,hwc,tw->stc", rows, image.astype(float), columns, optimize=True)


def point_sampled(interpolation: str) -> Matrix:
    """Interpolate as OpenCV does: cubic convolution (Keys, a = -0.75), or straight lines."""

    def cubic(t: float) -> float:
        a, t = -0.75, abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    def linear(t: float) -> float:
        return max(0.0, 1 - abs(t))

    weight = {"bicubic": cubic, "bilinear": linear}[interpolation]

    def matrix(old: int, new: int) -> np.ndarray:
        weights = np.zeros((new, old))
        for place in range(new):
            centre = (place + 0.5) * old / new - 0.5  # of a pixel, not its corner
            left = math.floor(centre)
            for source in range(left - 1, left + 3):
                # Beyond the border the outermost pixel is repeated.
                weights[place, min(max(source, 0), old - 1)] += weight(centre - source)
        return weights

    return matrix


def torch7_matrix(old: int, new: int) -> np.ndarray:
    """Torch7's image.scale: corners on corners, the line goes on beyond the border."""
    weights = np.zeros((new, old))
    if old == 1:
        return np.ones((new, 1))
    for place in range(new):
        centre = place * (old - 1) / (new - 1) if new > 1 else 0.0
        left = min(math.floor(centre), old - 2)
        t = centre - left
        samples = np.zeros((4, old))  # the four neighbours, as mixtures of pixels
        samples[1, left] = samples[2, left + 1] = 1
        samples[0] = 2 * samples[1] - samples[2]
        samples[3] = 2 * samples[2] - samples[1]
        if left > 0:
            samples[0] = np.eye(old)[left - 1]
        if left + 2 < old:
            samples[3] = np.eye(old)[left + 2]
        p0, p1, p2, p3 = samples
        slope_in, slope_out = (p2 - p0) / 2, (p3 - p1) / 2
        # Hermite's cubic through p1 and p2 with these slopes.
        weights[place] = (
            (2 * t**3 - 3 * t**2 + 1) * p1
            + (t**3 - 2 * t**2 + t) * slope_in
            + (3 * t**2 - 2 * t**3) * p2
            + (t**3 - t**2) * slope_out
        )
    return weights


def luma(image: np.ndarray) -> np.ndarray:
    """Return the grey image `[H, W]`."""
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black."""
    return factor * image


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean of the grey image."""
    return factor * image + (1 - factor) * luma(image).mean()


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey image."""
    return factor * image + (1 - factor) * luma(image)[..., None]


OPERATIONS = (brightness, contrast, saturation)
ORDERS = list(itertools.permutations(range(3)))


def lighting(image: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Add PCA noise to pixel values 0..255; `amounts` are the three drawn alphas."""
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    return image + 255 * (vectors @ (values * amounts))


def train_image(
    image: np.ndarray, rng: np.random.Generator, *, size: int, colour: float, sigma: float
) -> np.ndarray:
    """Crop, resize, flip, vary colour and lighting: float64 `[size, size, 3]`, 0..255, unclipped.

    Draws from `rng` in the order that our transform draws.
    """
    uniform = rng.random(5, np.float32)
    normal = rng.standard_normal(3, np.float32)
    height, width = image.shape[:2]
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        wide, high = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if rng.random() < 0.5:
            wide, high = high, wide
        if high <= height and wide <= width:
            top = rng.integers(0, height - high + 1)
            left = rng.integers(0, width - wide + 1)
            break
    else:
        raise AssertionError("no window fits; choose another seed")
    crop = image[top : top + high, left : left + wide]
    result = resized(crop, (size, size), point_sampled("bicubic"))
    if rng.random() < 0.5:
        result = result[:, ::-1]
    for operation, drawn in zip(OPERATIONS, uniform[2:], strict=True):
        result = operation(result, 1 + colour * (2 * float(drawn) - 1))
    return lighting(result, sigma * normal.astype(float))
