"""Multiresolution grid encoding: level table, indices, interpolation and gradients (D.4).

Level constants and cell positions are float32 (they decide which entries are read); everything
after the fraction of the cell is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)
KINDS = ("Hash", "Dense", "Tiled")
MAX_ENTRIES = 2**31 - 1
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class GridLevel:
    """One level: S_l, vertices per axis, first entry, number of entries, hashed or dense."""

    scale: np.float32
    resolution: int
    offset: int
    entries: int
    hashed: bool


def _f32(x: float) -> np.float32:
    """Round a float64 result to float32 (a correctly rounded float32 elementary operation)."""
    return np.float32(x)


def default_per_level_scale(
    max_resolution: float, base_resolution: int, n_levels: int, aabb_scale: int = 1
) -> np.float32:
    """b = exp(ln(R * aabb_scale / base) / (L - 1)), each operation in float32 (D.4)."""
    if n_levels <= 1:
        return _f32(1.0)
    ratio = _f32(max_resolution) * _f32(aabb_scale) / _f32(base_resolution)
    exponent = _f32(math.log(ratio)) / _f32(n_levels - 1)
    return _f32(math.exp(exponent))


def level_scale(level: int, base_resolution: int, log2_per_level_scale: np.float32) -> np.float32:
    """S_l = base * 2^(l * log2 b) - 1, each operation rounded to float32 (D.4)."""
    power = _f32(math.pow(2.0, float(_f32(level) * log2_per_level_scale)))
    return _f32(power * _f32(base_resolution)) - _f32(1.0)


def level_table(
    n_levels: int,
    base_resolution: int,
    per_level_scale: float,
    log2_hashmap_size: int,
    n_dims: int = 3,
    kind: str = "Hash",
) -> list[GridLevel]:
    """Levels of a grid, consecutive in one table of entries (D.4).

    ``kind`` is "Hash", "Dense" or "Tiled".  ``per_level_scale`` is rounded to float32 first.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    log2_b = _f32(math.log2(_f32(per_level_scale)))
    levels: list[GridLevel] = []
    offset = 0
    for level in range(n_levels):
        scale = level_scale(level, base_resolution, log2_b)
        resolution = math.ceil(scale) + 1
        vertices = resolution**n_dims
        entries = -(-min(vertices, MAX_ENTRIES) // 8) * 8
        if kind == "Hash":
            entries = min(entries, 1 << log2_hashmap_size)
        elif kind == "Tiled":
            entries = min(entries, base_resolution**n_dims)
        levels.append(GridLevel(scale, resolution, offset, entries, kind == "Hash" and entries < vertices))
        offset += entries
    return levels


def total_entries(levels: Sequence[GridLevel]) -> int:
    """Entries of all levels together (parameters = entries * F)."""
    return levels[-1].offset + levels[-1].entries if levels else 0


def cell_and_fraction(level: GridLevel, x: ArrayLike) -> tuple[NDArray[np.uint32], F64]:
    """Cell (N, D) uint32 and fraction (N, D) in [0, 1) of unit positions ``x`` (N, D).

    p = S_l * x + 0.5 in float32, multiply and add rounded separately; the fraction is taken from
    that p.
    """
    p = level.scale * np.asarray(x, dtype=np.float32) + np.float32(0.5)
    cell = np.floor(p)
    fraction = p.astype(np.float64) - cell
    return cell.astype(np.int64).astype(np.uint32), fraction


def entry_index(level: GridLevel, vertex: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Entry (N,) in the whole table of integer vertices (N, D); uint32 arithmetic (D.4)."""
    n_dims = vertex.shape[1]
    index = np.zeros(vertex.shape[0], dtype=np.uint32)
    for d in range(n_dims):
        if level.hashed:
            index ^= vertex[:, d] * np.uint32(PRIMES[d])
        else:
            index += vertex[:, d] * np.uint32((level.resolution**d) & 0xFFFFFFFF)
    return level.offset + (index % np.uint32(level.entries)).astype(np.int64)


def axis_weights(fraction: F64, interpolation: str) -> tuple[F64, F64]:
    """Weight of the upper vertex per axis and its derivative with respect to the fraction."""
    if interpolation == "Linear":
        return fraction, np.ones_like(fraction)
    if interpolation == "Smoothstep":
        return fraction**2 * (3.0 - 2.0 * fraction), 6.0 * fraction * (1.0 - fraction)
    if interpolation == "Nearest":
        return np.zeros_like(fraction), np.zeros_like(fraction)
    raise ValueError(f"unknown interpolation {interpolation!r}")


def corner_weights(upper: F64, bits: tuple[int, ...]) -> F64:
    """Weight (N,) of the corner whose bit d tells upper (1) or lower (0) in axis d."""
    return np.prod(np.where(np.array(bits, dtype=bool), upper, 1.0 - upper), axis=1)


def encode(levels: Sequence[GridLevel], params: ArrayLike, x: ArrayLike, interpolation: str = "Linear") -> F64:
    """Features (N, L*F), level-major, of unit positions (N, D); ``params`` is (entries, F)."""
    params = np.asarray(params)
    x = np.asarray(x, dtype=np.float32)
    n_features = params.shape[1]
    out = np.zeros((x.shape[0], len(levels) * n_features))
    for number, level in enumerate(levels):
        cell, fraction = cell_and_fraction(level, x)
        upper, _ = axis_weights(fraction, interpolation)
        columns = slice(number * n_features, (number + 1) * n_features)
        for bits in product((0, 1), repeat=x.shape[1]):
            index = entry_index(level, cell + np.array(bits, dtype=np.uint32))
            out[:, columns] += corner_weights(upper, bits)[:, None] * params[index]
    return out


def params_gradient(
    levels: Sequence[GridLevel],
    n_features: int,
    x: ArrayLike,
    d_out: ArrayLike,
    interpolation: str = "Linear",
) -> F64:
    """dL/dparams (entries, F) from dL/dfeatures ``d_out`` (N, L*F)."""
    x = np.asarray(x, dtype=np.float32)
    d_out = np.asarray(d_out, dtype=np.float64)
    grad = np.zeros((total_entries(levels), n_features))
    for number, level in enumerate(levels):
        cell, fraction = cell_and_fraction(level, x)
        upper, _ = axis_weights(fraction, interpolation)
        d_level = d_out[:, number * n_features : (number + 1) * n_features]
        for bits in product((0, 1), repeat=x.shape[1]):
            index = entry_index(level, cell + np.array(bits, dtype=np.uint32))
            np.add.at(grad, index, corner_weights(upper, bits)[:, None] * d_level)
    return grad


def position_gradient(
    levels: Sequence[GridLevel],
    params: ArrayLike,
    x: ArrayLike,
    d_out: ArrayLike,
    interpolation: str = "Linear",
) -> F64:
    """dL/dx (N, D) of unit positions, from dL/dfeatures ``d_out`` (N, L*F).

    The derivative of the axis weight is S_l (times the Smoothstep derivative); 0 for Nearest.
    """
    params = np.asarray(params)
    x = np.asarray(x, dtype=np.float32)
    d_out = np.asarray(d_out, dtype=np.float64)
    n_features, n_dims = params.shape[1], x.shape[1]
    grad = np.zeros(x.shape)
    for number, level in enumerate(levels):
        cell, fraction = cell_and_fraction(level, x)
        upper, d_upper = axis_weights(fraction, interpolation)
        d_level = d_out[:, number * n_features : (number + 1) * n_features]
        for bits in product((0, 1), repeat=n_dims):
            index = entry_index(level, cell + np.array(bits, dtype=np.uint32))
            along = np.sum(d_level * params[index], axis=1)
            for d in range(n_dims):
                others = [k for k in range(n_dims) if k != d]
                rest = corner_weights(upper[:, others], tuple(bits[k] for k in others))
                sign = 1.0 if bits[d] else -1.0
                grad[:, d] += sign * float(level.scale) * d_upper[:, d] * rest * along
    return grad
