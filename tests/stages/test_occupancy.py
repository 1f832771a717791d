"""Occupancy bits from values: threshold, cascades (D.5, E.3)."""

from __future__ import annotations

import numpy as np
import pytest
from pyngp._core import stages
from reference import occupancy

N = occupancy.N_CELLS


def random_values(cascades: int, seed: int, dense: float) -> np.ndarray:
    """Values around the threshold, many zero, some never seen; ``dense`` is the filled fraction."""
    r = np.random.default_rng(seed)
    values = r.exponential(0.02, size=(cascades, N)).astype(np.float32)
    kind = r.uniform(size=values.shape)
    values[kind > dense] = 0.0
    values[kind > 1 - (1 - dense) / 4] = -1.0
    return values


def check(values: np.ndarray) -> np.ndarray:
    """Bits equal the twin's, but for values within rounding of the threshold (float32 mean)."""
    got = stages.occupancy_bits(values).reshape(values.shape)
    wanted = occupancy.occupied_cells(values)
    limit = occupancy.threshold(values)
    assert not np.any(np.abs(values[values > 0] - limit) < 2e-7 * limit)
    assert np.array_equal(got, wanted)
    return got


@pytest.mark.parametrize("cascades", [1, 3])
@pytest.mark.parametrize("dense", [1e-4, 0.05, 1.0])
def test_random_grids(cascades: int, dense: float) -> None:
    """The mean is the threshold in a sparse grid, 0.01 in a dense one."""
    values = random_values(cascades, 1, dense)
    assert (occupancy.threshold(values) < 0.01) == (dense < 0.5)
    bits = check(values)
    assert bits.any() and not bits.all()


def test_mean_is_of_cascade_0() -> None:
    values = random_values(2, 2, 0.01)
    values[1] *= 100.0
    check(values)


def test_uniform_grids() -> None:
    """All zero or never seen: no bit, since 0 is not above a threshold of 0. All equal: none."""
    for value in (0.0, -1.0, 0.005):
        assert not stages.occupancy_bits(np.full(N, value, np.float32)).any()
    assert stages.occupancy_bits(np.full(N, 0.011, np.float32)).all()


def test_all_cascades() -> None:
    """One cell of cascade 0 sets one of every coarser cascade, in the central half."""
    values = np.zeros((8, N), np.float32)
    cell = np.array([101, 3, 64])
    values[0, occupancy.morton(cell)] = 1.0
    bits = stages.occupancy_bits(values).reshape(8, N)
    for c in range(8):
        assert np.flatnonzero(bits[c]).tolist() == [int(occupancy.morton(cell))]
        cell = cell // 2 + 32
