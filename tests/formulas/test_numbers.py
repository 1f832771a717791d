"""Numbers: binary16, PCG32, Morton codes, Sobol points, learning-rate schedule."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pyngp._core import base_nerf_config, stages
from reference import adam, occupancy
from reference.rng import Pcg32


def same_halves(values: np.ndarray) -> None:
    """The conversion of float32 ``values`` agrees bit for bit with NumPy's."""
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float32).astype(np.float16)
    got = np.array([stages.half_bits(float(v)) for v in values], dtype=np.uint16)
    back = np.array([stages.half_round_trip(float(v)) for v in values], dtype=np.float32)
    finite = ~np.isnan(values)
    assert np.array_equal(got[finite], wanted.view(np.uint16)[finite])
    assert np.array_equal(back[finite], wanted.astype(np.float32)[finite])
    assert np.array_equal(np.signbit(back[finite]), np.signbit(wanted[finite]))
    assert np.all(np.isnan(back[~finite])) and np.all(np.isnan(got[~finite].view(np.float16)))


def test_half_all_bit_patterns() -> None:
    """Every half converts to float32 and back unchanged."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    same_halves(halves.astype(np.float32))


def test_half_rounding() -> None:
    """Ties and their float32 neighbours, subnormals, underflow and overflow, both signs."""
    finite = np.arange(0x7C00, dtype=np.uint16)[::7]
    low = finite.view(np.float16).astype(np.float32)
    high = (finite + np.uint16(1)).view(np.float16).astype(np.float32)
    high = np.where(np.isinf(high), np.float32(65536.0), high)
    tie = (low.astype(np.float64) + high) / 2  # exact in float32: 12 bits of mantissa
    ties = tie.astype(np.float32)
    assert np.array_equal(ties, tie)
    around = [np.nextafter(ties, np.float32(0)), ties, np.nextafter(ties, np.float32(np.inf))]
    tiny = np.array([0.0, 1e-45, 2.0**-26, 2.0**-25, np.nextafter(2.0**-25, 1), 2.0**-24, 6.1e-5])
    huge = np.array([65504.0, 65519.99, 65520.0, 65536.0, 1e6, 3e38, np.inf, np.nan])
    values = np.concatenate([*around, tiny.astype(np.float32), huge.astype(np.float32)])
    same_halves(np.concatenate([values, -values]))


def test_half_random() -> None:
    r = np.random.default_rng(1)
    normal = r.normal(size=10000) * 10.0 ** r.uniform(-9, 6, size=10000)
    bits = r.integers(0, 2**32, size=10000, dtype=np.uint32).view(np.float32)
    same_halves(np.concatenate([normal.astype(np.float32), bits]))


def test_pcg32_published_outputs() -> None:
    """First outputs of the reference implementation's demo, seed 42, sequence 54."""
    published = [0xA15C02B7, 0x7B47F409, 0xBA1D3330, 0x83D2F293, 0xBFA4784B, 0xCBED606E]
    assert stages.random(42, 54, 0, 6) == published


@pytest.mark.parametrize("skip", [0, 1, 3, 16, 12345, 2**32, 7 * 2**32 + 16 * 4095, 2**64 - 5])
def test_pcg32_jump(skip: int) -> None:
    """Jumps ahead (and back, modulo 2^64) agree with the twin."""
    for seed, sequence in ((1337, 1), (0, 0), (2**64 - 1, 2**63 + 5)):
        twin = Pcg32(seed, sequence)
        twin.advance(skip)
        assert stages.random(seed, sequence, skip, 20) == [twin.next_uint() for _ in range(20)]


def test_pcg32_jump_is_repeated_draws() -> None:
    draws = stages.random(1337, 1, 0, 300)
    for skip in (1, 2, 63, 255):
        assert stages.random(1337, 1, skip, 45) == draws[skip : skip + 45]


def test_morton() -> None:
    r = np.random.default_rng(2)
    cells = np.concatenate([np.eye(3, dtype=np.int64), r.integers(0, 1024, size=(2000, 3))])
    got = [stages.morton(*map(int, cell)) for cell in cells]
    assert got[:3] == [1, 2, 4]
    assert np.array_equal(got, occupancy.morton(cells))


SOBOL_SEEDS = [0, 7, 0xDEADBEEF, 0xFFFFFFFF]


@pytest.mark.parametrize("seed", SOBOL_SEEDS)
def test_sobol_stratification(seed: int) -> None:
    """The first 2^k points occupy each interval of length 2^-k once, in both dimensions."""
    points = np.array([stages.sobol(i, seed) for i in range(1 << 10)])
    assert points.min() >= 0.0 and points.max() < 1.0
    for k in range(11):
        n = 1 << k
        for axis in range(2):
            interval = np.floor(points[:n, axis] * n).astype(int)
            assert np.array_equal(np.sort(interval), np.arange(n)), (k, axis)


@pytest.mark.parametrize("seed", SOBOL_SEEDS)
def test_sobol_elementary_boxes(seed: int) -> None:
    """A (0,2)-sequence: every block of 2^(a+b) points fills the 2^a x 2^b boxes once."""
    points = np.array([stages.sobol(i, seed) for i in range(512)])
    for a, b in ((1, 1), (2, 2), (3, 1), (1, 4), (4, 3)):
        n = 1 << (a + b)
        for block in points.reshape(-1, n, 2):
            box = np.floor(block[:, 0] * (1 << a)) * (1 << b) + np.floor(block[:, 1] * (1 << b))
            assert np.array_equal(np.sort(box), np.arange(n)), (a, b)


def test_sobol_scrambles_differ() -> None:
    """Point 0 is not at the origin and depends on the seed."""
    first = np.array([stages.sobol(0, seed) for seed in range(64)])
    assert len(np.unique(first[:, 0])) == len(np.unique(first[:, 1])) == 64
    assert np.all(np.abs(first.mean(axis=0) - 0.5) < 4 / np.sqrt(12 * 64))  # 4 sigma of uniform


def test_learning_rate_schedule() -> None:
    config = json.loads(base_nerf_config())
    steps = [0, 1, 19999, 20000, 20001, 29999, 30000, 45000, 100000, 1000000]
    wanted = [1e-2 * adam.lr_factor(s) for s in steps]
    got = [stages.learning_rate(json.dumps(config), s) for s in steps]
    assert np.allclose(got, wanted, rtol=1e-5, atol=1e-40)  # 0.33 rounded, to the 99th
    decay = config["optimizer"]["nested"]
    decay.update(decay_start=7, decay_interval=3, decay_base=0.5)
    for s in range(25):
        wanted_rate = 1e-2 * adam.lr_factor(s, 7, 3, 0.5)
        assert stages.learning_rate(json.dumps(config), s) == pytest.approx(wanted_rate, rel=1e-6)
    config["optimizer"] = decay["nested"]  # Adam alone: no decay
    assert stages.learning_rate(json.dumps(config), 10**6) == pytest.approx(1e-2, rel=1e-7)
