"""Directions, lenses and boxes against the twins."""

from __future__ import annotations

import numpy as np
import pytest
from pyngp._core import BoundingBox, LensMode, stages
from reference import lens, march
from reference.sh import basis, sh4

U = 2.0**-24


def unit_vectors(n: int, seed: int) -> np.ndarray:
    d = np.random.default_rng(seed).normal(size=(n, 3))
    d = np.concatenate([d, np.eye(3), -np.eye(3)])
    return (d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_spherical_harmonics(degree: int) -> None:
    """The header's own bound; coefficients of a lower degree are the head of a higher one."""
    d = unit_vectors(2000, 7)
    got = stages.spherical_harmonics(degree, d)
    assert got.shape == (len(d), degree**2)
    assert np.abs(got - sh4(d)[:, : degree**2]).max() < 1e-6


@pytest.mark.parametrize("degree", [5, 6, 7, 8])
def test_spherical_harmonics_of_high_degree(degree: int) -> None:
    """The header's bound, against Rodrigues' formula; the first bands are those of degree 4, bit for bit."""
    d = unit_vectors(5000, 8)
    got = stages.spherical_harmonics(degree, d)
    assert got.shape == (len(d), degree**2)
    assert np.abs(got - basis(d, degree)).max() < 2e-6
    assert np.array_equal(got[:, :16], stages.spherical_harmonics(4, d))


# name: mode, parameters, (width, height), focal lengths, principal point; fox is data/fox
FOX = (0.0578421, -0.0805099, -0.000980296, 0.00015575)
CAMERAS = {
    "perspective": ("Perspective", (), (1080, 1920), (1375.52, 1374.49), (0.513, 0.503)),
    "fox": ("OpenCV", FOX, (1080, 1920), (1375.52, 1374.49), (0.51348, 0.50274)),
    "barrel": ("OpenCV", (-0.28, 0.07, 2e-4, 1.8e-5), (1226, 370), (707.0, 700.0), (0.491, 0.495)),
    "fisheye": (
        "OpenCVFisheye",
        (0.02, -4e-3, 1e-3, -2e-4),
        (800, 600),
        (400.0, 410.0),
        (0.48, 0.53),
    ),
    "fisheye 150": (
        "OpenCVFisheye",
        (-0.02, 0.01, -4e-3, 1e-3),
        (1280, 720),
        (500.0, 500.0),
        (0.5, 0.5),
    ),
}


def float32(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(np.float32(v)) for v in values)


@pytest.mark.parametrize("name", CAMERAS)
def test_lens(name: str) -> None:
    """Pixel -> ray against Newton in float64, and ray -> pixel back to where it came from."""
    mode, params, size, focal, principal = CAMERAS[name]
    r = np.random.default_rng(8)
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5]])
    uv = np.concatenate([r.uniform(size=(400, 2)), corners]).astype(np.float32)
    args = (getattr(LensMode, mode), list(params), *size, focal, principal)
    got = np.array([stages.lens_ray(*args, at) for at in uv])
    padded = (*float32(params), 0.0, 0.0, 0.0, 0.0)[:4]
    wanted = lens.ray_direction(uv, size, float32(focal), float32(principal), mode, padded)
    assert np.all(got[:, 2] == 1.0)
    # the angle; z = 1 magnifies it by |d|^2 towards the rim of a fisheye
    length = np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs((got - wanted) / length**2).max() < 1e-6
    back = np.array([stages.lens_project(*args, d) for d in got])
    pixels = np.abs(back - uv) * size
    # uv itself is rounded by U, up to 1.1e-4 px at a width of 1920: 4 such roundings, and 2 of the
    # undistorted position, which is longer than the distorted one at a fisheye's rim
    undistorted = max(focal) * np.linalg.norm(wanted[:, :2], axis=1, keepdims=True)
    assert np.all(pixels <= U * (4 * max(size) + 2 * undistorted))
    if params:  # the distortion is no accident
        plain = np.array([stages.lens_ray(LensMode.Perspective, [], *args[2:], at) for at in uv])
        assert np.abs(plain - got).max() > 1e-3


@pytest.mark.parametrize("name", CAMERAS)
def test_lens_projection(name: str) -> None:
    """Camera-space points at any distance -> image position, against the twin."""
    mode, params, size, focal, principal = CAMERAS[name]
    r = np.random.default_rng(9)
    half = np.array(size) / (2 * np.array(focal))
    xy = r.uniform(-1, 1, size=(300, 2)) * half
    points = np.concatenate([xy, np.ones((300, 1))], axis=1) * r.uniform(0.1, 9, size=(300, 1))
    points = points.astype(np.float32)
    args = (getattr(LensMode, mode), list(params), *size, focal, principal)
    got = np.array([stages.lens_project(*args, p) for p in points])
    padded = (*float32(params), 0.0, 0.0, 0.0, 0.0)[:4]
    wanted = lens.project(points, size, float32(focal), float32(principal), mode, padded)
    # about 8 roundings of the offset from the centre (at most 1), and one of the sum
    assert np.abs(got - wanted).max() <= 10 * U


def test_ray_box() -> None:
    """Entry and exit of a box; misses are FLT_MAX twice; axis-parallel rays."""
    r = np.random.default_rng(10)
    low, high = np.float32([-0.5, 0.0, 0.2]), np.float32([1.5, 1.0, 0.9])
    box = BoundingBox(low, high)
    origin = r.uniform(-2, 3, size=(500, 3)).astype(np.float32)
    aim = r.uniform(low - 0.5, high + 0.5, size=(500, 3)) - origin
    direction = (aim / np.linalg.norm(aim, axis=1, keepdims=True)).astype(np.float32)
    direction[400:450, 0] = 0.0
    near, far = march.ray_box(origin, direction, low, high)
    hits = 0
    for i in range(500):
        entry, leave = box.ray_intersect(origin[i], direction[i])
        if abs(near[i] - far[i]) < 1e-5:  # grazes an edge: rounding decides
            continue
        if near[i] > far[i]:
            assert entry == leave == np.finfo(np.float32).max
        else:
            hits += 1
            # a difference and a quotient, each rounded once
            assert entry == pytest.approx(near[i], rel=2.1 * U)
            assert leave == pytest.approx(far[i], rel=2.1 * U)
    assert 100 < hits < 450
