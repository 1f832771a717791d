"""Lens models: perspective, OpenCV, OpenCV fisheye (C.6).

``uv`` in [0, 1]^2 of the image, y down; camera space is x right, y down, z forward; directions are
not normalised.  ``focal`` is in pixels, ``resolution`` = (W, H), ``centre`` = principal point in
uv.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
MODES = ("Perspective", "OpenCV", "OpenCVFisheye")


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


def ray_direction(
    uv: ArrayLike,
    resolution: ArrayLike,
    focal: ArrayLike,
    centre: ArrayLike = (0.5, 0.5),
    mode: str = "Perspective",
    params: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
) -> F64:
    """Camera-space directions (N, 3) with z = 1, of image points ``uv`` (N, 2)."""
    uv, res = np.asarray(uv, dtype=np.float64), np.asarray(resolution, dtype=np.float64)
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
    """``uv`` (N, 2) of camera-space points (N, 3) in front of the camera (z > 0)."""
    p = np.asarray(point, dtype=np.float64)
    xy = distort(mode, params, p[..., :2] / p[..., 2:])
    res = np.asarray(resolution, dtype=np.float64)
    return xy * np.asarray(focal, dtype=np.float64) / res + np.asarray(centre)
