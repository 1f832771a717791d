"""Train modes Rfl and RflRelax: gradients and losses of a ray against float64 differences (E.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from pyngp._core import LossType, NerfActivation, TrainMode, stages
from reference import compositing, losses, train_modes
from stages.helpers import U

MODES = ["Rfl", "RflRelax"]
ACTIVATIONS = ["None", "ReLU", "Logistic", "Exponential"]
H = 1e-6


@dataclass(frozen=True)
class Case:
    """One ray, float32 values."""

    raw: np.ndarray  # (n, 4)
    dt: np.ndarray
    target: np.ndarray
    background: np.ndarray
    loss: str = "Huber"
    activations: tuple[str, str] = ("Logistic", "Exponential")

    def run(self, mode: str, encourage: bool = False, regularizer: float = 0.0) -> tuple[float, int, np.ndarray]:
        return stages.composite(
            self.raw,
            self.dt,
            np.cumsum(self.dt),
            self.target,
            self.background,
            loss=getattr(LossType, self.loss),
            rgb_activation=getattr(NerfActivation, self.activations[0]),
            density_activation=getattr(NerfActivation, self.activations[1]),
            mode=getattr(TrainMode, mode),
            encourage_density=encourage,
            regularizer=regularizer,
        )

    def twin(self) -> train_modes.Ray:
        """With one transparent sample more: the library stops behind an opaque last sample too (test_compositing)."""
        transparent = -80.0 if self.activations[1] == "Exponential" else 0.0
        raw = np.concatenate([self.raw, [[0, 0, 0, transparent]]]).astype(np.float64)
        dt = np.append(self.dt, 0.0)
        return train_modes.Ray(raw[:, :3], raw[:, 3], dt, self.background, self.target, self.loss, self.activations)


def ray(
    n: int,
    seed: int,
    density: float,
    loss: str = "Huber",
    activations: tuple[str, str] = ("Logistic", "Exponential"),
) -> Case:
    """n samples; `density` is the mean optical thickness of one, whatever the activation makes of it."""
    r = np.random.default_rng(seed)
    dt = r.uniform(0.002, 0.02, size=n)
    thickness = r.uniform(0.2, 1.8, size=n) * density
    sigma = thickness / dt
    if activations[1] == "Logistic":  # at most 1: steps are longer instead
        dt, sigma = dt * 100, np.clip(thickness / (dt * 100), 0.01, 0.99)
    inverse = {
        "Exponential": np.log,
        "Logistic": lambda s: np.log(s / (1 - s)),
    }.get(activations[1], lambda s: s)
    rgb = r.normal(size=(n, 3))
    rgb = np.where(np.abs(rgb) > 1e-2, rgb, 0.5)  # away from ReLU's corner
    raw = np.column_stack([rgb, inverse(sigma)])
    arrays = (raw, dt, r.uniform(0.05, 0.95, size=3), r.uniform(size=3))
    return Case(*(a.astype(np.float32) for a in arrays), loss=loss, activations=activations)


def bounds(case: Case, twin: train_modes.Ray, mode: str) -> tuple[np.ndarray, float]:
    """Rounding of the gradients (n, 4) and of the reported loss.

    As in test_compositing.py, weights and transmittances are off by (3k + 4) U after k samples (absolute), what is
    composited by as much of its largest summand, and once more for the error of the summand. A colour is off by 8 U of
    its size; so its loss by |l'| of that, and by 12 U of itself. RflRelax looks at a colour that is off by the error
    of the remainder over the transmittance in front of the sample. A loss's slope changes by the difference of its
    values at both ends of the error, and has 16 U of its own.
    """
    m = twin.used
    weight = (3 * m + 4) * U
    size = max(1.0, float(np.abs(twin.color).max(initial=0.0)), float(case.background.max()))
    ends = np.concatenate([twin.color, twin.background[None]])
    slopes = np.abs(losses.loss_gradient(case.loss, ends, twin.target))
    values = losses.loss(case.loss, ends, twin.target)
    if mode == "Rfl":
        at, off = twin.color, np.full(m, 8 * U * size)
        largest = float(values.max())
        composite = 2 * weight * largest + float(np.max(slopes * 8 * U * size + 12 * U * values))
    else:
        at, off = twin.starting_at(), 4 * weight * size / twin.before + 8 * U * size
        largest, composite = size, 2 * weight * size
    g = [losses.loss_gradient(case.loss, at + s * off[:, None], twin.target) for s in (1, -1)]
    slope = np.maximum(*np.abs(g))
    d_slope = np.abs(g[0] - g[1]) + 16 * U * slope
    _, d_rgb = compositing.rgb_activation(twin.raw[:m, :3], case.activations[0])
    _, d_sigma = compositing.density_activation(twin.raw[:m, 3], case.activations[1])
    w = twin.before * twin.alpha
    colors = (np.abs(d_rgb) + 4 * U) * (w[:, None] * d_slope + (weight + 8 * U) * slope)
    if mode == "Rfl":
        inner = np.full(m, 3 * (2 * composite + weight * largest))
    else:
        inner = 2 * twin.before * size * d_slope.sum(1) + slope.sum(1) * (2 * composite + weight * size)
    result = np.column_stack([colors, d_sigma * twin.dt[:m] * inner])
    reported = composite
    if mode == "RflRelax":
        reported = float(slopes.max()) * composite + 16 * U * float(values.max())
    return result, reported


def check(case: Case, mode: str) -> train_modes.Ray:
    value, count, d_raw = case.run(mode)
    twin = case.twin()
    n = len(case.raw)
    assert count == min(twin.used, n) and np.all(d_raw[count:] == 0.0)
    wanted = twin.gradient(mode, H)[:count]
    if case.activations[0] == "Exponential":
        wanted[:, :3] += np.maximum(0.0, 1e-4 * case.raw[:count, :3])
    bound, of_value = bounds(case, twin, mode)
    # Differences: third derivatives of a few units times H^2, and rounding of float64 over H.
    bound = bound[:count] + 4 * U * np.abs(wanted) + 1e-9 * max(1.0, float(np.abs(wanted).max(initial=0.0)))
    worst = np.abs(d_raw[:count] - wanted) / bound
    assert np.all(worst <= 1), (worst.max(), np.unravel_index(worst.argmax(), worst.shape))
    assert abs(value - twin.reported(mode)) <= of_value + 16 * U * abs(value)
    return twin


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_against_differences(mode: str, loss: str, activation: str) -> None:
    """Rays to which the background contributes, and rays that stop early."""
    for n, seed in ((1, 1), (2, 2), (17, 3), (40, 4)):
        assert not check(ray(n, seed, 0.05, loss, (activation, "Exponential")), mode).stopped
    twin = check(ray(60, 5, 0.6, loss, (activation, "Exponential")), mode)
    assert twin.stopped and 3 < twin.used < 60


@pytest.mark.parametrize("density", ACTIVATIONS)
@pytest.mark.parametrize("mode", ["Nerf", *MODES])
def test_density_activations(mode: str, density: str) -> None:
    """All four; Nerf's gradient is that of the composited colour's loss."""
    for n, seed, thickness in ((12, 6, 0.05), (60, 7, 0.6)):
        case = ray(n, seed, thickness, "L2", ("Logistic", density))
        if mode != "Nerf":
            check(case, mode)
            continue
        _, count, d_raw = case.run(mode)
        twin = case.twin()
        wanted = np.zeros((count, 4))
        for i, channel in np.ndindex(wanted.shape):
            ends = []
            for s in (H, -H):
                raw = twin.raw.copy()
                raw[i, channel] += s
                rgb = compositing.composite(raw[:, :3], raw[:, 3], twin.dt, twin.background, *case.activations).rgb
                ends.append(float(np.sum((rgb - twin.target) ** 2)))
            wanted[i, channel] = (ends[0] - ends[1]) / (2 * H)
        # |g| <= 2; colours, weights and transmittances are off by (3k + 4) U: test_compositing.py has the details.
        _, d_sigma = compositing.density_activation(twin.raw[:count, 3], density)
        scale = np.column_stack([np.ones((count, 3)), d_sigma * twin.dt[:count]])
        assert np.all(np.abs(d_raw[:count] - wanted) <= scale * 3 * 8 * (3 * twin.used + 4) * U + 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_empty_ray(mode: str) -> None:
    """The background alone."""
    case = ray(1, 8, 0.1, "L2")
    empty = Case(case.raw[:0], case.dt[:0], case.target, case.background, "L2")
    value, count, d_raw = empty.run(mode)
    wanted = np.mean((case.background.astype(np.float64) - case.target) ** 2)
    assert count == 0 and d_raw.shape == (0, 4) and value == pytest.approx(wanted, rel=8 * U)


def test_one_opaque_sample_is_the_same_in_all_modes() -> None:
    """A surface shows its own colour: there is nothing behind it, and nothing to blend."""
    case = ray(1, 9, 30.0, "L2")
    results = [case.run(mode) for mode in ("Nerf", *MODES)]
    for value, count, d_raw in results[1:]:
        assert count == 1 and value == pytest.approx(results[0][0], rel=1e-5)
        np.testing.assert_allclose(d_raw[:, :3], results[0][2][:, :3], rtol=1e-5, atol=1e-7)


def test_rfl_pulls_every_sample_to_the_target() -> None:
    """Two half-transparent samples whose mean is the target: Nerf is content, Rfl changes both."""
    half = np.log(np.log(2.0))  # alpha 1/2 at dt 1
    raw = np.array([[0.4, 0.4, 0.4, half], [0.4, 0.4, 0.4, half]], np.float32)
    raw[1, :3] = 0.6
    background = np.full(3, 0.4, np.float32)
    target = np.full(3, 0.5 * 0.4 + 0.25 * 0.6 + 0.25 * 0.4, np.float32)
    case = Case(raw, np.ones(2, np.float32), target, background, "L2", ("None", "Exponential"))
    assert np.abs(case.run("Nerf")[2]).max() < 1e-6
    gradient = case.run("Rfl")[2]
    assert np.all(gradient[0, :3] < -1e-2) and np.all(gradient[1, :3] > 1e-2)
