"""Frequency and identity encodings, and the padding rules of composite encodings (D.3)."""

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
