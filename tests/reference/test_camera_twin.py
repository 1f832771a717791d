"""The camera twin against what textbooks say."""

from __future__ import annotations

import numpy as np
import pytest

from . import camera


def test_quaternions() -> None:
    """Quarter turns, Rodrigues' formula, and products as products of matrices."""
    np.testing.assert_allclose(
        camera.to_matrix(camera.from_axis([0, 0, 1], np.pi / 2)), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        axis, angle = rng.normal(size=3), rng.uniform(-3, 3)
        k = np.cross(axis / np.linalg.norm(axis), np.eye(3)).T  # k v is axis x v
        rodrigues = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
        p, q = camera.from_axis(axis, angle), camera.from_axis(rng.normal(size=3), 1.0)
        np.testing.assert_allclose(camera.to_matrix(p), rodrigues, atol=1e-12)
        product = camera.to_matrix(camera.multiply(p, q))
        np.testing.assert_allclose(product, camera.to_matrix(p) @ camera.to_matrix(q), atol=1e-12)
        halfway = camera.slerp(q, camera.multiply(camera.from_axis(axis, abs(angle)), q), 0.5)
        np.testing.assert_allclose(
            camera.to_matrix(halfway),
            camera.to_matrix(camera.multiply(camera.from_axis(axis, abs(angle) / 2), q)),
            atol=1e-9,
        )


def test_spline_weights() -> None:
    """Cubic B-splines weigh 1/6, 4/6, 1/6 at a point; quadratic ones 1/8, 6/8, 1/8."""
    assert [camera.spline_weight(3, 0.0, k) for k in (-1, 0, 1)] == pytest.approx([1 / 6, 4 / 6, 1 / 6])
    assert [camera.spline_weight(2, 0.0, k) for k in (-1, 0, 1)] == pytest.approx([1 / 8, 6 / 8, 1 / 8])
    assert [camera.spline_weight(1, 0.3, k) for k in (0, 1)] == pytest.approx([0.7, 0.3])
    for order in range(4):
        for t in (0.1, 0.4, 0.8):
            assert sum(camera.spline_weight(order, t, k) for k in range(-3, 5)) == pytest.approx(1)


def test_screw_motion() -> None:
    """A turn about a fixed axis: every point of the way is that turn by a part of the angle."""
    center = np.array([0.3, -0.2, 0.5])

    def turned(angle: float) -> np.ndarray:
        r = camera.to_matrix(camera.from_axis([0, 1, 0], angle))
        return np.column_stack([r, center + r @ ([1.0, 0.4, 0.0] - center)])

    for t in (0.0, 0.25, 0.6, 1.0):
        np.testing.assert_allclose(camera.screw_between(turned(0.2), turned(1.7), t), turned(0.2 + 1.5 * t), atol=1e-8)
    shifted = camera.screw_between(np.eye(4)[:3], np.column_stack([np.eye(3), [2, 4, 6]]), 0.25)
    np.testing.assert_allclose(shifted[:, 3], [0.5, 1, 1.5], atol=1e-8)
