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


# name: mode, parameters, (width, height), focal lengths, principal point
OTHER_CAMERAS = {
    "ftheta": ("FTheta", (0.0, 2e-3, 1e-7, -1e-10, 1e-13, 1280.0, 720.0), (640, 360), (1, 1), (0.49, 0.52)),
    "ftheta 190": ("FTheta", (0.02, 4e-3, 0, 0, 0, 800.0, 600.0), (400, 300), (1, 1), (0.5, 0.5)),
    "latlong": ("LatLong", (), (1024, 512), (1, 1), (0.4, 0.6)),
    "equirectangular": ("Equirectangular", (), (1024, 512), (1, 1), (0.4, 0.6)),
    "orthographic": ("Orthographic", (), (640, 480), (310.0, 300.0), (0.48, 0.53)),
}


@pytest.mark.parametrize("name", OTHER_CAMERAS)
def test_other_lenses(name: str) -> None:
    """Both directions against float64, and where no ray goes."""
    mode, params, size, focal, principal = OTHER_CAMERAS[name]
    r = np.random.default_rng(8)
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5], principal])
    uv = np.concatenate([r.uniform(size=(400, 2)), corners]).astype(np.float32)
    args = (getattr(LensMode, mode), list(params), *size, focal, principal)
    twin = {"resolution": size, "focal": float32(focal), "centre": float32(principal), "mode": mode}
    got = np.array([stages.lens_ray(*args, at) for at in uv])
    wanted = lens.ray_direction(uv, **twin, params=float32(params))
    # angles up to pi with 2 roundings, a handful of roundings of numbers up to 1
    assert np.abs(got - wanted).max() < 14 * U
    exists = np.any(got != 0, axis=1)
    assert np.array_equal(exists, np.any(wanted != 0, axis=1))
    assert exists.all() == (mode != "FTheta")
    assert np.abs(np.linalg.norm(got[exists], axis=1) - 1).max() < 8 * U
    origin = np.array([stages.lens_origin(*args, at) for at in uv])
    assert np.abs(origin - lens.ray_origin(uv, **twin)).max() < 4 * U * np.abs(origin).max() + 1e-30

    points = r.normal(size=(400, 3)) * [1, 1, 0.7]
    points = (points * r.uniform(0.1, 9, size=(400, 1))).astype(np.float32)
    got = np.array([stages.lens_project(*args, p) for p in points])
    ahead = points[:, 2] > 0 if mode in ("FTheta", "Orthographic") else np.full(400, True)
    wanted = lens.project(points, **twin, params=float32(params))
    wanted[~ahead] = np.nan
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    assert 50 < np.isfinite(got[:, 0]).sum() <= 400
    # FTheta: an angle and its polynomial, each 3 roundings of up to pi / 2, over the slope; else a few roundings
    scale = np.nanmax(np.abs(wanted))
    assert np.nanmax(np.abs(got - wanted)) <= (16 if mode == "FTheta" else 8) * U * max(scale, 1)


def random_lens(mode: str, r: np.random.Generator, size: tuple[int, int]) -> tuple[list[float], tuple, tuple]:
    """Parameters, focal lengths and principal point of a lens whose distortion grows all over the picture."""
    principal = tuple(r.uniform(0.45, 0.55, size=2))
    focal = tuple(max(size) * r.uniform(0.7, 1.5) * r.uniform(0.97, 1.03, size=2))
    half = 0.56 * np.hypot(*size) / min(focal)
    if mode == "OpenCV":
        k = r.uniform(-0.12, 0.2, size=2) / [half**2, half**4]
        return [*k, *r.uniform(-0.01, 0.01, size=2)], focal, principal
    if mode == "OpenCVFisheye":
        return list(r.uniform(-0.02, 0.05, size=4) / [1, 2, 4, 8]), focal, principal
    if mode == "FTheta":
        w = r.uniform(0.5, 3) * size[0]
        h = w * size[1] / size[0] * r.uniform(0.98, 1.02)
        reach = 0.56 * np.hypot(w, h)
        widest = r.uniform(0.3, 1.7)  # radians at the corner, which may be beyond what the lens sees
        bend = r.uniform(-0.05, 0.15, size=3)
        p = widest * np.array([1 - bend.sum(), *bend]) / reach ** np.arange(1, 5)
        return [r.uniform(0, 0.01), *p, w, h], focal, principal
    return [], focal, principal


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", lens.MODES)
def test_pixel_to_ray_to_pixel(mode: str, seed: int) -> None:
    """1e-4 pixels over the whole picture, of which uv itself takes up to 1.2e-5 (half an ulp of 400 px)."""
    r = np.random.default_rng(100 + seed)
    size = (400, 300)
    params, focal, principal = random_lens(mode, r, size)
    args = (getattr(LensMode, mode), params, *size, focal, principal)
    x, y = np.meshgrid(np.arange(0, 400, 7), np.arange(0, 300, 7))
    uv = ((np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) / size).astype(np.float32)
    seen = 0
    for at in uv:
        d, origin = stages.lens_ray(*args, at), stages.lens_origin(*args, at)
        if not d.any():
            assert mode == "FTheta"
            continue
        seen += 1
        back = stages.lens_project(*args, origin + d)
        assert np.abs((back - at) * size).max() < 1e-4, (at, back)
    assert seen == len(uv) or (mode == "FTheta" and seen > len(uv) / 2)


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
