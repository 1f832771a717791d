"""Colour: sRGB transfer functions and tone curves against the twin."""

from __future__ import annotations

import numpy as np
import pytest
from pyngp._core import TonemapCurve, stages
from reference import color

U = 2.0**-24  # rounding of float32, relative


def samples() -> np.ndarray:
    """Float32 values: dense on [0, 1], around both thresholds, above 1, below 0."""
    r = np.random.default_rng(3)
    joints = [np.float32(t) * (1 + np.arange(-8, 9) * 2.0**-23) for t in (0.04045, 0.0031308)]
    parts = [np.linspace(0, 1, 500), *joints, r.uniform(1, 50, 100), r.uniform(-1, 0, 50)]
    return np.concatenate(parts).astype(np.float32)


def test_srgb_to_linear() -> None:
    """pow: base off by 2 roundings (x 2.4), exponent by half a one (x |ln base|), result by one."""
    x = samples()
    got = np.array([stages.srgb_to_linear(float(v)) for v in x])
    exponent_error = 2.4 * np.abs(np.log(np.maximum((x + 0.055) / 1.055, 0.04)))
    tolerance = U * (2 * 2.4 + exponent_error + 2) * np.abs(color.srgb_to_linear(x)) + 1e-45
    # float32(0.04045) itself may fall on either side of the threshold; the branches meet to 1e-8
    near = np.abs(x - 0.04045) < 1e-8
    assert np.all(np.abs(got - color.srgb_to_linear(x)) <= tolerance + 2e-8 * near)


def test_linear_to_srgb() -> None:
    """The power term has the error of pow, and cancels against 0.055."""
    x = samples()
    got = np.array([stages.linear_to_srgb(float(v)) for v in x])
    power = np.maximum(x.astype(np.float64), 0.0031308) ** 0.41666
    exponent_error = 0.41666 * np.abs(np.log(np.maximum(x, 0.003)))
    tolerance = U * ((exponent_error + 3) * 1.055 * power + 0.055 + np.abs(12.92 * x) * (x < 0.0032))
    near = np.abs(x - 0.0031308) < 1e-9  # the branches meet to 3e-8 at the threshold
    assert np.all(np.abs(got - color.linear_to_srgb(x)) <= tolerance + 1e-6 * near)


def test_srgb_round_trip() -> None:
    """Exponents 2.4 and 0.41666 make x^0.999984: off by 1.6e-5 x |ln x| <= 5.9e-6 on [0, 1]."""
    for v in np.linspace(0, 1, 400, dtype=np.float32):
        there_and_back = stages.linear_to_srgb(stages.srgb_to_linear(float(v)))
        assert there_and_back == pytest.approx(float(v), abs=5.9e-6 * 1.055 + 8 * U)
        back_and_there = stages.srgb_to_linear(stages.linear_to_srgb(float(v)))
        # d linear / d sRGB <= 2.4 / 1.055 there
        assert back_and_there == pytest.approx(float(v), abs=2.3 * (5.9e-6 * 1.055 + 8 * U))


@pytest.mark.parametrize("curve", color.CURVES)
def test_tone_curves(curve: str) -> None:
    """Rational functions of positive terms: about 16 roundings, none of them cancels."""
    r = np.random.default_rng(4)
    rgb = np.concatenate([r.uniform(0, 1, (200, 3)), r.uniform(0, 60, (100, 3)), np.zeros((1, 3))])
    if curve != "Reinhard":  # the specification clamps the rational curves' input only
        rgb = np.concatenate([rgb, r.uniform(-1, 1, (100, 3))])
    rgb = rgb.astype(np.float32)
    got = np.array([stages.tonemap(getattr(TonemapCurve, curve), c) for c in rgb])
    assert np.allclose(got, color.tonemap(rgb, curve), rtol=16 * U, atol=0)
    if curve != "Identity":
        assert np.abs(got - rgb).max() > 0.1
