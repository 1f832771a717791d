"""Camera paths and rays in float64: quaternions, B-splines by de Boor's recursion, screw motions by matrix functions.

Nothing here shares a closed form with the library: rotations go by quaternion products and by power series of matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


# --- quaternions x, y, z, w


def multiply(a: ArrayLike, b: ArrayLike) -> F64:
    """Hamilton product: first b, then a."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    return np.append(vector, a[3] * b[3] - a[:3] @ b[:3])


def to_matrix(q: ArrayLike) -> F64:
    """Rotation matrix of a unit quaternion: its columns are q e q^-1."""
    q = np.asarray(q, np.float64)
    inverse = q * [-1, -1, -1, 1]
    return np.column_stack([multiply(multiply(q, np.append(e, 0.0)), inverse)[:3] for e in np.eye(3)])


def from_axis(axis: ArrayLike, angle: float) -> F64:
    axis = np.asarray(axis, np.float64)
    return np.append(np.sin(angle / 2) * axis / np.linalg.norm(axis), np.cos(angle / 2))


def slerp(a: ArrayLike, b: ArrayLike, t: float) -> F64:
    """Shoemake's, the shorter way."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a @ b < 0:
        b = -b
    angle = np.arccos(np.clip(a @ b, -1, 1))
    if angle < 1e-9:
        return a
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


# --- screw motions


def _exp(m: F64) -> F64:
    """Matrix exponential: scaling, series, squaring."""
    halvings = 12
    term, total = np.eye(4), np.eye(4)
    for k in range(1, 16):
        term = term @ (m / 2**halvings) / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


def _sqrt(m: F64) -> F64:
    """Denman-Beavers iteration."""
    y, z = m, np.eye(4)
    for _ in range(30):
        y, z = (y + np.linalg.inv(z)) / 2, (z + np.linalg.inv(y)) / 2
    return y


def _log(m: F64) -> F64:
    """Matrix logarithm: square roots until the series converges."""
    roots = 10
    for _ in range(roots):
        m = _sqrt(m)
    x, term, total = m - np.eye(4), np.eye(4), np.zeros((4, 4))
    for k in range(1, 16):
        term = term @ x
        total = total - (-1) ** k * term / k
    return total * 2**roots


def screw_between(a: ArrayLike, b: ArrayLike, t: float) -> F64:
    """exp(t log(b a^-1)) a for camera matrices (3, 4)."""
    a4, b4 = (np.vstack([np.asarray(m, np.float64), [0, 0, 0, 1]]) for m in (a, b))
    return (_exp(t * _log(b4 @ np.linalg.inv(a4))) @ a4)[:3]


# --- B-splines


def _basis(i: int, order: int, x: float) -> float:
    """Basis function of de Boor's recursion over integer knots, with support [i, i + order + 1)."""
    if order == 0:
        return 1.0 if i <= x < i + 1 else 0.0
    left = (x - i) / order * _basis(i, order - 1, x)
    return left + (i + order + 1 - x) / order * _basis(i + 1, order - 1, x)


def spline_weight(order: int, t: float, point: int) -> float:
    """Weight of a control point at its integer position, at t: the basis function that is centred there."""
    centre = (order + 1) / 2
    return _basis(0, order, t - point + centre)


def eval_path(keyframes: list[dict[str, F64 | float]], order: int, loop: bool, play_time: float) -> dict[str, F64]:
    """Keyframes {R, T, slice, scale, fov, aperture_size, timestamp} -> the same at a play time (A.13)."""
    n = len(keyframes)
    times = np.array([k["timestamp"] for k in keyframes], np.float64)
    at = play_time * (times[-1] if loop else times[n - 2])
    begins = np.append(0.0, times)  # the way from keyframe i to the next is [begins[i], begins[i + 1]]
    segments = n if loop else n - 1
    i = min(int(np.searchsorted(times, at, side="right")), segments - 1)
    x = i + (at - begins[i]) / (begins[i + 1] - begins[i])
    names = ("T", "slice", "scale", "fov", "aperture_size")
    result: dict[str, F64] = {name: np.zeros(3) if name == "T" else np.float64(0) for name in names}
    rotation, first = np.zeros(4), None
    for point in range(i - 2, i + 4):
        weight = spline_weight(order, x, point)
        if weight == 0:
            continue
        k = keyframes[point % n if loop else int(np.clip(point, 0, n - 1))]
        for name in names:
            result[name] = result[name] + weight * np.asarray(k[name], np.float64)
        q = np.asarray(k["R"], np.float64)
        first = q if first is None else first
        rotation = rotation + weight * np.sign(q @ first or 1.0) * q
    return {**result, "R": rotation / np.linalg.norm(rotation)}


# --- rays


def focused_ray(
    pose: ArrayLike, plane_point: ArrayLike, focus_distance: float, lens_point: ArrayLike
) -> tuple[F64, F64]:
    """Origin and direction of a thin lens' ray: from lens_point (2,), on its axes, to where the pinhole's ray through
    plane_point (x, y, at z = 1) meets the plane of focus."""
    m = np.asarray(pose, np.float64)
    x, y = plane_point
    focus = m[:, 3] + m[:, :3] @ (focus_distance * np.array([x, y, 1.0]))
    u, v = lens_point
    origin = m[:, 3] + m[:, :3] @ np.array([u, v, 0.0])
    return origin, (focus - origin) / np.linalg.norm(focus - origin)
