"""Colour: sRGB transfer functions and tonemapping curves (E.6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
CURVES = ("Identity", "ACES", "Hable", "Reinhard")
REC709 = np.array([0.2126, 0.7152, 0.0722])


def srgb_to_linear(srgb: ArrayLike) -> F64:
    """Threshold 0.04045, exponent 2.4; negative values follow the linear segment."""
    s = np.asarray(srgb, dtype=np.float64)
    return np.where(s <= 0.04045, s / 12.92, (np.maximum((s + 0.055) / 1.055, 0.0)) ** 2.4)


def linear_to_srgb(linear: ArrayLike) -> F64:
    """Threshold 0.0031308, exponent 0.41666 (as instant-ngp, not 1/2.4)."""
    x = np.asarray(linear, dtype=np.float64)
    return np.where(x < 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 0.0) ** 0.41666 - 0.055)


def srgb_to_linear_derivative(srgb: ArrayLike) -> F64:
    """d linear / d sRGB."""
    s = np.asarray(srgb, dtype=np.float64)
    upper = 2.4 / 1.055 * np.maximum((s + 0.055) / 1.055, 0.0) ** 1.4
    return np.where(s <= 0.04045, 1.0 / 12.92, upper)


def linear_to_srgb_derivative(linear: ArrayLike) -> F64:
    """d sRGB / d linear."""
    x = np.asarray(linear, dtype=np.float64)
    return np.where(x < 0.0031308, 12.92, 1.055 * 0.41666 * np.maximum(x, 0.0031308) ** -0.58334)


def _rational(x: F64, k: tuple[float, ...]) -> F64:
    return (k[0] * x * x + k[1] * x + k[2]) / (k[3] * x * x + k[4] * x + k[5])


def tonemap(rgb: ArrayLike, curve: str) -> F64:
    """Apply a curve to linear rgb (..., 3); input is clamped to >= 0 except for Identity (E.6)."""
    x = np.asarray(rgb, dtype=np.float64)
    if curve == "Identity":
        return x
    x = np.maximum(x, 0.0)
    if curve == "ACES":
        return _rational(x, (0.36 * 2.51, 0.6 * 0.03, 0.0, 0.36 * 2.43, 0.6 * 0.59, 0.14))
    if curve == "Hable":  # filmic ((x(Ax+CB)+DE) / (x(Ax+B)+DF) - E/F), input times 2, white 11.2
        a, b, c, d, e, f = 0.15, 0.5, 0.1, 0.2, 0.02, 0.3
        k = (a * f - a * e, c * b * f - b * e, 0.0, a * f, b * f, d * f * f)
        return _rational(2.0 * x, k) / _rational(np.float64(11.2), k)
    if curve == "Reinhard":
        return x / (1.0 + x @ REC709)[..., None]
    raise ValueError(f"unknown curve {curve!r}")
