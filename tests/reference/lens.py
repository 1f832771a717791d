"""Lens models (C.6).

``uv`` in [0, 1]^2 of the image, y down; camera space is x right, y down, z forward; directions are
not normalised.  ``focal`` is in pixels, ``resolution`` = (W, H), ``centre`` = principal point in
uv.  A zero direction and a NaN position stand for "no ray".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
MODES = ("Perspective", "OpenCV", "OpenCVFisheye", "FTheta", "LatLong", "Equirectangular", "Orthographic")


def opencv_offset(params: Sequence[float], xy: ArrayLike) -> F64:
    """Distortion offset delta (N, 2) at undistorted points (N, 2); params k1, k2, p1, p2."""
    k1, k2, p1, p2 = params
    x, y = np.moveaxis(np.asarray(xy, dtype=np.float64), -1, 0)
    r2 = x * x + y * y
    rho = r2 * (k1 + k2 * r2)
    dx = x * rho + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x)
    dy = y * rho + 2.0 * p2 * x * y + p1 * (r2 + 2.0 * y * y)
    return np.stack([dx, dy], axis=-1)


def opencv_offset_jacobian(params: Sequence[float], xy: ArrayLike) -> F64:
    """(N, 2, 2) derivatives d delta_i / d xy_j."""
    k1, k2, p1, p2 = params
    x, y = np.moveaxis(np.asarray(xy, dtype=np.float64), -1, 0)
    r2 = x * x + y * y
    rho, slope = r2 * (k1 + k2 * r2), 2.0 * (k1 + 2.0 * k2 * r2)  # d rho / dx = x * slope
    xx = rho + x * x * slope + 2.0 * p1 * y + 6.0 * p2 * x
    xy_ = x * y * slope + 2.0 * p1 * x + 2.0 * p2 * y
    yy = rho + y * y * slope + 2.0 * p2 * x + 6.0 * p1 * y
    return np.stack([np.stack([xx, xy_], axis=-1), np.stack([xy_, yy], axis=-1)], axis=-2)


def fisheye_theta(params: Sequence[float], theta: ArrayLike) -> tuple[F64, F64]:
    """theta_d = theta (1 + k1 th^2 + k2 th^4 + k3 th^6 + k4 th^8), and its derivative."""
    k1, k2, k3, k4 = params
    theta = np.asarray(theta, dtype=np.float64)
    s = theta * theta
    value = theta * (1.0 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    slope = 1.0 + s * (3.0 * k1 + s * (5.0 * k2 + s * (7.0 * k3 + s * 9.0 * k4)))
    return value, slope


def distort(mode: str, params: Sequence[float], xy: ArrayLike) -> F64:
    """Distorted image-plane points (N, 2) of undistorted ones (x/z, y/z)."""
    xy = np.asarray(xy, dtype=np.float64)
    if mode == "Perspective":
        return xy.copy()
    if mode == "OpenCV":
        return xy + opencv_offset(params, xy)
    if mode == "OpenCVFisheye":
        r = np.hypot(xy[..., 0], xy[..., 1])
        theta_d, _ = fisheye_theta(params, np.arctan(r))
        ratio = np.divide(theta_d, r, out=np.ones_like(r), where=r > 0.0)
        return xy * ratio[..., None]
    raise ValueError(f"unknown lens mode {mode!r}")


def undistort(mode: str, params: Sequence[float], xy: ArrayLike) -> F64:
    """Inverse of :func:`distort` by Newton's method to float64 accuracy; theta < pi/2."""
    xy = np.asarray(xy, dtype=np.float64)
    if mode == "Perspective":
        return xy.copy()
    if mode == "OpenCVFisheye":
        target = np.hypot(xy[..., 0], xy[..., 1])
        theta = target.copy()
        for _ in range(50):
            value, slope = fisheye_theta(params, theta)
            theta = theta - (value - target) / slope
        ratio = np.divide(np.tan(theta), target, out=np.ones_like(theta), where=target > 0.0)
        return xy * ratio[..., None]
    if mode != "OpenCV":
        raise ValueError(f"unknown lens mode {mode!r}")
    out = xy.copy()
    for _ in range(50):
        residual = out + opencv_offset(params, out) - xy
        jacobian = opencv_offset_jacobian(params, out) + np.eye(2)
        out = out - np.linalg.solve(jacobian, residual[..., None])[..., 0]
    return out


def ftheta_angle(params: Sequence[float], n: ArrayLike) -> F64:
    """Radians off the axis at ``n`` pixels from the principal point; params p0..p4, w, h."""
    return np.polynomial.polynomial.polyval(np.asarray(n, dtype=np.float64), np.asarray(params[:5], dtype=np.float64))


def _ftheta_ray(uv: F64, centre: F64, params: Sequence[float]) -> F64:
    offset = (uv - centre) * np.asarray(params[5:7], dtype=np.float64)
    n = np.hypot(offset[..., 0], offset[..., 1])
    angle = ftheta_angle(params, n)
    valid = (n > 0.0) & (np.cos(angle) > 0.0) & (np.abs(angle) < np.pi / 2)
    unit = offset / np.where(n > 0.0, n, 1.0)[..., None]
    d = np.concatenate([np.sin(angle)[..., None] * unit, np.cos(angle)[..., None]], axis=-1)
    return np.where(valid[..., None], d, 0.0)


def _ftheta_project(p: F64, centre: F64, params: Sequence[float]) -> F64:
    """Bisection on a polynomial that grows up to the farthest corner."""
    size = np.asarray(params[5:7], dtype=np.float64)
    across = np.hypot(p[..., 0], p[..., 1])
    angle = np.arctan2(across, p[..., 2])
    reach = 1.0001 * np.hypot(*(np.maximum(centre, 1.0 - centre) * size))
    lo, hi = np.zeros_like(angle), np.full_like(angle, reach)
    inside = (ftheta_angle(params, lo) <= angle) & (ftheta_angle(params, hi) >= angle)
    inside &= (p[..., 2] > 0.0) & (across > 0.0)
    for _ in range(80):
        middle = 0.5 * (lo + hi)
        below = ftheta_angle(params, middle) < angle
        lo, hi = np.where(below, middle, lo), np.where(below, hi, middle)
    ratio = np.where(inside, lo, np.nan) / np.where(across > 0.0, across, 1.0)
    return p[..., :2] * ratio[..., None] / size + centre


def _sphere_ray(mode: str, uv: F64) -> F64:
    phi = (uv[..., 0] - 0.5) * 2.0 * np.pi
    if mode == "LatLong":
        theta = (uv[..., 1] - 0.5) * np.pi
        y, s = np.sin(theta), np.cos(theta)
    else:
        y = (uv[..., 1] - 0.5) * 2.0
        s = np.sqrt(1.0 - y * y)
    return np.stack([s * np.sin(phi), y, s * np.cos(phi)], axis=-1)


def _sphere_project(mode: str, p: F64) -> F64:
    x, y, z = np.moveaxis(p, -1, 0)
    u = np.arctan2(x, z) / (2.0 * np.pi) + 0.5
    if mode == "LatLong":
        return np.stack([u, np.arctan2(y, np.hypot(x, z)) / np.pi + 0.5], axis=-1)
    return np.stack([u, 0.5 * y / np.linalg.norm(p, axis=-1) + 0.5], axis=-1)


def ray_origin(
    uv: ArrayLike,
    resolution: ArrayLike,
    focal: ArrayLike,
    centre: ArrayLike = (0.5, 0.5),
    mode: str = "Perspective",
) -> F64:
    """Where the rays start in camera space (N, 3): the centre, but for orthographic lenses."""
    uv, res = np.asarray(uv, dtype=np.float64), np.asarray(resolution, dtype=np.float64)
    xy = (uv - np.asarray(centre)) * res / np.asarray(focal, dtype=np.float64)
    if mode != "Orthographic":
        xy = np.zeros_like(xy)
    return np.concatenate([xy, np.zeros_like(xy[..., :1])], axis=-1)


def ray_direction(
    uv: ArrayLike,
    resolution: ArrayLike,
    focal: ArrayLike,
    centre: ArrayLike = (0.5, 0.5),
    mode: str = "Perspective",
    params: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
) -> F64:
    """Camera-space directions (N, 3) of image points ``uv`` (N, 2), with z = 1 or unit length."""
    uv, res = np.asarray(uv, dtype=np.float64), np.asarray(resolution, dtype=np.float64)
    if mode == "FTheta":
        return _ftheta_ray(uv, np.asarray(centre, dtype=np.float64), params)
    if mode in ("LatLong", "Equirectangular"):
        return _sphere_ray(mode, uv)
    if mode == "Orthographic":
        return np.broadcast_to([0.0, 0.0, 1.0], (*uv.shape[:-1], 3)).copy()
    xy = (uv - np.asarray(centre)) * res / np.asarray(focal, dtype=np.float64)
    xy = undistort(mode, params, xy)
    return np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1)


def project(
    point: ArrayLike,
    resolution: ArrayLike,
    focal: ArrayLike,
    centre: ArrayLike = (0.5, 0.5),
    mode: str = "Perspective",
    params: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
) -> F64:
    """``uv`` (N, 2) of camera-space points (N, 3), those of lenses that look ahead with z > 0."""
    p = np.asarray(point, dtype=np.float64)
    if mode == "FTheta":
        return _ftheta_project(p, np.asarray(centre, dtype=np.float64), params)
    if mode in ("LatLong", "Equirectangular"):
        return _sphere_project(mode, p)
    xy = p[..., :2] if mode == "Orthographic" else distort(mode, params, p[..., :2] / p[..., 2:])
    res = np.asarray(resolution, dtype=np.float64)
    return xy * np.asarray(focal, dtype=np.float64) / res + np.asarray(centre)
