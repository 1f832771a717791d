"""Importance sampling by error maps against the float64 twin (E.4)."""

from __future__ import annotations

import numpy as np
import pytest
from pyngp._core import stages
from reference import error_map
from stages.helpers import U

N_RAYS = 200_000


def maps(n_images: int, height: int, width: int, seed: int) -> np.ndarray:
    """Errors of several orders of magnitude; an image, a row and a column without any."""
    r = np.random.default_rng(seed)
    values = r.uniform(size=(n_images, height, width)) ** 6
    values *= r.uniform(0.1, 10, size=(n_images, 1, 1))
    values[0] = 0
    values[-1, 0] = 0
    values[-1, :, -1] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("by_image,by_pixel", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(5, 7, 4), (40, 3, 5), (1, 1, 1)])
def test_rays_follow_the_density(shape: tuple[int, int, int], by_image: bool, by_pixel: bool) -> None:
    """Each ray's density is the twin's, and cells get rays in proportion to it."""
    errors = maps(*shape, seed=1)
    image, uv, density, cell = stages.draw_by_error(errors, by_image, by_pixel, seed=3, n_rays=N_RAYS)
    n_images, height, width = shape
    assert np.all((uv >= 0) & (uv < 1)) and np.all((image >= 0) & (image < n_images))
    x, y = np.minimum((uv * [width, height]).astype(np.int32), [width - 1, height - 1]).T
    assert np.array_equal(cell, (image * height + y) * width + x)
    wanted = error_map.densities(errors, by_image, by_pixel)
    # Probabilities are differences of float32 sums up to 1: off by U each, times the number of intervals.
    image_error = 0.5 * n_images * 2 * U
    cell_error = 0.5 * height * width * 4 * U
    bound = wanted.max() * 8 * U + image_error * wanted.max() * 2 + cell_error * wanted.max() * 2
    assert np.all(np.abs(density - wanted[image, y, x]) <= bound)
    counts = np.bincount(cell, minlength=wanted.size)
    expected = N_RAYS * wanted.ravel() / wanted.size
    # Images of uniform rays take turns: less variance than the multinomial's.
    assert np.all(np.abs(counts - expected) <= 6 * np.sqrt(expected) + 3)
    assert expected.sum() == pytest.approx(N_RAYS)
    # Within a cell rays are uniform: mean 1/2, standard deviation sqrt(1/12).
    within = uv * [width, height] % 1.0
    assert np.all(np.abs(within.mean(0) - 0.5) <= 6 * np.sqrt(1 / 12 / N_RAYS))


def test_weighted_by_the_inverse_density_rays_are_uniform() -> None:
    """What the reported loss rests on: the mean of f / density is that of f over all pixels."""
    errors = maps(6, 5, 4, seed=2)
    f = np.random.default_rng(5).uniform(size=errors.shape)
    _, _, density, cell = stages.draw_by_error(errors, True, True, seed=4, n_rays=N_RAYS)
    samples = f.ravel()[cell] / density
    assert abs(samples.mean() - f.mean()) <= 5 * samples.std() / np.sqrt(N_RAYS)
    assert abs(f.ravel()[cell].mean() - f.mean()) > 5 * samples.std() / np.sqrt(N_RAYS)


def test_map_side() -> None:
    """3.5 rays^(1/4), at most the resolution."""
    for rays in (0.0, 1.0, 100.0, 1e4, 81.0 * 16, 1e9):
        for limit in (1, 37, 800):
            assert stages.error_map_side(rays, limit) == error_map.map_side(rays, limit)
    assert stages.error_map_side(10_000.0, 800) == 35


@pytest.mark.parametrize("size", [(96, 200, 3), (48, 48, 4), (2, 5, 3), (72, 128, 4)])
def test_sharpness(size: tuple[int, int, int]) -> None:
    r = np.random.default_rng(6)
    image = r.integers(0, 256, size=size, dtype=np.uint8)
    image[: size[0] // 2] = 128  # a flat half
    if size[2] == 4:
        image[..., 3] = r.integers(100, 256, size=size[:2])
        image[: size[0] // 2, :, 3] = 200
    wanted = error_map.sharpness(image)
    got = stages.image_sharpness(image)
    assert got.shape == error_map.SHARPNESS_SIZE
    # Lumas are off by 16 U (two powers), Laplacians by 8 of these, their squares of up to 16 by twice 4 of that.
    assert np.all(np.abs(got - wanted) <= 8 * 8 * 16 * U + 16 * U * wanted)
    if size[0] > 40:
        assert got[:20].max() < 1e-4 < got[50:].mean()
