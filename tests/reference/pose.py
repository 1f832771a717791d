"""Coordinate transforms between the input's frame and NGP space (C.5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
CYCLE = (1, 2, 0)  # new rows (0, 1, 2) = old rows (1, 2, 0)
UNCYCLE = (2, 0, 1)


def _column_signs(from_mitsuba: bool) -> F64:
    signs = np.array([1.0, -1.0, -1.0, 1.0])
    return signs * np.array([-1.0, 1.0, -1.0, 1.0]) if from_mitsuba else signs


def pose_to_ngp(pose: ArrayLike, scale: float, offset: ArrayLike, from_mitsuba: bool = False) -> F64:
    """NGP camera (3, 4) of an OpenGL camera-to-world matrix (>= 3, 4) in world units."""
    m = np.asarray(pose, dtype=np.float64)[:3, :4] * _column_signs(from_mitsuba)
    m[:, 3] = m[:, 3] * scale + np.asarray(offset)
    return m if from_mitsuba else m[CYCLE, :]


def pose_from_ngp(pose: ArrayLike, scale: float, offset: ArrayLike, from_mitsuba: bool = False) -> F64:
    """Inverse of :func:`pose_to_ngp`: OpenGL camera-to-world (3, 4)."""
    m = np.asarray(pose, dtype=np.float64)[:3, :4]
    m = m.copy() if from_mitsuba else m[UNCYCLE, :]
    m[:, 3] = (m[:, 3] - np.asarray(offset)) / scale
    return m * _column_signs(from_mitsuba)


def point_to_ngp(p: ArrayLike, scale: float, offset: ArrayLike, from_mitsuba: bool = False) -> F64:
    """NGP positions (..., 3) of world positions (..., 3)."""
    q = np.asarray(p, dtype=np.float64) * scale + np.asarray(offset)
    return q if from_mitsuba else q[..., CYCLE]


def point_from_ngp(p: ArrayLike, scale: float, offset: ArrayLike, from_mitsuba: bool = False) -> F64:
    """World positions (..., 3) of NGP positions (..., 3)."""
    q = np.asarray(p, dtype=np.float64)
    q = q if from_mitsuba else q[..., UNCYCLE]
    return (q - np.asarray(offset)) / scale


def direction_to_ngp(d: ArrayLike, from_mitsuba: bool = False) -> F64:
    """NGP directions (..., 3): cycled, or negated for Mitsuba."""
    d = np.asarray(d, dtype=np.float64)
    return -d if from_mitsuba else d[..., CYCLE]


def direction_from_ngp(d: ArrayLike, from_mitsuba: bool = False) -> F64:
    """World directions (..., 3) of NGP directions."""
    d = np.asarray(d, dtype=np.float64)
    return -d if from_mitsuba else d[..., UNCYCLE]


def up_to_ngp(up: ArrayLike) -> F64:
    """NGP up = (up_y, up_z, up_x) (C.2)."""
    return np.asarray(up, dtype=np.float64)[list(CYCLE)]


def scene_box(aabb_scale: float) -> tuple[F64, F64]:
    """Cube of side aabb_scale centred at 0.5."""
    return np.full(3, 0.5 - aabb_scale / 2.0), np.full(3, 0.5 + aabb_scale / 2.0)
