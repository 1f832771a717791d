"""Occupancy grid: Morton order, decay and threshold, cascades, candidate cells (D.5, E.3)."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

GRID_SIZE = 128
N_CELLS = GRID_SIZE**3
MIN_OPTICAL_THICKNESS = 0.01
MIN_STEP = np.sqrt(3.0) / 1024.0


def _spread(v: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Move bit i of a 10-bit integer to bit 3i."""
    out = np.zeros_like(v)
    for bit in range(10):
        out |= ((v >> np.uint32(bit)) & np.uint32(1)) << np.uint32(3 * bit)
    return out


def _gather(v: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Inverse of :func:`_spread`."""
    out = np.zeros_like(v)
    for bit in range(10):
        out |= ((v >> np.uint32(3 * bit)) & np.uint32(1)) << np.uint32(bit)
    return out


def morton(cell: ArrayLike) -> NDArray[np.uint32]:
    """Morton index (...,) of cells (..., 3); x in bit 0, y in bit 1, z in bit 2 (D.5)."""
    c = np.asarray(cell).astype(np.uint32)
    one, two = np.uint32(1), np.uint32(2)
    return _spread(c[..., 0]) | _spread(c[..., 1]) << one | _spread(c[..., 2]) << two


def morton_inverse(index: ArrayLike) -> NDArray[np.uint32]:
    """Cells (..., 3) of Morton indices (...,)."""
    i = np.asarray(index).astype(np.uint32)
    one, two = np.uint32(1), np.uint32(2)
    return np.stack([_gather(i), _gather(i >> one), _gather(i >> two)], axis=-1)


def cell_of(position: ArrayLike, cascade: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Cell (N, 3) of NGP positions (N, 3) in ``cascade`` (N,), and whether it is in the grid.

    Cell (x, y, z) of cascade c spans ((x..x+1)/128 - 1/2) * 2^c + 1/2 per axis (D.5).
    """
    p = np.asarray(position, dtype=np.float64)
    side = 2.0 ** np.asarray(cascade, dtype=np.float64)[..., None]
    cell = np.floor(((p - 0.5) / side + 0.5) * GRID_SIZE).astype(np.int64)
    inside = np.all((cell >= 0) & (cell < GRID_SIZE), axis=-1)
    return np.clip(cell, 0, GRID_SIZE - 1), inside


def cell_centre(cell: ArrayLike, cascade: int) -> NDArray[np.float64]:
    """NGP position (..., 3) of the centre of cells (..., 3)."""
    return ((np.asarray(cell, dtype=np.float64) + 0.5) / GRID_SIZE - 0.5) * 2.0**cascade + 0.5


def threshold(grid: ArrayLike) -> float:
    """min(0.01, mean over cascade 0 of max(v, 0)) of ``grid`` (cascades, 128^3)."""
    first = np.asarray(grid, dtype=np.float64)[0]
    return float(min(MIN_OPTICAL_THICKNESS, np.mean(np.maximum(first, 0.0))))


def occupied_cells(grid: ArrayLike) -> NDArray[np.bool_]:
    """(cascades, 128^3) bits in Morton order: v > threshold, then finer cascades ORed in.

    The block (x, y, z) // 2 of cascade c-1 lands on cell 32 + (x, y, z) // 2 of cascade c, its
    central half.
    """
    grid = np.asarray(grid, dtype=np.float64)
    bits = grid > threshold(grid)
    for c in range(1, grid.shape[0]):
        blocks = np.any(bits[c - 1].reshape(-1, 8), axis=1)  # eight consecutive Morton indices
        cells = morton_inverse(np.arange(blocks.size)) + np.uint32(GRID_SIZE // 4)
        bits[c, morton(cells)] |= blocks
    return bits


def clearances(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A byte for each block of 4x4x4 cells, (C, N_CELLS / 64), of bits (C, N_CELLS) in Morton order.

    The largest v <= 8 for which the cube of 2v-1 blocks a side around the block is empty and within the grid; 0 if the
    block itself is not empty. Counts occupied blocks in cubes by sums over all blocks before a corner.
    """
    most, side = 8, GRID_SIZE // 4
    x, y, z = morton_inverse(np.arange(side**3)).astype(np.int64).T
    out = np.zeros((len(bits), side**3), np.uint8)
    for cascade, blocks in zip(out, bits.reshape(len(bits), -1, 64).any(axis=-1), strict=True):
        taken = np.ones((side + 2 * most,) * 3, np.int64)  # so is everything outside
        taken[x + most, y + most, z + most] = blocks
        before = np.pad(taken.cumsum(0).cumsum(1).cumsum(2), ((1, 0),) * 3)
        for v in range(1, most + 1):
            n_taken = np.zeros(side**3, np.int64)
            for i, j, k in product((0, 1), repeat=3):
                corner = [a + most + (v if upper else 1 - v) for a, upper in ((x, i), (y, j), (z, k))]
                n_taken += (-1) ** (3 - i - j - k) * before[tuple(corner)]
            cascade[n_taken == 0] = v
    return out


def pack_bits(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Bit-field: cell i in cascade-major Morton order is bit i % 8 of byte i // 8."""
    return np.packbits(bits.ravel(), bitorder="little")


def splat_max(target: NDArray[np.float64], index: ArrayLike, density: ArrayLike) -> None:
    """target[index] = max(target[index], density * min step), in place (E.3)."""
    np.maximum.at(target, np.asarray(index), np.asarray(density, dtype=np.float64) * MIN_STEP)


def decay_update(grid: ArrayLike, new: ArrayLike, decay: float = 0.95) -> NDArray[np.float64]:
    """v < 0 ? v : max(v * decay, new), elementwise (E.3)."""
    grid = np.asarray(grid, dtype=np.float64)
    return np.where(grid < 0.0, grid, np.maximum(grid * decay, np.asarray(new, dtype=np.float64)))


def candidate_cell(i: ArrayLike, j: int, update: int, n: int) -> NDArray[np.int64]:
    """Morton cell that sample ``i`` of ``n`` tries at retry ``j`` < 10 of an update (E.3)."""
    i = np.asarray(i, dtype=np.uint64)
    value = (i + np.uint64(update * n)) * np.uint64(56924617)
    value += np.uint64(j * 19349663 + 96925573)
    return (value % np.uint64(N_CELLS)).astype(np.int64)


def choose_cell(grid_cascade: ArrayLike, i: ArrayLike, update: int, n: int, minimum: float) -> NDArray[np.int64]:
    """First candidate (of at most ten; the last one if none passes) whose grid value > ``minimum``.

    ``minimum`` is -0.01 for uniform samples (every cell that is not culled), 0.01 for occupied
    ones.
    """
    values = np.asarray(grid_cascade)
    cell = candidate_cell(i, 0, update, n)
    for j in range(1, 10):
        retry = ~(values[cell] > minimum)
        cell = np.where(retry, candidate_cell(i, j, update, n), cell)
    return cell


def update_interval(step: int) -> int:
    """Training steps between two updates: clamp(step / 16, 1, 16)."""
    return min(max(step // 16, 1), 16)


def sample_counts(step: int, n_cascades: int) -> tuple[int, int]:
    """(uniform, occupied-only) samples: all cells before step 256, a quarter each later."""
    all_cells = N_CELLS * n_cascades
    return (all_cells, 0) if step < 256 else (all_cells // 4, all_cells // 4)
