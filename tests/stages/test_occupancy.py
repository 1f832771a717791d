"""Occupancy bits from values: threshold, cascades (D.5, E.3); and by how much space around them is empty."""

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


def check(values: np.ndarray, device: str) -> np.ndarray:
    """Bits and clearances equal the twin's; no value is within rounding of the threshold.

    The CPU rounds the mean to float32. A GPU's is a float32 sum in which each value meets 58 roundings at most.
    """
    got = stages.occupancy_bits(values, device).reshape(values.shape)
    wanted = occupancy.occupied_cells(values)
    limit = occupancy.threshold(values)
    of_mean = 2e-7 if device == "cpu" or limit == occupancy.MIN_OPTICAL_THICKNESS else 60 * 2.0**-24
    assert not np.any(np.abs(values[values > 0] - limit) < of_mean * limit)
    assert np.array_equal(got, wanted)
    clearance = stages.occupancy_clearance(values, device).reshape(len(values), -1)
    assert np.array_equal(clearance, occupancy.clearances(wanted))
    return got


@pytest.mark.parametrize("cascades", [1, 3])
@pytest.mark.parametrize("dense", [1e-4, 0.05, 1.0])
def test_random_grids(cascades: int, dense: float, device: str) -> None:
    """The mean is the threshold in a sparse grid, 0.01 in a dense one."""
    values = random_values(cascades, 1, dense)
    assert (occupancy.threshold(values) < 0.01) == (dense < 0.5)
    bits = check(values, device)
    assert bits.any() and not bits.all()


def test_mean_is_of_cascade_0(device: str) -> None:
    values = random_values(2, 2, 0.01)
    values[1] *= 100.0
    check(values, device)


def test_uniform_grids(device: str) -> None:
    """All zero or never seen: no bit, since 0 is not above a threshold of 0. All equal: none."""
    for value in (0.0, -1.0, 0.005):
        assert not stages.occupancy_bits(np.full(N, value, np.float32), device).any()
    assert stages.occupancy_bits(np.full(N, 0.011, np.float32), device).all()


def test_all_cascades(device: str) -> None:
    """One cell of cascade 0 sets one of every coarser cascade, in the central half."""
    values = np.zeros((8, N), np.float32)
    cell = np.array([101, 3, 64])
    values[0, occupancy.morton(cell)] = 1.0
    bits = stages.occupancy_bits(values, device).reshape(8, N)
    for c in range(8):
        assert np.flatnonzero(bits[c]).tolist() == [int(occupancy.morton(cell))]
        cell = cell // 2 + 32


@pytest.mark.parametrize("n_blocks", [0, 1, 5, 300, 20000])
def test_clearances(n_blocks: int, device: str) -> None:
    """Few occupied blocks, anywhere and next to the borders: every distance up to 8, in every cascade its own."""
    cascades = 3
    values = np.full((cascades, N), -1.0, np.float32)
    r = np.random.default_rng(n_blocks)
    for cascade in values:
        cascade[r.choice(N // 64, n_blocks, replace=False) * 64 + r.integers(64, size=n_blocks)] = 1.0
    check(values, device)
    clearance = stages.occupancy_clearance(values, device).reshape(cascades, -1)
    if device != "cpu":
        assert np.array_equal(clearance, stages.occupancy_clearance(values).reshape(clearance.shape))
    expected = {0: range(1, 9), 1: range(9), 5: range(9), 300: range(5), 20000: range(2)}[n_blocks]
    assert set(expected) <= set(np.unique(clearance[0]).tolist())
