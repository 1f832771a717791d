"""Frequency, triangle wave, one-blob and identity encodings; the padding rules of composite encodings (D.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

# name of the encoding -> (value of the padding, padding stands before the coefficients)
PADDING: dict[str, tuple[float, bool]] = {
    "Grid": (0.0, False),
    "Identity": (1.0, False),
    "Frequency": (1.0, False),
    "OneBlob": (1.0, False),
    "TriangleWave": (1.0, False),
    "SphericalHarmonics": (1.0, True),
}


def frequency(x: ArrayLike, n_frequencies: int) -> F64:
    """(N, D*K*2): per dimension, per k: sin(2^k pi x), cos(2^k pi x), of ``x`` (N, D)."""
    x = np.asarray(x, dtype=np.float64)
    angle = np.pi * x[:, :, None] * 2.0 ** np.arange(n_frequencies)
    pairs = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return pairs.reshape(x.shape[0], 2 * x.shape[1] * n_frequencies)


def frequency_gradient(x: ArrayLike, n_frequencies: int, d_out: ArrayLike) -> F64:
    """dL/dx (N, D) from dL/dout (N, D*K*2)."""
    x = np.asarray(x, dtype=np.float64)
    d = np.asarray(d_out, dtype=np.float64).reshape(*x.shape, n_frequencies, 2)
    slope = np.pi * 2.0 ** np.arange(n_frequencies)
    angle = x[:, :, None] * slope
    return np.sum(slope * (np.cos(angle) * d[..., 0] - np.sin(angle) * d[..., 1]), axis=-1)


def triangle_wave(x: ArrayLike, n_frequencies: int) -> F64:
    """(N, D*K): v = x * 2^(k-1) + k/4, value 4*|frac(v) - 1/2| - 1 (D.3)."""
    x = np.asarray(x, dtype=np.float64)
    k = np.arange(n_frequencies)
    v = x[:, :, None] * 2.0 ** (k - 1) + k / 4.0
    wave = 4.0 * np.abs(v - np.floor(v) - 0.5) - 1.0
    return wave.reshape(x.shape[0], x.shape[1] * n_frequencies)


def triangle_wave_gradient(x: ArrayLike, n_frequencies: int, d_out: ArrayLike) -> F64:
    """dL/dx (N, D) from dL/dout (N, D*K); at kinks the slope on the right."""
    x = np.asarray(x, dtype=np.float64)
    d = np.asarray(d_out, dtype=np.float64).reshape(*x.shape, n_frequencies)
    k = np.arange(n_frequencies)
    v = x[:, :, None] * 2.0 ** (k - 1) + k / 4.0
    return np.sum(np.where(v - np.floor(v) < 0.5, -4.0, 4.0) * 2.0 ** (k - 1) * d, axis=-1)


def quartic_integral(u: ArrayLike) -> F64:
    """Integral from -1 to u of 15/16 (1 - t^2)^2, the quartic kernel, which is 0 beyond -1 and 1."""
    u = np.clip(np.asarray(u, dtype=np.float64), -1.0, 1.0)
    return 15.0 / 16.0 * (u - 2.0 / 3.0 * u**3 + u**5 / 5.0) + 0.5


def one_blob(x: ArrayLike, n_bins: int) -> F64:
    """(N, D*n_bins): integrals over the bins of [0, 1] of a periodic quartic kernel of half width 1/n_bins at x."""
    x = np.asarray(x, dtype=np.float64)
    edges = np.arange(n_bins + 1) / n_bins
    periods = np.arange(-2, 3)[:, None]
    integral = quartic_integral((edges + periods - x[:, :, None, None]) * n_bins).sum(axis=2)
    return np.diff(integral, axis=-1).reshape(x.shape[0], x.shape[1] * n_bins)


def one_blob_gradient(x: ArrayLike, n_bins: int, d_out: ArrayLike) -> F64:
    """dL/dx (N, D) from dL/dout (N, D*n_bins)."""
    x = np.asarray(x, dtype=np.float64)
    d = np.asarray(d_out, dtype=np.float64).reshape(*x.shape, n_bins)
    edges = np.arange(n_bins + 1) / n_bins
    distance = edges - x[:, :, None]
    distance -= np.round(distance)  # of the nearest of the periodic kernels: they overlap for one bin only
    kernel = n_bins * 15.0 / 16.0 * np.maximum(1.0 - (distance * n_bins) ** 2, 0.0) ** 2
    return np.sum(-np.diff(kernel, axis=-1) * d, axis=-1)


def identity(x: ArrayLike, scale: float = 1.0, offset: float = 0.0) -> F64:
    """x * scale + offset, (N, D)."""
    return np.asarray(x, dtype=np.float64) * scale + offset


def padded_width(width: int, alignment: int) -> int:
    """Smallest multiple of ``alignment`` that holds ``width``."""
    return -(-width // alignment) * alignment


def pad(encoded: ArrayLike, otype: str, width: int) -> F64:
    """Pad one encoding (N, W) to ``width`` columns, with its own value on its own side (D.3)."""
    encoded = np.asarray(encoded, dtype=np.float64)
    value, before = PADDING[otype]
    padding = np.full((encoded.shape[0], width - encoded.shape[1]), value)
    return np.concatenate([padding, encoded] if before else [encoded, padding], axis=1)


def composite(parts: Sequence[tuple[str, ArrayLike]], alignment: int = 16) -> F64:
    """Concatenate nested encodings; the padding of the whole belongs to the last part (D.3).

    ``parts`` are (otype, values (N, W_i)); a part of width 0 still is the last one.
    """
    arrays = [np.asarray(values, dtype=np.float64) for _, values in parts]
    total = sum(a.shape[1] for a in arrays)
    missing = padded_width(total, alignment) - total
    arrays[-1] = pad(arrays[-1], parts[-1][0], arrays[-1].shape[1] + missing)
    return np.concatenate(arrays, axis=1)
