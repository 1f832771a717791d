"""Losses: value and gradient against the twin and against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from pyngp._core import LossType, stages
from reference import losses

U = 2.0**-24


def pairs(seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Float32 predictions and targets: equal, close, around Huber's delta, far, HDR, negative."""
    r = np.random.default_rng(seed)
    target = np.concatenate([r.uniform(0, 1, 400), r.uniform(0, 20, 100), r.uniform(-1, 1, 100)])
    scale = np.concatenate([np.repeat([0.0, 1e-3, 0.1, 0.5], 100), np.full(200, 3.0)])
    difference = r.normal(size=600) * scale
    difference[200:220] = 0.1 * np.sign(r.normal(size=20)) * (1 + np.linspace(-1e-3, 1e-3, 20))
    return (target + difference).astype(np.float32), target.astype(np.float32)


def evaluate(kind: str, p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    loss = getattr(LossType, kind)
    both = np.array([stages.loss_term(loss, float(a), float(b)) for a, b in zip(p, t, strict=True)])
    return both[:, 0], both[:, 1]


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_against_twin(kind: str) -> None:
    """A dozen roundings, all relative: prediction - target is exact to one."""
    p, t = pairs()
    value, gradient = evaluate(kind, p, t)
    wanted_value, wanted_gradient = losses.loss_and_gradient(kind, p, t)
    # Huber's two branches meet with equal value and slope, so its joint needs no allowance
    assert np.allclose(value, wanted_value, rtol=12 * U, atol=0)
    assert np.allclose(gradient, wanted_gradient, rtol=12 * U, atol=0)


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_against_finite_differences(kind: str) -> None:
    """Central differences of the float32 value, its denominator frozen; none across d = 0."""
    p, t = pairs(6)
    h = np.float32(2.0**-9)
    keep = np.abs(p - t) > 2 * h
    p, t = p[keep], t[keep]
    frozen = losses.denominator(kind, p, t)
    ends = []
    for at in (p + h, p - h):
        ends.append(evaluate(kind, at, t)[0] * losses.denominator(kind, at, t) / frozen)
    slope = (ends[0] - ends[1]) / (2 * float(h))
    rounding = 12 * U * np.maximum(ends[0], ends[1]) / float(h)
    # third derivatives: LogL1's is at most 2, others' 0; Huber's slope bends by 2h across |d| =
    # 0.1; p +- h is itself rounded by U |p|, which changes the width
    curvature = {"LogL1": float(h) ** 2 / 3, "Huber": 2 * float(h)}.get(kind, 0.0)
    gradient = evaluate(kind, p, t)[1]
    rounding += np.abs(gradient) * U * (np.abs(p) + float(h)) / float(h)
    if kind == "Huber":
        curvature = np.where(np.abs(np.abs(p - t) - 0.1) < 2 * float(h), curvature, 0.0)
    assert np.all(np.abs(slope - gradient) <= rounding + curvature)


def test_zero_difference() -> None:
    for kind in losses.LOSSES:
        assert stages.loss_term(getattr(LossType, kind), 0.25, 0.25) == (0.0, 0.0)
