"""Cameras that circle a scene, derived from the cameras that it was captured with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyngp.testbed import Testbed

_FULL_CIRCLE = np.radians(270)  # captures that cover more than this are taken to surround the subject


def subject_point(testbed: Testbed, cameras: NDArray, n_views: int = 12, size: int = 24) -> NDArray[np.float64] | None:
    """Median of the surface points that the model shows in the middle of some of the cameras; None if it shows none."""
    points = []
    for pose in cameras[:: max(1, len(cameras) // n_views)]:
        depth = testbed.render_channels(pose, size, size, fov_x=15.0, channels=("depth",))["depth"]
        if np.isfinite(depth).mean() > 0.5:
            points.append(pose[:, 3] - pose[:, 2] * np.nanmedian(depth))
    return np.median(points, axis=0) if points else None


def _look_at(position: NDArray, target: NDArray, up: NDArray) -> NDArray[np.float64]:
    back = position - target
    back /= np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    return np.column_stack([right, np.cross(back, right), back, position])


def focus_point(cameras: NDArray) -> NDArray[np.float64]:
    """Point nearest to all optical axes in the least-squares sense; cameras (N,3,4), OpenGL axes."""
    forward, position = -cameras[:, :, 2], cameras[:, :, 3]
    projectors = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    rhs = (projectors @ position[:, :, None]).sum(0)[:, 0]
    # Parallel axes leave the distance open; a weak pull towards a point in front of the cameras decides it.
    spread = np.linalg.norm(position - position.mean(0), axis=1).mean() + 1e-9
    prior = position.mean(0) + forward.mean(0) * spread
    weight = 1e-3 * len(cameras)
    return np.linalg.solve(projectors.sum(0) + weight * np.eye(3), rhs + weight * prior)


def orbit_cameras(cameras: NDArray, n: int, center: NDArray | None = None) -> NDArray[np.float64]:
    """n poses (n,3,4), OpenGL axes, around what the given cameras (N,3,4) look at, at their median distance and height.

    center: what to circle; by default the point nearest to all optical axes.

    A full circle where the capture surrounds the subject; otherwise a sweep there and back within the middle of the
    captured angles, since nothing is known beyond them.
    """
    cameras = np.asarray(cameras, np.float64)
    center = focus_point(cameras) if center is None else np.asarray(center, np.float64)
    up = cameras[:, :, 1].mean(0)
    up /= np.linalg.norm(up) + 1e-12
    offset = cameras[:, :, 3] - center
    height = offset @ up
    flat = offset - height[:, None] * up
    axis_x = flat[0] / (np.linalg.norm(flat[0]) + 1e-12)
    axis_y = np.cross(up, axis_x)
    angles = np.arctan2(flat @ axis_y, flat @ axis_x)
    ordered = np.sort(angles)
    gaps = np.diff(np.append(ordered, ordered[0] + 2 * np.pi))
    widest = int(np.argmax(gaps))
    covered = 2 * np.pi - gaps[widest]
    phase = 2 * np.pi * np.arange(n) / max(n, 1)
    if covered > _FULL_CIRCLE:
        path = phase
    else:
        start = ordered[(widest + 1) % len(ordered)]
        path = start + covered * (0.5 - 0.35 * np.cos(phase))
    radius, level = np.median(np.linalg.norm(flat, axis=1)), np.median(height)
    circle = np.cos(path)[:, None] * axis_x + np.sin(path)[:, None] * axis_y
    positions = center + radius * circle + level * up
    return np.stack([_look_at(p, center, up) for p in positions])
