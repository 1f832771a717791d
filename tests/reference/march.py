"""Ray marching: stepping coordinate, cascades, and a reference marcher for one ray (E.2).

Distances are NGP units along a unit direction.  ``cone`` is the cone-angle constant.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import occupancy

MIN_STEP = math.sqrt(3.0) / 1024.0
MAX_STEP = math.sqrt(3.0)
MAX_CASCADES = 8
CONSTANT_STEP_CONE = 1e-5
F64 = NDArray[np.float64]


def to_stepping(t: ArrayLike, cone: float) -> F64:
    """Stepping coordinate n(t): one step is n + 1 (E.2)."""
    t = np.asarray(t, dtype=np.float64)
    if cone <= CONSTANT_STEP_CONE:
        return t / MIN_STEP
    lam = math.log1p(cone)
    near, far = MIN_STEP / lam, MAX_STEP / lam
    middle = np.log(np.clip(t, near, far)) / lam
    return middle + np.minimum(t - near, 0.0) / MIN_STEP + np.maximum(t - far, 0.0) / MAX_STEP


def from_stepping(n: ArrayLike, cone: float) -> F64:
    """Inverse of :func:`to_stepping`."""
    n = np.asarray(n, dtype=np.float64)
    if cone <= CONSTANT_STEP_CONE:
        return n * MIN_STEP
    lam = math.log1p(cone)
    near, far = math.log(MIN_STEP / lam) / lam, math.log(MAX_STEP / lam) / lam
    middle = np.exp(np.clip(n, near, far) * lam)
    return middle + np.minimum(n - near, 0.0) * MIN_STEP + np.maximum(n - far, 0.0) * MAX_STEP


def step_size(t: ArrayLike, cone: float) -> F64:
    """Length of the step that starts at t: t(n(t) + 1) - t."""
    t = np.asarray(t, dtype=np.float64)
    if cone <= CONSTANT_STEP_CONE:
        return np.full_like(t, MIN_STEP)
    return from_stepping(to_stepping(t, cone) + 1.0, cone) - t


def advance(t: ArrayLike, steps: ArrayLike, cone: float) -> F64:
    """t after ``steps`` (possibly fractional) steps."""
    return from_stepping(to_stepping(t, cone) + np.asarray(steps, dtype=np.float64), cone)


def cascade_from_position(position: ArrayLike, max_cascade: int) -> NDArray[np.int64]:
    """clamp(frexp_exponent(max |p - 1/2|) + 1, 0, max_cascade) of positions (N, 3)."""
    largest = np.max(np.abs(np.asarray(position, dtype=np.float64) - 0.5), axis=-1)
    _, exponent = np.frexp(largest)
    return np.clip(exponent.astype(np.int64) + 1, 0, max_cascade)


def cascade_for_training(position: ArrayLike, dt: ArrayLike, max_cascade: int) -> NDArray[np.int64]:
    """Cascade from the position, raised so that dt * 256 fits (E.2)."""
    scaled = np.asarray(dt, dtype=np.float64) * (2 * occupancy.GRID_SIZE)
    _, exponent = np.frexp(scaled)
    from_dt = np.where(scaled < 1.0, 0, exponent.astype(np.int64))
    return np.clip(np.maximum(cascade_from_position(position, max_cascade), from_dt), 0, max_cascade)


def ray_box(origin: ArrayLike, direction: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[F64, F64]:
    """Entry and exit distances (N,) of rays (N, 3) through a box; entry > exit if missed."""
    o, d = np.asarray(origin, dtype=np.float64), np.asarray(direction, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (np.asarray(low) - o) / d, (np.asarray(high) - o) / d
    inside = (o >= np.asarray(low)) & (o <= np.asarray(high))  # matters for d = 0 only
    near = np.where(d == 0.0, np.where(inside, -np.inf, np.inf), np.minimum(a, b))
    far = np.where(d == 0.0, np.where(inside, np.inf, -np.inf), np.maximum(a, b))
    return near.max(axis=-1), far.min(axis=-1)


def voxel_exit(position: ArrayLike, direction: ArrayLike, cascade: ArrayLike) -> F64:
    """Distance (N,) >= 0 from positions (N, 3) to the exit of their cell of ``cascade`` (N,)."""
    p, d = np.asarray(position, dtype=np.float64), np.asarray(direction, dtype=np.float64)
    cells_per_unit = occupancy.GRID_SIZE / 2.0 ** np.asarray(cascade, dtype=np.float64)[..., None]
    q = (p - 0.5) * cells_per_unit  # cell borders at integers, since 128/2 is one
    border = np.floor(q) + (d > 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        along = np.where(d == 0.0, np.inf, (border - q) / (d * cells_per_unit))
    return np.maximum(along.min(axis=-1), 0.0)


def skip_voxel(t: ArrayLike, position: ArrayLike, direction: ArrayLike, cascade: ArrayLike, cone: float) -> F64:
    """t after the jump over an empty cell: its exit, rounded up to whole steps (>= 1)."""
    t = np.asarray(t, dtype=np.float64)
    start = to_stepping(t, cone)
    end = to_stepping(t + voxel_exit(position, direction, cascade), cone)
    return from_stepping(start + np.maximum(np.ceil(end - start), 1.0), cone)


def march_ray(
    origin: ArrayLike,
    direction: ArrayLike,
    bits: NDArray[np.bool_],
    box: tuple[ArrayLike, ArrayLike],
    cone: float = 0.0,
    jitter: float = 0.0,
    start_offset: float = 0.0,
    max_samples: int = 1024,
    training: bool = True,
) -> list[tuple[float, float]]:
    """Samples [(t, dt)] of one ray through the cells ``bits`` (cascades, 128^3, Morton order).

    The ray (origin (3,), unit direction (3,)) starts at max(t_box, 0) + ``start_offset`` (E.6: 1e-6
    when rendering) plus ``jitter`` in [0, 1) of a step, and ends where it leaves ``box`` (low,
    high).
    """
    o = np.asarray(origin, dtype=np.float64)[None]
    d = np.asarray(direction, dtype=np.float64)[None]
    entry, leave = ray_box(o, d, *box)
    if entry[0] > leave[0] or leave[0] < 0.0:
        return []
    t = advance(np.maximum(entry, 0.0) + start_offset, jitter, cone)
    samples: list[tuple[float, float]] = []
    while t[0] < leave[0] and len(samples) < max_samples:
        p = o + t[:, None] * d
        dt = step_size(t, cone)
        if training:
            cascade = cascade_for_training(p, dt, bits.shape[0] - 1)
        else:
            cascade = cascade_from_position(p, bits.shape[0] - 1)
        cell, inside = occupancy.cell_of(p, cascade)
        if inside[0] and bits[cascade[0], occupancy.morton(cell)[0]]:
            samples.append((float(t[0]), float(dt[0])))
            t = advance(t, 1.0, cone)
        else:
            t = skip_voxel(t, p, d, cascade, cone)
    return samples
