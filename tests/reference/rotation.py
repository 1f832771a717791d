"""Rotations as vectors, and cameras that move while they take a picture (C.5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


def matrix(vector: ArrayLike) -> F64:
    """(3, 3) rotation about ``vector`` by its length in radians: the exponential of its cross-product matrix."""
    x, y, z = np.asarray(vector, dtype=np.float64)
    angle = float(np.sqrt(x * x + y * y + z * z))
    k = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-6:
        return np.eye(3) + k + 0.5 * k @ k
    return np.eye(3) + np.sin(angle) / angle * k + (1.0 - np.cos(angle)) / angle**2 * k @ k


def vector(rotation: ArrayLike) -> F64:
    """Inverse of :func:`matrix` for angles below pi - 1e-3."""
    r = np.asarray(rotation, dtype=np.float64)
    axis = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    sine = 0.5 * float(np.linalg.norm(axis))
    angle = np.arctan2(sine, 0.5 * (np.trace(r) - 1.0))
    return axis * (0.5 * angle / sine if sine > 1e-12 else 0.5)


def quaternion(rotation: ArrayLike) -> F64:
    """(w, x, y, z) of a rotation matrix, w >= 0, by its axis and angle."""
    v = vector(rotation)
    angle = float(np.linalg.norm(v))
    return np.concatenate([[np.cos(angle / 2)], (np.sin(angle / 2) / angle if angle > 0 else 0.5) * v])


def slerp(a: F64, b: F64, s: float) -> F64:
    """Quaternion at share s of the shorter way from a to b (Shoemake 1985)."""
    b = b if a @ b >= 0 else -b
    angle = np.arccos(np.clip(a @ b, -1.0, 1.0))
    if angle < 1e-7:
        q = a + s * (b - a)
    else:
        q = (np.sin((1 - s) * angle) * a + np.sin(s * angle) * b) / np.sin(angle)
    return q / np.linalg.norm(q)


def matrix_of_quaternion(q: F64) -> F64:
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def moving_pose(start: ArrayLike, end: ArrayLike, abcd: ArrayLike, uv: ArrayLike, tau: float) -> F64:
    """(3, 4) at s = A + B u + C v + D tau: rotation by slerp, position by lerp."""
    start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    s = float(np.dot(abcd, [1.0, uv[0], uv[1], tau]))
    rotation = matrix_of_quaternion(slerp(quaternion(start[:, :3]), quaternion(end[:, :3]), s))
    return np.column_stack([rotation, start[:, 3] + s * (end[:, 3] - start[:, 3])])
