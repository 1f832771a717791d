"""Marching through an occupancy grid against the twin (E.2).

Rounding moves a position by some 1e-7, so a sample within that of a cell border, or a jump that
ends within that of one, may go either way; everything else has to agree. Jumps over empty space, up to 15 blocks of
4^3 cells at once, must not show: what is compared with takes one step at a time.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
import pytest
from pyngp._core import stages
from reference import march, occupancy
from stages.helpers import U

CONE = 1.0 / 256.0


def grid_values(cascades: int, seed: int, filled: float = 0.25) -> np.ndarray:
    """Random blobs: whole 4^3 blocks are empty or mixed, as scenes are."""
    r = np.random.default_rng(seed)
    blocks = r.uniform(size=(cascades, occupancy.N_CELLS // 64)) < filled
    cells = r.uniform(size=(cascades, occupancy.N_CELLS)) < 0.4
    return (np.repeat(blocks, 64, axis=1) & cells).astype(np.float32)


def isolated_cells(cascades: int, seed: int, n: int = 40) -> np.ndarray:
    """Single cells with up to all of the grid empty around them, among them both of its ends and corners of blocks."""
    r = np.random.default_rng(seed)
    values = np.zeros((cascades, occupancy.N_CELLS), np.float32)
    for cascade in values:
        cells = r.integers(0, occupancy.GRID_SIZE, size=(n, 3))
        cells[:4] = cells[:4] // 4 * 4 + 3 * (cells[:4] % 2)
        cascade[occupancy.morton(cells)] = 1.0
        cascade[[0, -1]] = 1.0
    return values


def rooms(cascades: int, seed: int) -> np.ndarray:
    """Everything is occupied but for boxes of any size, at any cell."""
    r = np.random.default_rng(seed)
    cell = occupancy.morton_inverse(np.arange(occupancy.N_CELLS)).astype(np.int64)
    values = np.ones((cascades, occupancy.N_CELLS), np.float32)
    for cascade in values:
        for size in (5, 9, 17, 30, 47, 80):
            low = r.integers(0, occupancy.GRID_SIZE - size, size=3)
            cascade[np.all((cell >= low) & (cell < low + size), axis=1)] = 0.0
    return values


def shells(cascades: int, seed: int) -> np.ndarray:
    """Nothing but the cells around the next finer cascade: jumps have to end at that one's border."""
    cell = occupancy.morton_inverse(np.arange(occupancy.N_CELLS)).astype(np.int64)
    centre = np.abs(cell - 63.5).max(axis=1)
    values = isolated_cells(cascades, seed, 0)
    values[1:, (centre > 32) & (centre < 33)] = 1.0
    return values


GRIDS = {
    "blobs": grid_values,
    "isolated cells": isolated_cells,
    "corner cells": partial(isolated_cells, n=0),
    "rooms": rooms,
    "shells": shells,
}


@dataclass(frozen=True)
class Ray:
    origin: np.ndarray
    direction: np.ndarray
    start: float
    end: float


def points_in(bits: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n random points in occupied cells."""
    r = np.random.default_rng(seed)
    cascade, morton = np.nonzero(bits)
    which = r.integers(0, len(cascade), size=n)
    corner = occupancy.morton_inverse(morton[which]) + r.uniform(size=(n, 3))
    return (corner / occupancy.GRID_SIZE - 0.5) * 2.0 ** cascade[which, None] + 0.5


def random_rays(n: int, scale: float, cone: float, seed: int, targets: np.ndarray | None = None) -> list[Ray]:
    """Rays through the box of side ``scale``, float32; some start inside, some run along axes.

    ``targets``: points that they are aimed at, instead of random ones.
    """
    r = np.random.default_rng(seed)
    low, high = np.full(3, 0.5 - scale / 2), np.full(3, 0.5 + scale / 2)
    rays: list[Ray] = []
    while len(rays) < n:
        origin = 0.5 + scale * r.uniform(-1, 1, size=3) * (0.4 if len(rays) % 3 == 0 else 1.2)
        target = r.uniform(low, high) if targets is None else targets[len(rays) % len(targets)]
        direction = target - origin
        if len(rays) % 7 == 6:
            direction[1:] = 0.0
            origin[1:] = r.uniform(low[1:], high[1:]) if targets is None else target[1:]
        direction = (direction / np.linalg.norm(direction)).astype(np.float32)
        origin = origin.astype(np.float32)
        entry, leave = march.ray_box(origin[None], direction[None], low, high)
        if entry[0] >= leave[0] or leave[0] <= 0:
            continue
        start = float(march.advance(max(entry[0], 0.0) + 1e-6, r.uniform(), cone))
        if start < leave[0]:
            rays.append(Ray(origin, direction, float(np.float32(start)), float(leave[0])))
    return rays


def reference(ray: Ray, bits: np.ndarray, cone: float, training: bool) -> np.ndarray:
    """Stepping positions t (float64) whose cell is occupied: one step at a time, no jumps."""
    first = march.to_stepping(ray.start, cone)
    count = int(np.ceil(march.to_stepping(ray.end, cone) - first)) + 1
    t = march.from_stepping(first + np.arange(count), cone)
    t = t[t < ray.end]
    return t[occupied(ray, t, bits, cone, training)]


def occupied(ray: Ray, t: np.ndarray, bits: np.ndarray, cone: float, training: bool) -> np.ndarray:
    p = ray.origin.astype(np.float64) + t[:, None] * ray.direction.astype(np.float64)
    if training:
        cascade = march.cascade_for_training(p, march.step_size(t, cone), bits.shape[0] - 1)
    else:
        cascade = march.cascade_from_position(p, bits.shape[0] - 1)
    cell, inside = occupancy.cell_of(p, cascade)
    return inside & bits[cascade, occupancy.morton(cell)]


def drift(ray: Ray, t: np.ndarray, cone: float) -> np.ndarray:
    """Bound of the rounding of t: U (t + 2) for each sum or, in the cone, log and exp so far.

    Sums of the same step are all rounded the same way, while t is in one binade.
    """
    steps = march.to_stepping(t, cone) - march.to_stepping(ray.start, cone) + 1
    return (steps if cone == 0.0 else 3 * np.sqrt(steps)) * U * (t + 2) + 4 * U * (t + 2)


def after_switch(t: np.ndarray, cone: float) -> np.ndarray:
    """Whether t lies within a cell behind a distance at which training changes the cascade.

    Where 256 dt reaches 2^k the cascade rises from k to k + 1, whose cell may be occupied though
    the one of k is not. A jump over an empty cell of cascade k, sqrt(3) 2^k / 128 long at most,
    may pass that distance (so does the twin's), but no longer jump may. Geometric part of the cone only.
    """
    if cone == 0.0:
        return np.zeros(t.shape, dtype=bool)
    scaled = 256 * march.step_size(t, cone)
    switch = 2.0 ** np.floor(np.log2(scaled))  # in units of 256 dt, where it was last passed
    cell = np.sqrt(3.0) * switch / 128
    return (scaled >= 1.0) & ((scaled - switch) / (256 * cone) <= cell)


@dataclass
class Tally:
    """Samples in all, and those of either side that the other lacks without an excuse."""

    n: int = 0
    borderline: int = 0
    switched: int = 0
    extra: int = 0
    missing: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def compare(ray: Ray, values: np.ndarray, bits: np.ndarray, cone: float, training: bool) -> Tally:
    t, dt = (
        a.astype(np.float64)
        for a in stages.march(values, ray.origin, ray.direction, cone, ray.start, ray.end, training)
    )
    assert np.all(np.diff(t) > 0) and np.all((t >= ray.start) & (t < ray.end))
    # on the stepping lattice, and as long as the step there
    n = march.to_stepping(t, cone) - march.to_stepping(ray.start, cone)
    lattice = march.from_stepping(march.to_stepping(ray.start, cone) + np.round(n), cone)
    assert np.all(np.abs(t - lattice) <= drift(ray, t, cone))
    # near the camera a step is the difference of two n of about -470, each with a few roundings
    assert np.allclose(dt, march.step_size(t, cone), rtol=2000 * U, atol=0)
    wanted = reference(ray, bits, cone, training)
    index = np.round(march.to_stepping(wanted, cone) - march.to_stepping(ray.start, cone))
    extra = lattice[~np.isin(np.round(n), index)]
    missing = wanted[~np.isin(index, np.round(n))]
    tally = Tally(len(wanted))
    for unmatched, name in ((extra, "extra"), (missing, "missing")):
        # excused if the cell a little before or behind differs, or the end is that close
        near = drift(ray, unmatched, cone) + 4 * U * np.abs(ray.origin).max()
        ends = [occupied(ray, unmatched + s * near, bits, cone, training) for s in (-1, 0, 1)]
        border = (ends[0] != ends[1]) | (ends[1] != ends[2]) | (ray.end - unmatched < near)
        switched = ~border & (name == "missing") & (training and after_switch(unmatched, cone))
        tally.borderline += int(border.sum())
        tally.switched += int(switched.sum())
        setattr(tally, name, int((~border & ~switched).sum()))
    return tally


@pytest.mark.parametrize("cone", [0.0, CONE])
@pytest.mark.parametrize("cascades,n_rays,training", [(1, 30, False), (3, 10, False), (3, 10, True)])
@pytest.mark.parametrize("kind", GRIDS)
def test_samples(kind: str, cascades: int, n_rays: int, training: bool, cone: float) -> None:
    """Against stepping through the whole ray, one step at a time; every other ray is aimed at an occupied cell."""
    cone = float(np.float32(cone))
    values = GRIDS[kind](cascades, 1)
    bits = occupancy.occupied_cells(values)
    rays = random_rays(n_rays, 2.0 ** (cascades - 1), cone, 2)
    rays += random_rays(n_rays, 2.0 ** (cascades - 1), cone, 3, points_in(bits, n_rays, 4))
    tally = sum((compare(ray, values, bits, cone, training) for ray in rays), Tally())
    assert tally.n > (500 if kind in ("blobs", "rooms") else 10), tally
    assert tally.extra == tally.missing == 0, tally
    # A border every 4 steps at least, 3e-6 around it of 2e-3. What is hit of single cells is mostly near their borders
    # and, of the next cascade, behind a switch.
    assert tally.borderline <= 0.004 * tally.n + 1, tally
    assert tally.switched <= 0.005 * tally.n + 1, tally


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cone", [0.0, CONE])
def test_against_the_twin_marcher(cone: float, training: bool) -> None:
    """reference.march.march_ray, with its jumps and its own entry into the box."""
    cone = float(np.float32(cone))
    values = grid_values(1, 3)
    bits = occupancy.occupied_cells(values)
    box = np.zeros(3), np.ones(3)
    n = different = 0
    for ray in random_rays(8, 1.0, cone, 4):
        entry, leave = march.ray_box(ray.origin[None], ray.direction[None], *box)
        start = float(np.float32(march.advance(max(float(entry[0]), 0.0), 0.25, cone)))
        args = (values, ray.origin, ray.direction, cone, start, float(leave[0]), training)
        got = stages.march(*args)[0].astype(np.float64)
        wanted = march.march_ray(ray.origin, ray.direction, bits, box, cone, 0.25, training=training)
        t = np.array(wanted).reshape(-1, 2)[:, 0]
        steps = [np.round(march.to_stepping(a, cone) - march.to_stepping(start, cone)) for a in (got, t)]
        common = np.isin(steps[0], steps[1])
        different += int((~common).sum() + (~np.isin(steps[1], steps[0])).sum())
        matched = t[np.isin(steps[1], steps[0])]
        assert np.all(np.abs(got[common] - matched) <= drift(ray, matched, cone))
        n += len(t)
    assert n > 200 and different <= 0.004 * n  # as above


def test_cascade_rule() -> None:
    """Cascade 0 empty, cascade 1 full: rendering leaves the unit cube out, training samples it from
    256 dt >= 1 on, which is t >= 1."""
    values = np.zeros((2, occupancy.N_CELLS), np.float32)
    values[1] = 1.0
    values[0, 0] = 1.0  # a mean above 0, in a corner that the ray does not meet
    ray = Ray(np.float32([-0.49, 0.503, 0.506]), np.float32([1, 0, 0]), 1e-3, 1.98)
    for training in (False, True):
        args = (values, ray.origin, ray.direction, CONE, ray.start, ray.end, training)
        t = stages.march(*args)[0].astype(np.float64)
        gap = int(np.argmax(np.diff(t)))
        assert t[0] == np.float32(ray.start) and 0.49 - CONE < t[gap] < 0.49
        # in training 1.0, and what is left of a cell and a step
        again = (1.0, 1.0 + 1 / 128 + CONE) if training else (1.49, 1.49 * (1 + CONE))
        assert again[0] <= t[gap + 1] <= again[1]
        steps = np.diff(march.to_stepping(t, CONE))
        steps = np.delete(steps, gap)
        assert np.all(np.abs(steps - 1) < 1e-3) and t[-1] > 1.98 / (1 + 1.01 * CONE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cascades", [1, 3])
@pytest.mark.parametrize("cone", [0.0, CONE])
def test_full_and_empty_grids(cone: float, cascades: int, training: bool) -> None:
    """Every step of the ray, and none."""
    cone = float(np.float32(cone))
    full = np.full((cascades, occupancy.N_CELLS), 0.02, np.float32)
    for ray in random_rays(4, 2.0 ** (cascades - 1), cone, 5):
        args = (ray.origin, ray.direction, cone, ray.start, ray.end, training)
        t, dt = stages.march(full, *args)
        steps = march.to_stepping(ray.end, cone) - march.to_stepping(ray.start, cone)
        assert abs(len(t) - np.ceil(steps)) <= 1
        assert np.array_equal(t[1:], (t + dt)[:-1]) and t[0] == np.float32(ray.start)
        assert len(stages.march(np.zeros_like(full), *args)[0]) == 0


def test_comparison_can_fail() -> None:
    """A single cell that the twin holds empty shows as extra samples, and the other way round."""
    values = grid_values(1, 6)
    bits = occupancy.occupied_cells(values)
    ray = random_rays(1, 1.0, 0.0, 7)[0]
    hit = reference(ray, bits, 0.0, False)
    p = ray.origin + hit[len(hit) // 2] * ray.direction.astype(np.float64)
    cell = int(occupancy.morton(occupancy.cell_of(p[None], np.zeros(1, int))[0])[0])
    assert compare(ray, values, bits, 0.0, False).missing == 0
    changed = bits.copy()
    changed[0, cell] = False
    assert compare(ray, values, changed, 0.0, False).extra > 0
    values[0, cell] = 0.0
    assert compare(ray, values, bits, 0.0, False).missing > 0
