"""Stepping along a ray: coordinate n(t), step length, advance (E.2)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pyngp._core import stages
from reference import march

U = 2.0**-24
CONES = [0.0, 1e-5, 1.0 / 256.0, 0.01]
FIELDS = ("n", "length", "advanced")


def distances(cone: float) -> np.ndarray:
    """Float32 distances: small, large, and close to both joints of n(t)."""
    t = [np.array([0.0]), np.geomspace(1e-4, 3000.0, 400)]
    if cone > march.CONSTANT_STEP_CONE:
        lam = math.log1p(cone)
        for joint in (march.MIN_STEP / lam, march.MAX_STEP / lam):
            # one step before either joint, the step crosses it
            t.append(joint * (1 + np.linspace(-2, 2, 41) * cone))
            t.append(joint * (1 + np.arange(-3, 4) * 2.0**-23))
    return np.concatenate(t).astype(np.float32)


def evaluate(cone: float, t: np.ndarray, steps: float) -> dict[str, np.ndarray]:
    rows = np.array([stages.stepping(cone, float(v), steps) for v in t])
    return dict(zip(FIELDS, rows.T, strict=True))


def n_error(cone: float, t: np.ndarray) -> np.ndarray:
    """Bound of the rounding of n(t): a few roundings of its largest term."""
    if cone <= march.CONSTANT_STEP_CONE:
        return 3 * U * t / march.MIN_STEP
    lam = math.log1p(cone)
    near, far = march.MIN_STEP / lam, march.MAX_STEP / lam
    # ln t / lambda in between; the lines start from there and subtract joints that are rounded
    magnitude = np.abs(np.log(np.clip(t, near, far))) + 1.0
    line = np.where(t < near, near / march.MIN_STEP, np.where(t > far, t / march.MAX_STEP, 0.0))
    return U * (6 * magnitude / lam + 6 * line)


@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("steps", [0.0, 0.37, 1.0, 57.0])
def test_against_twin(cone: float, steps: float) -> None:
    cone = float(np.float32(cone))
    t = distances(cone)
    got = evaluate(cone, t, steps)
    error = n_error(cone, t)
    assert np.all(np.abs(got["n"] - march.to_stepping(t, cone)) <= error)
    wanted = march.advance(t, steps, cone)
    # dt/dn is the step length at the end; n carries its error twice, there and back
    slope = march.step_size(wanted, cone)
    tolerance = 2 * (error + n_error(cone, wanted)) * slope + 4 * U * wanted
    assert np.all(np.abs(got["advanced"] - wanted) <= tolerance)


@pytest.mark.parametrize("cone", CONES)
def test_step_length(cone: float) -> None:
    """At most 4 roundings where it is cone*t or constant; a difference of two t at the joints."""
    cone = float(np.float32(cone))
    t = distances(cone)
    wanted = march.step_size(t, cone)
    got = evaluate(cone, t, 1.0)["length"]
    tolerance = 4 * U * wanted
    if cone > march.CONSTANT_STEP_CONE:
        lam = math.log1p(cone)
        low, high = march.MIN_STEP / lam, march.MAX_STEP / lam
        line = (t <= low * (1 + 4 * U)) | (t * (1 + cone) >= high * (1 - 4 * U))
        tolerance = np.where(line, 4 * n_error(cone, t) * wanted + 4 * U * t, tolerance)
    assert np.all(np.abs(got - wanted) <= tolerance)
    assert np.all(got >= np.float32(march.MIN_STEP) * (1 - 2 * U))
    assert np.all(got <= np.float32(march.MAX_STEP) * (1 + 2 * U))


@pytest.mark.parametrize("cone", CONES[2:])
def test_continuous_at_the_joints(cone: float) -> None:
    """Value and slope of n(t) meet at both joints."""
    lam = math.log1p(cone)
    for joint in (march.MIN_STEP / lam, march.MAX_STEP / lam):
        h = 1e-3
        t = (joint * np.array([1 - h, 1 - 1e-6, 1 + 1e-6, 1 + h])).astype(np.float32)
        n = evaluate(cone, t, 0.0)["n"]
        error = n_error(cone, t).max()
        assert abs(n[2] - n[1]) <= 2.1e-6 / lam + 2 * error
        # slopes are 1/(lambda joint) on both sides to first order, curvature h/2
        left, right = (n[1] - n[0]) / (t[1] - t[0]), (n[3] - n[2]) / (t[3] - t[2])
        assert left == pytest.approx(right, rel=float(h + 4 * error * lam / h))


def test_constant_steps() -> None:
    """Without a cone all steps are min_step long, and ten of them are ten min_steps."""
    for t in (0.0, 0.5, 7.0):
        n, length, advanced = stages.stepping(0.0, t, 10.0)
        assert length == np.float32(march.MIN_STEP)
        assert advanced == pytest.approx(t + 10 * march.MIN_STEP, rel=4 * U)
        assert n == pytest.approx(t / march.MIN_STEP, rel=4 * U)
