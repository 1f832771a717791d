"""Importance sampling by error maps (E.4): probabilities and sharpness, in float64.

Half of the rays are uniform, half follow the maps; of the latter, 10 % are spread evenly over images, and 1 % over the
rows of an image and over the columns of a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .color import linear_to_srgb, srgb_to_linear

F64 = NDArray[np.float64]
IMAGE_FLOOR, LINE_FLOOR = 0.1, 0.01
SHARPNESS_SIZE = (72, 128)  # rows, columns


def normalised(values: F64, floor: float) -> F64:
    """Probabilities along the last axis in proportion to ``values``, with a floor; even where all are zero."""
    n = values.shape[-1]
    total = values.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = floor / n + (1 - floor) * values / total
    return np.where(total > 0, shares, 1 / n)


def probabilities(maps: ArrayLike) -> tuple[F64, F64]:
    """(n_images,) of the images, and (n_images, height, width) of the cells within their image."""
    maps = np.asarray(maps, np.float64)
    rows = normalised(maps.sum(2), LINE_FLOOR)
    columns = normalised(maps, LINE_FLOOR)
    return normalised(maps.sum((1, 2)), IMAGE_FLOOR), rows[:, :, None] * columns


def densities(maps: ArrayLike, by_image: bool, by_pixel: bool) -> F64:
    """(n_images, height, width): density of a ray in a cell, 1 being that of uniform rays."""
    images, cells = probabilities(maps)
    n_images, height, width = cells.shape
    of_image = 0.5 + 0.5 * n_images * images if by_image else np.ones(n_images)
    of_pixel = 0.5 + 0.5 * height * width * cells if by_pixel else np.ones_like(cells)
    return of_image[:, None, None] * of_pixel


def map_side(rays: float, limit: int) -> int:
    return max(1, min(int(3.5 * rays**0.25), limit))


def tile(i: int, n: int, size: int) -> tuple[int, int]:
    """Pixels [begin, end) of tile i of n: its share, and as many on both sides as it takes to make three."""
    begin = i * size // n
    end = max(begin + 1, (i + 1) * size // n)
    while end - begin < min(3, size):
        begin = max(0, begin - 1)
        if end - begin < min(3, size):
            end = min(size, end + 1)
    return begin, end


def sharpness(image: ArrayLike) -> F64:
    """(72, 128): variance of the Laplacian of the luma of a uint8 sRGB image over black, tile by tile."""
    pixels = np.asarray(image, np.float64) / 255
    alpha = pixels[..., 3:] if pixels.shape[-1] == 4 else np.ones_like(pixels[..., :1])
    encoded = linear_to_srgb(srgb_to_linear(pixels[..., :3]) * alpha)
    luma = encoded @ np.array([0.2126, 0.7152, 0.0722])
    p = np.pad(luma, 1, mode="edge")
    laplacian = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * luma
    height, width = luma.shape
    result = np.zeros(SHARPNESS_SIZE)
    for j, i in np.ndindex(*SHARPNESS_SIZE):
        (y0, y1), (x0, x1) = tile(j, SHARPNESS_SIZE[0], height), tile(i, SHARPNESS_SIZE[1], width)
        result[j, i] = laplacian[y0:y1, x0:x1].var()
    return result
