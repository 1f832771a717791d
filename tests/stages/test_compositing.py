"""Compositing and loss of a ray, forward and backward (E.2, E.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from pyngp._core import LossType, NerfActivation, stages
from reference import compositing, losses
from stages.helpers import U, assert_within

ACTIVATIONS = ["None", "ReLU", "Logistic", "Exponential"]


@dataclass(frozen=True)
class Case:
    """One ray, float32 values, and the options of the stage."""

    rgb: np.ndarray  # (n, 3) raw
    density: np.ndarray  # (n,) raw
    dt: np.ndarray
    t: np.ndarray
    target: np.ndarray
    background: np.ndarray
    loss: str = "Huber"
    activation: str = "Logistic"
    near: float = 0.0
    regularizer: float = 0.0
    encourage: bool = False
    depth_loss: str = "L1"
    depth_weight: float = 0.0
    distance: float = 0.0

    def run(self) -> tuple[float, int, np.ndarray]:
        raw = np.concatenate([self.rgb, self.density[:, None]], axis=1)
        return stages.composite(
            raw,
            self.dt,
            self.t,
            self.target,
            self.background,
            getattr(LossType, self.loss),
            getattr(NerfActivation, self.activation),
            self.near,
            self.regularizer,
            self.encourage,
            depth=stages.DepthSupervision(getattr(LossType, self.depth_loss), self.depth_weight),
            distance=self.distance,
        )

    def ended(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Raw rgb, raw density and dt with one transparent sample more.

        The library stops where T < 1e-4 behind a sample, even the last one it was given (which
        depends on how samples are grouped); the twin, only where another sample follows.
        """
        rgb = np.concatenate([self.rgb, np.zeros((1, 3))])
        return rgb, np.append(self.density, -80.0), np.append(self.dt, 0.0)

    def composite(self) -> compositing.Composite:
        return compositing.composite(*self.ended(), self.background, self.activation)


def ray(n: int, seed: int, shift: float = 0.0, **options: object) -> Case:
    """``shift`` moves the raw density: 0 stays translucent, 5 stops early."""
    r = np.random.default_rng(seed)
    dt = r.uniform(0.002, 0.02, size=n)
    arrays = [r.normal(size=(n, 3)), 2 * r.normal(size=n) + shift, dt, 0.1 + np.cumsum(dt)]
    arrays += [r.uniform(0.05, 0.95, size=3), r.uniform(size=3)]
    return Case(*(a.astype(np.float32) for a in arrays), **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Errors:
    """Rounding bounds of a ray with m composited samples.

    Every sample rounds colour and transmittance a few times: alpha = 1 - exp(-sigma dt) is off by
    some U, so weights and T by (3k + 4) U after k samples, and the colour by that of its last.
    """

    rgb: float
    weight: float

    @staticmethod
    def of(result: compositing.Composite, background: np.ndarray) -> Errors:
        weight = (3 * result.used + 4) * U
        brightest = max(1.0, float(np.abs(result.color).max(initial=0.0)), float(background.max()))
        return Errors(2 * weight * brightest, weight)


def gradient_error(case: Case, rgb: np.ndarray, error: float) -> np.ndarray:
    """Change of the loss gradient (3,) over the error of the colour, and a few roundings."""
    ends = [losses.loss_gradient(case.loss, rgb + s * error, case.target) for s in (1, -1)]
    return np.abs(ends[0] - ends[1]) + 16 * U * np.maximum(*np.abs(ends))


def check(case: Case) -> compositing.Composite:
    """Value, count and gradients; returns the twin's composite."""
    value, count, d_raw = case.run()
    result = case.composite()
    n = len(case.density)
    assert count == min(result.used, n)
    bound = Errors.of(result, case.background)
    g = losses.loss_gradient(case.loss, result.rgb, case.target)
    d_g = gradient_error(case, result.rgb, bound.rgb)
    wanted_value = losses.loss(case.loss, result.rgb, case.target).mean()
    slack = np.mean((np.abs(g) + d_g) * bound.rgb) + 16 * U * wanted_value
    assert abs(value - wanted_value) <= slack

    args = (*case.ended(), case.background)
    d_rgb, d_density = (d[:n] for d in compositing.backward(*args, g, case.activation))
    extra_rgb, extra_density = compositing.regulariser_gradient(
        case.rgb, case.density, count, case.t, case.activation, case.near, case.encourage
    )
    scale = case.regularizer / compositing.DENSITY_REGULARISER
    wanted_rgb, wanted_density = d_rgb + extra_rgb, d_density + scale * extra_density
    sigma = compositing.density_activation(case.density)[1]
    colors, slope = compositing.rgb_activation(case.rgb, case.activation)
    size = max(1.0, float(np.abs(colors).max(initial=0.0)), float(case.background.max()))
    weights = np.zeros(n)
    weights[:count] = result.weight[:count]
    rgb_bound = np.abs(slope) * (weights[:, None] * d_g + bound.weight * np.abs(g))
    # the Logistic's derivative v (1 - v) is off by a few U of its own; 2 U |wanted| for the sum
    rgb_bound += 4 * U * weights[:, None] * np.abs(g) + 2 * U * np.abs(wanted_rgb)
    assert_within(d_raw[:, :3], wanted_rgb, rgb_bound, "dL/draw rgb")
    # g . (T c - suffix), where T c, suffix <= size
    inner = 2 * size * np.sum(d_g) + np.sum(np.abs(g)) * (bound.rgb + bound.weight * size)
    density_bound = sigma * case.dt * inner + 8 * U * np.abs(wanted_density)
    density_bound += 2 * U * case.regularizer
    assert_within(d_raw[:, 3], wanted_density, density_bound, "dL/draw density")
    assert np.all(d_raw[count:] == 0.0)
    return result


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_against_twin(loss: str, activation: str) -> None:
    """Translucent rays, to which the background contributes, and rays that stop early."""
    for n, seed in ((1, 1), (2, 2), (17, 3), (200, 4)):
        case = ray(n, seed, -1.5, loss=loss, activation=activation)
        assert not check(case).stopped
    for n, seed in ((40, 5), (1000, 6)):
        result = check(ray(n, seed, 3.0, loss=loss, activation=activation))
        assert result.stopped and 3 < result.used < n


def test_empty_ray() -> None:
    """No samples: the background alone against the target."""
    case = ray(0, 7, loss="L2")
    value, count, d_raw = case.run()
    wanted = np.mean((case.background.astype(np.float64) - case.target) ** 2)
    assert count == 0 and d_raw.shape == (0, 4) and value == pytest.approx(wanted, rel=8 * U)


def test_background() -> None:
    """It enters the value with the remaining transmittance, and not behind a ray that stopped."""
    for shift, through in ((-3.0, True), (5.0, False)):
        case = ray(60, 8, shift, loss="L1")
        other = replace(case, background=1.0 - case.background)
        assert case.composite().stopped != through
        assert (case.run()[0] != other.run()[0]) == through
        assert np.array_equal(case.run()[2], other.run()[2]) != through
        check(other)


def test_stop_at_the_last_sample() -> None:
    """T < 1e-4 behind the very last sample counts as stopped: no background."""
    case = ray(30, 9, 5.0, loss="L2")
    used = case.composite().used
    cut = {name: getattr(case, name)[:used] for name in ("rgb", "density", "dt", "t")}
    case = replace(case, **cut)
    assert check(case).stopped
    assert case.run()[0] == replace(case, background=case.background + 1).run()[0]


@pytest.mark.parametrize("activation", ["Logistic", "Exponential"])
@pytest.mark.parametrize("encourage", [False, True])
def test_regularizers(activation: str, encourage: bool) -> None:
    """Near camera, almost empty grid, and bright exponential colours (E.4)."""
    for shift in (-8.0, 0.0, 5.0):
        plain = ray(50, 10, shift, activation=activation)
        near = float(np.median(plain.t[: plain.composite().used]))
        case = replace(plain, near=near, regularizer=1e-4, encourage=encourage)
        check(case)
        difference = case.run()[2][:, 3] - plain.run()[2][:, 3]
        count = case.run()[1]
        pushed = np.arange(50) < count
        wanted = 1e-4 * ((case.t < near) & (case.density > -10) & pushed)
        wanted = wanted - 1e-4 * (encourage & (case.density < 0) & pushed)
        rounding = 2 * U * (np.abs(plain.run()[2]).max() + 2e-4)
        assert np.allclose(difference, wanted, rtol=0, atol=rounding)
        assert np.any(wanted)
    assert np.any(ray(50, 10, -8.0).density < -10)


def test_exponential_regularizer() -> None:
    """Positive raw colours of composited samples are pulled down by 1e-4 raw."""
    case = ray(20, 11, activation="Exponential")
    result = case.composite()
    exact = replace(case, target=result.rgb.astype(np.float32), loss="L2")
    d_rgb = exact.run()[2][:, :3]  # the loss itself has no gradient here, but for rounding
    assert np.allclose(d_rgb, np.maximum(0, 1e-4 * case.rgb), atol=1e-5 * 0.05)
    assert np.any(d_rgb > 1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_finite_differences(loss: str, activation: str) -> None:
    """Gradients against central differences of the float64 loss with its denominator frozen."""
    for shift in (0.0, 5.0):
        case = ray(24, 12, shift, loss=loss, activation=activation)
        keep = np.abs(case.rgb) > 1e-3  # ReLU
        case = replace(case, rgb=np.where(keep, case.rgb, np.float32(0.5)))
        _, count, d_raw = case.run()
        result = case.composite()
        frozen = losses.denominator(loss, result.rgb, case.target)
        rgb, density, dt = (a.astype(np.float64) for a in case.ended())

        def value(
            rgb: np.ndarray,
            density: np.ndarray,
            case: Case = case,
            dt: np.ndarray = dt,
            frozen: np.ndarray = frozen,
        ) -> float:
            out = compositing.composite(rgb, density, dt, case.background, case.activation).rgb
            return float(np.sum(losses.numerator(case.loss, out - case.target) / frozen))

        bound = Errors.of(result, case.background)
        d_g = gradient_error(case, result.rgb, bound.rgb)
        g = losses.loss_gradient(loss, result.rgb, case.target)
        size = max(1.0, float(np.abs(result.color).max()))
        sigma_dt = np.exp(case.density) * case.dt
        slack = 8 * size * (np.sum(d_g) + np.sum(np.abs(g)) * bound.weight)
        h = 1e-6
        for i in range(24):
            for channel in range(4):
                ends = []
                for s in (1, -1):
                    moved_rgb, moved_density = rgb.copy(), density.copy()
                    if channel < 3:
                        moved_rgb[i, channel] += s * h
                    else:
                        moved_density[i] += s * h
                    ends.append(value(moved_rgb, moved_density))
                slope = (ends[0] - ends[1]) / (2 * h)
                got = float(d_raw[i, channel])
                if channel < 3 and activation == "Exponential" and i < count:
                    got -= max(0.0, 1e-4 * float(rgb[i, channel]))
                scale = sigma_dt[i] if channel == 3 else 1.0
                assert abs(got - slope) <= slack * scale + 1e-8, (i, channel)


@pytest.mark.parametrize("raw", [-100.0, -16.0, 16.0, 17.0, 80.0])
def test_extreme_density(raw: float) -> None:
    """sigma = exp(raw) without a clamp, its derivative exp(clamp(raw, +-15))."""
    case = ray(12, 13, -1.0, loss="L2")
    density = case.density.copy()
    density[4] = raw
    result = check(replace(case, density=density))
    assert result.stopped == (raw > 0)


def test_infinite_density() -> None:
    """exp(raw) overflows float32: opaque, and every gradient stays finite."""
    case = ray(12, 14, -1.0)
    density = case.density.copy()
    density[4] = 100.0
    _, count, d_raw = replace(case, density=density).run()
    assert count == 5 and np.all(np.isfinite(d_raw))


def expected_distance(case: Case) -> float:
    """The sum of weight * t over the samples that were composited."""
    result = case.composite()
    n = min(result.used, len(case.t))
    return float(result.weight[:n] @ case.t[:n])


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_depth_gradient(loss: str) -> None:
    """lambda L'(sum w t - target) (T_after t - suffix), beside the colours' gradient, whose value stays (E.4)."""
    for n, seed, shift in ((1, 21, -1.5), (40, 22, -1.5), (200, 23, 0.0), (400, 24, 3.0)):
        plain = ray(n, seed, shift)
        distance = expected_distance(plain)
        for target in (0.5 * distance, distance + 0.2):
            case = replace(plain, depth_loss=loss, depth_weight=0.7, distance=target)
            value, count, d_raw = case.run()
            plain_value, plain_count, plain_raw = plain.run()
            assert value == plain_value and count == plain_count, "the loss that is reported is that of colours"
            assert np.array_equal(d_raw[:, :3], plain_raw[:, :3])
            result = case.composite()
            weight_error = Errors.of(result, case.background).weight
            far = float(case.t[:count].max())
            error = weight_error * far + 4 * U * far
            target = float(np.float32(target))
            g = 0.7 * float(losses.loss_gradient(loss, distance, target))
            ends = [float(losses.loss_gradient(loss, distance + s * error, target)) for s in (1, -1)]
            d_g = 0.7 * abs(ends[0] - ends[1]) + 16 * U * abs(g)
            t = np.append(case.t.astype(np.float64), 0.0)  # of ended()'s last sample, which has no weight
            wanted = compositing.depth_backward(case.ended()[1], case.ended()[2], t, g)[:n]
            sigma = compositing.density_activation(case.density)[1]
            bound = sigma * case.dt * (d_g * 2 * far + abs(g) * (2 * error + weight_error * far))
            bound += 8 * U * (np.abs(wanted) + np.abs(plain_raw[:, 3]) + np.abs(d_raw[:, 3]))
            assert_within(d_raw[:, 3] - plain_raw[:, 3].astype(np.float64), wanted, bound, "depth term")
            assert n == 1 or np.abs(wanted).max() > 1e-6, "the test means something"


def test_depth_is_off_without_weight_or_target() -> None:
    """Bit by bit."""
    plain = ray(50, 25, 0.0)
    for case in (replace(plain, distance=0.3), replace(plain, depth_weight=0.5)):
        assert all(np.array_equal(a, b) for a, b in zip(case.run(), plain.run(), strict=True))
    on = replace(plain, distance=0.3, depth_weight=0.5)
    assert not np.array_equal(on.run()[2], plain.run()[2])


def test_depth_finite_differences() -> None:
    """Against central differences of lambda (sum w t - target)^2, without colours."""
    case = ray(24, 26, 0.0, loss="L2", depth_loss="L2", depth_weight=1.5)
    case = replace(case, distance=0.6 * expected_distance(case))
    plain = replace(case, depth_weight=0.0)
    got = case.run()[2][:, 3].astype(np.float64) - plain.run()[2][:, 3]
    _, density, dt = (a.astype(np.float64) for a in case.ended())
    t = np.append(case.t.astype(np.float64), 0.0)
    target = float(np.float32(case.distance))

    def value(raw: np.ndarray) -> float:
        result = compositing.composite(np.zeros((25, 3)), raw, dt, np.zeros(3))
        return 1.5 * (float(result.weight @ t[: result.used]) - target) ** 2

    h, steps = 1e-6, np.eye(25)
    wanted = np.array([(value(density + h * steps[i]) - value(density - h * steps[i])) / (2 * h) for i in range(24)])
    # Rounding of float32 sums of 24 terms; of the differences, h^2.
    assert_within(got, wanted, 1e-5 * np.abs(wanted).max() + 1e-9, "dL/draw density")
