"""B-splines, screw motions, slerp, lens discs, and the rays of depth of field and motion blur, against the twins."""

from __future__ import annotations

import numpy as np
import pytest
from pyngp import EditingKernel, Lens, LensMode
from pyngp._core import stages
from reference import camera

U = 2.0**-24  # half a unit in the last place of float32 at 1
WIDTH, HEIGHT, FOCAL, CENTER = 40, 30, (55.0, 50.0), (0.45, 0.55)
INTRINSICS = (WIDTH, HEIGHT, *FOCAL, *CENTER)


def pose(rng: np.random.Generator, turn: float = np.pi) -> np.ndarray:
    q = camera.from_axis(rng.normal(size=3), rng.uniform(0, turn))
    return np.column_stack([camera.to_matrix(q), rng.uniform(-1, 2, 3)]).astype(np.float32)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_spline_weights(order):
    """Each is a cubic in t of at most 8 roundings of values up to 1."""
    for t in np.float32([0, 0.1, 0.25, 0.499, 0.5, 0.6, 0.999, 1.0]):
        first, weights = stages.bspline_weights(order, t)
        assert len(weights) == order + 1
        assert sum(weights) == pytest.approx(1, abs=8 * U)
        if t == 1 and order == 0:  # the twin's support is half-open
            continue
        for k, weight in enumerate(weights):
            assert weight == pytest.approx(camera.spline_weight(order, float(t), first + k), abs=8 * U), (t, k)


@pytest.mark.parametrize("order", [2, 3])
def test_splines_are_smooth_across_keyframes(order):
    """At the end of a segment the weights are those at the start of the next, seen from one keyframe further."""
    end_first, end = stages.bspline_weights(order, 1.0)
    start_first, start = stages.bspline_weights(order, 0.0)
    at_end = {end_first + k: w for k, w in enumerate(end) if w}
    at_start = {start_first + k + 1: w for k, w in enumerate(start) if w}
    assert at_end.keys() == at_start.keys()
    for point, weight in at_end.items():
        assert weight == pytest.approx(at_start[point], abs=8 * U)


def test_editing_kernels():
    kernel = EditingKernel
    for x in (-1.5, -0.5, 0.0, 0.25, 0.999, 1.0, 2.0):
        inside = abs(x) < 1
        expected = {
            kernel.Gaussian: np.exp(-2 * x * x),
            kernel.Quartic: inside * (1 - x * x) ** 2,
            kernel.Hat: inside * (1 - abs(x)),
            kernel.Box: float(inside),
            getattr(kernel, "None"): float(x == 0),
        }
        for kind, value in expected.items():
            assert stages.editing_weight(kind, x) == pytest.approx(value, abs=4 * U), (kind, x)


def test_screw_motion():
    """Through both poses, and exp(t log) between; positions are up to 10 here, through some 30 roundings.

    The rotation vector's rounding, 4 U of up to pi, turns by as much, which also moves the position by its radius.
    """
    rng = np.random.default_rng(3)
    for turn in (1e-4, 0.02, 0.5, 2.5):
        for _ in range(20):
            a = pose(rng)
            q = camera.from_axis(rng.normal(size=3), turn)
            b = np.column_stack([camera.to_matrix(q) @ a[:, :3], rng.uniform(-1, 2, 3)]).astype(np.float32)
            for t in (0.0, 0.3, 0.5, 1.0):
                wanted = camera.screw_between(a, b, t)
                np.testing.assert_allclose(
                    stages.screw_between(a, b, t), wanted, atol=10 * 30 * U, err_msg=f"{turn} {t}"
                )
            np.testing.assert_allclose(stages.screw_between(a, b, 1.0), b, atol=10 * 30 * U)


def test_shutter_poses():
    """Slerp of the rotation, lerp of the position (C.5)."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        p = camera.from_axis(rng.normal(size=3), rng.uniform(0, 3))
        q = camera.multiply(camera.from_axis(rng.normal(size=3), rng.uniform(0, 2.9)), p)
        a = np.column_stack([camera.to_matrix(p), rng.normal(size=3)])
        b = np.column_stack([camera.to_matrix(q), rng.normal(size=3)])
        for share in (0.0, 0.2, 0.7, 1.0):
            got = stages.shutter_pose(a, b, share)
            np.testing.assert_allclose(got[:, :3], camera.to_matrix(camera.slerp(p, q, share)), atol=30 * U)
            np.testing.assert_allclose(got[:, 3], (1 - share) * a[:, 3] + share * b[:, 3], atol=30 * U)


def test_points_of_the_disc():
    """Concentric: the square's rings become the disc's, and equal areas stay equal."""
    grid = (np.arange(128) + 0.5) / 128
    points = np.array([stages.disc_point((x, y)) for x in grid for y in grid], np.float64)
    square = 2 * np.array([(x, y) for x in grid for y in grid]) - 1
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), np.abs(square).max(axis=1), atol=4 * U)
    # Equal areas: as many points in each of 8 sectors of equal angle.
    sectors = np.histogram(np.arctan2(points[:, 1], points[:, 0]), 8, (-np.pi, np.pi))[0]
    assert (np.abs(sectors - len(points) / 8) <= 128).all()
    assert stages.disc_point((0.5, 0.5)).tolist() == [0, 0]


def plane_point(x: int, y: int, offset: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    uv = np.array([(x + offset[0]) / WIDTH, (y + offset[1]) / HEIGHT])
    return (uv - CENTER) * [WIDTH, HEIGHT] / FOCAL


def ray(pose, end=None, blur=(0.0, 1.0), near=0.0, pixel=(7, 19), sample=0, lens=None):
    return stages.render_ray(pose, end, INTRINSICS, lens or Lens(), blur, near, pixel, sample)


def test_rays_through_a_lens():
    """From its disc to where the pinhole's ray is in focus; all parts of the disc are used alike."""
    rng = np.random.default_rng(5)
    aperture, distance, n = 0.07, 1.3, 64
    lens_points = []
    for case in range(20):
        m, pixel = pose(rng), (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
        for sample in range(n) if case == 0 else range(2):
            origin, direction, at = ray(m, blur=(aperture, distance), pixel=pixel, sample=sample)
            np.testing.assert_array_equal(at, m)
            lens_point = m[:, :3].T.astype(np.float64) @ (origin.astype(np.float64) - m[:, 3])
            assert abs(lens_point[2]) < 30 * U and np.hypot(*lens_point[:2]) <= aperture * (1 + 1e-5)
            if case == 0:
                lens_points.append(lens_point[:2])
            if sample > 0:  # elsewhere in its pixel
                continue
            wanted = camera.focused_ray(m, plane_point(*pixel), distance, lens_point[:2])
            np.testing.assert_allclose(origin, wanted[0], atol=30 * U)
            np.testing.assert_allclose(direction, wanted[1], atol=30 * U)
    # A disc's mean is 0 and its mean square distance half its radius squared; 64 stratified points are much closer to
    # that than independent ones, whose deviations would be aperture / 2 / 8 and aperture^2 / sqrt(12) / 8.
    points = np.array(lens_points)
    assert np.abs(points.mean(axis=0)).max() < aperture / 16
    assert abs((points**2).sum(axis=1).mean() - aperture**2 / 2) < aperture**2 / np.sqrt(12) / 8


def test_a_wide_lens_focuses_at_a_distance():
    """A lens that looks everywhere has no plane of focus, but a sphere."""
    m = pose(np.random.default_rng(6))
    lens = Lens(LensMode.LatLong)
    _, straight, _ = ray(m, lens=lens)
    origin, direction, _ = ray(m, blur=(0.05, 0.8), lens=lens)
    to_focus = m[:, 3] + 0.8 * straight.astype(np.float64) - origin
    np.testing.assert_allclose(direction, to_focus / np.linalg.norm(to_focus), atol=30 * U)


def test_rays_of_a_moving_camera():
    """From where it is at the sample's time, which is spread evenly over the time that the shutter is open."""
    rng = np.random.default_rng(7)
    p = camera.from_axis(rng.normal(size=3), 1.0)
    q = camera.multiply(camera.from_axis(rng.normal(size=3), 0.8), p)
    a = np.column_stack([camera.to_matrix(p), [0.1, 0.2, 0.3]])
    b = np.column_stack([camera.to_matrix(q), [0.9, -0.2, 0.5]])
    shares = []
    for sample in range(64):
        origin, direction, at = ray(a, end=b, near=0.0, sample=sample)
        share = float((origin[0] - np.float64(a[0, 3])) / (b[0, 3] - a[0, 3]))
        shares.append(share)
        np.testing.assert_allclose(origin, a[:, 3] + share * (b[:, 3] - a[:, 3]), atol=30 * U)
        rotation = camera.to_matrix(camera.slerp(p, q, share))
        np.testing.assert_allclose(at[:, :3], rotation, atol=60 * U)
        if sample == 0:
            wanted = rotation @ np.append(plane_point(7, 19), 1.0)
            np.testing.assert_allclose(direction, wanted / np.linalg.norm(wanted), atol=60 * U)
    assert min(shares) >= 0 and max(shares) <= 1
    counts = np.histogram(shares, 16, (0, 1))[0]
    assert (counts == 4).all()  # a scrambled Sobol sequence is stratified
    other = [ray(a, end=b, pixel=(8, 19), sample=s)[0][0] for s in range(4)]
    assert not np.allclose(other, [ray(a, end=b, sample=s)[0][0] for s in range(4)])  # each pixel has its own times


def test_hues():
    """Red, green and blue a third of a turn apart, as colorsys has them."""
    import colorsys

    for hue in np.linspace(-1, 2, 31):
        for value in (0.0, 0.4, 1.0):
            wanted = colorsys.hsv_to_rgb(hue % 1.0, 1.0, value)
            np.testing.assert_allclose(stages.hue_color(hue, value), wanted, atol=1e-5)
