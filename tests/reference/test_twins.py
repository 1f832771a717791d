"""Self-tests of the twins: closed forms, finite differences, and published facts."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from . import adam, color, compositing, frequency, grid, lens, losses, march, mlp, occupancy, pose
from .rng import Pcg32, ray_generator
from .sh import basis, jacobian, sh4, sh4_jacobian

# D.4: total entries of base.json (L8 F4 T2^19 base 16) by aabb_scale
TOTALS = {
    1: 2920448,
    2: 3165232,
    4: 3213824,
    8: 3235008,
    16: 3260416,
    32: 3298704,
    64: 3344936,
    128: 3411968,
}


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


# --------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize("aabb_scale,total", TOTALS.items())
def test_level_table_totals(aabb_scale: int, total: int) -> None:
    b = grid.default_per_level_scale(2048, 16, 8, aabb_scale)
    assert grid.total_entries(grid.level_table(8, 16, b, 19)) == total


def test_level_table_resolutions() -> None:
    one = grid.level_table(8, 16, grid.default_per_level_scale(2048, 16, 8, 1), 19)
    assert [level.resolution for level in one] == [16 << k for k in range(8)]
    four = grid.level_table(8, 16, grid.default_per_level_scale(2048, 16, 8, 4), 19)
    assert [level.resolution for level in four] == [16, 40, 96, 232, 566, 1379, 3361, 8193]
    sdf = grid.level_table(16, 16, grid.default_per_level_scale(2048, 16, 16), 19)
    assert grid.total_entries(sdf) == 6098120
    # specs/grids.md, figure 2 of the paper: N_max 4096, F = 2
    paper = grid.level_table(16, 16, grid.default_per_level_scale(4096, 16, 16), 14)
    assert grid.total_entries(paper) * 2 == 494592
    dense = grid.level_table(8, 16, 1.405, 19, kind="Dense")
    assert [level.resolution for level in dense] == [16, 23, 32, 45, 63, 88, 124, 173]
    assert grid.total_entries(dense) * 2 == 16312048
    tiled = grid.level_table(2, 128, 1.0, 19, kind="Tiled")
    assert grid.total_entries(tiled) * 8 == 33554432


def test_entry_index_hash_and_wrap() -> None:
    levels = grid.level_table(8, 16, 2.0, 14)
    assert not levels[0].hashed and all(level.hashed for level in levels[1:])
    vertex = np.array([[5, 7, 11], [16, 16, 16]], dtype=np.uint32)
    dense = grid.entry_index(levels[0], vertex)
    assert dense.tolist() == [5 + 7 * 16 + 11 * 256, (16 + 16 * 16 + 16 * 256) % 4096]
    expected = (5 ^ (7 * 2654435761 & 0xFFFFFFFF) ^ (11 * 805459861 & 0xFFFFFFFF)) % 16384
    assert grid.entry_index(levels[3], vertex)[0] == levels[3].offset + expected


def small_grid(interpolation_seed: int, n_features: int = 2, n_dims: int = 3) -> tuple[list, np.ndarray, np.ndarray]:
    levels = grid.level_table(3, 4, 1.7, 6, n_dims)
    r = rng(interpolation_seed)
    params = r.normal(size=(grid.total_entries(levels), n_features))
    # away from cell borders, so that finite differences stay in one cell of every level
    x = r.uniform(0.02, 0.98, size=(400, n_dims)).astype(np.float32)
    keep = np.ones(len(x), dtype=bool)
    for level in levels:
        _, fraction = grid.cell_and_fraction(level, x)
        keep &= np.all((fraction > 0.05) & (fraction < 0.95), axis=1)
    assert keep.sum() > 20
    return levels, params, x[keep]


@pytest.mark.parametrize("n_dims", [2, 3, 4])
@pytest.mark.parametrize("interpolation", ["Linear", "Smoothstep", "Nearest"])
def test_grid_gradients(interpolation: str, n_dims: int) -> None:
    levels, params, x = small_grid(3, n_dims=n_dims)
    d_out = rng(4).normal(size=(len(x), len(levels) * 2))

    def value(p: np.ndarray, at: np.ndarray) -> float:
        return float(np.sum(grid.encode(levels, p, at, interpolation) * d_out))

    d_params = grid.params_gradient(levels, 2, x, d_out, interpolation)
    direction = rng(5).normal(size=params.shape)
    linear = value(params + direction, x) - value(params, x)  # exact: linear in the parameters
    assert linear == pytest.approx(np.sum(d_params * direction), rel=1e-11)
    d_x = grid.position_gradient(levels, params, x, d_out, interpolation)
    h = np.float32(2.0**-11)
    for axis, sample in product(range(n_dims), range(len(x))):
        step = np.zeros(n_dims, dtype=np.float32)
        step[axis] = h
        low, high = x[sample : sample + 1] - step, x[sample : sample + 1] + step
        out = [grid.encode(levels, params, at, interpolation) @ d_out[sample] for at in (low, high)]
        width = float(high[0, axis]) - float(low[0, axis])
        # float32 p is off by up to 2^-22, over a width of 2^-10: 3e-4 of the slope scale
        assert (out[1] - out[0])[0] / width == pytest.approx(d_x[sample, axis], abs=2e-2, rel=2e-3)


def test_grid_interpolates_linear_functions() -> None:
    """A dense level whose values are linear in the vertex reproduces that function."""
    level = grid.level_table(1, 16, 1.0, 19)
    cells = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    params = np.zeros((4096, 1))
    slope = np.array([1.0, -2.0, 0.5])
    params[grid.entry_index(level[0], cells.astype(np.uint32)), 0] = cells @ slope
    x = rng(2).uniform(0.0, 0.96, size=(100, 3)).astype(np.float32)
    expected = (15.0 * x.astype(np.float64) + 0.5) @ slope
    assert np.allclose(grid.encode(level, params, x)[:, 0], expected, atol=2e-5)


# ----------------------------------------------------------------------------- other encodings, MLP


def test_sh_orthonormal() -> None:
    """Gauss-Legendre in z times the trapezoid in phi is exact for products of degree 6."""
    z, wz = np.polynomial.legendre.leggauss(8)
    phi = np.arange(16) * 2.0 * np.pi / 16
    zz, pp = np.meshgrid(z, phi, indexing="ij")
    s = np.sqrt(1.0 - zz**2)
    d = np.stack([s * np.cos(pp), s * np.sin(pp), zz], axis=-1).reshape(-1, 3)
    w = np.repeat(wz, 16) * 2.0 * np.pi / 16
    basis = sh4(d)
    assert np.allclose(basis.T @ (w[:, None] * basis), np.eye(16), atol=5e-8)  # 8-digit constants


def test_sh_jacobian() -> None:
    d = rng(7).normal(size=(20, 3))
    jacobian = sh4_jacobian(d)
    for axis in range(3):
        h = np.zeros(3)
        h[axis] = 1e-5
        assert np.allclose((sh4(d + h) - sh4(d - h)) / 2e-5, jacobian[:, :, axis], atol=1e-8)


def test_sh_from_the_definition() -> None:
    """Agrees with all 16 coefficients of D.3 (8 digits) and their derivatives; orthonormal to degree 8."""
    d = rng(9).normal(size=(50, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    assert np.allclose(basis(d, 4), sh4(d), atol=1e-7, rtol=0)
    assert np.allclose(jacobian(d, 4), sh4_jacobian(d), atol=4e-7, rtol=0)
    z, wz = np.polynomial.legendre.leggauss(10)
    phi = np.arange(20) * 2.0 * np.pi / 20
    zz, pp = np.meshgrid(z, phi, indexing="ij")
    s = np.sqrt(1.0 - zz**2)
    d = np.stack([s * np.cos(pp), s * np.sin(pp), zz], axis=-1).reshape(-1, 3)
    w = np.repeat(wz, 20) * 2.0 * np.pi / 20
    values = basis(d, 8)
    assert np.allclose(values.T @ (w[:, None] * values), np.eye(64), atol=1e-12)
    for axis in range(3):
        h = np.zeros(3)
        h[axis] = 1e-5
        slope = (basis(d + h, 8) - basis(d - h, 8)) / 2e-5
        assert np.allclose(slope, jacobian(d, 8)[:, :, axis], atol=1e-6)


def test_sh_signs_of_high_bands() -> None:
    """On the equator Y(l, m) has the sign of (-1)^m cos or sin of m phi: the highest order of each band."""
    phi = 0.1
    values = basis([[math.cos(phi), math.sin(phi), 0.0]], 8)[0]
    for band in range(8):
        sign = (-1) ** band
        assert sign * values[band * band + 2 * band] > 0
        assert band == 0 or sign * values[band * band] > 0
    # along z only m = 0 is left: sqrt((2l+1) / (4 pi))
    pole = basis([[0.0, 0.0, 1.0]], 8)[0]
    wanted = np.zeros(64)
    for band in range(8):
        wanted[band * band + band] = math.sqrt((2 * band + 1) / (4 * math.pi))
    assert np.allclose(pole, wanted, atol=1e-12)


def test_triangle_wave() -> None:
    """Values worked out by hand, period and range; the gradient by differences."""
    assert frequency.triangle_wave([[0.0], [0.5], [1.0]], 1)[:, 0].tolist() == [1.0, 0.0, -1.0]  # v = 0, 1/4, 1/2
    assert frequency.triangle_wave([[0.25, 0.5]], 3)[0].tolist() == [0.5, -1.0, 1.0, 0.0, 0.0, -1.0]
    x = rng(10).uniform(size=(50, 2))
    assert np.allclose(frequency.triangle_wave(x, 4), frequency.triangle_wave(x + 2, 4))
    assert np.abs(frequency.triangle_wave(rng(11).uniform(size=(5000, 1)), 6)).max() <= 1
    check_gradient(lambda at: frequency.triangle_wave(at, 6), lambda d: frequency.triangle_wave_gradient(x, 6, d), x)


@pytest.mark.parametrize("n_bins", [1, 2, 3, 16])
def test_one_blob(n_bins: int) -> None:
    """Against sums over a fine grid of the periodic kernel; bins add up to 1; the gradient by differences."""
    x = np.concatenate([rng(12).uniform(size=(20, 2)), [[0.0, 1.0], [0.5, 1 / n_bins]]])
    n = 1000 * n_bins
    t = (np.arange(n) + 0.5) / n
    away = np.abs(t - x[:, :, None] + np.arange(-2, 3)[:, None, None, None]) * n_bins
    kernel = np.sum(n_bins * 15 / 16 * np.maximum(1 - away**2, 0) ** 2, axis=0)
    wanted = kernel.reshape(len(x), 2, n_bins, 1000).sum(axis=3) / n
    got = frequency.one_blob(x, n_bins)
    assert np.allclose(got, wanted.reshape(len(x), -1), atol=1e-5)
    assert np.allclose(got.reshape(len(x), 2, n_bins).sum(axis=2), 1)
    if n_bins > 1:
        assert got[-2, 0] == pytest.approx(0.5) and got[-2, n_bins - 1] == pytest.approx(0.5)  # x = 0 wraps around
    x = x[:20]
    check_gradient(lambda at: frequency.one_blob(at, n_bins), lambda d: frequency.one_blob_gradient(x, n_bins, d), x)


def check_gradient(
    encode: Callable[[np.ndarray], np.ndarray], gradient: Callable[[np.ndarray], np.ndarray], x: np.ndarray
) -> None:
    """dL/dx of an encoding of single coordinates, away from kinks, by central differences."""
    d_out = rng(13).normal(size=encode(x).shape)
    slopes = gradient(d_out)
    for axis in range(x.shape[1]):
        h = np.zeros(x.shape)
        h[:, axis] = 1e-6
        wanted = np.sum((encode(x + h) - encode(x - h)) * d_out, axis=1) / 2e-6
        assert np.allclose(slopes[:, axis], wanted, atol=1e-4)


def test_frequency_order_and_gradient() -> None:
    x = np.array([[0.25, 0.1]])
    out = frequency.frequency(x, 2)
    expected = [math.sin(math.pi / 4), math.cos(math.pi / 4), 1.0, 0.0]
    expected += [math.sin(0.1 * math.pi), math.cos(0.1 * math.pi)]
    expected += [math.sin(0.2 * math.pi), math.cos(0.2 * math.pi)]
    assert np.allclose(out[0], expected)
    d_out = rng(8).normal(size=(1, 8))
    for axis in range(2):
        h = np.zeros((1, 2))
        h[0, axis] = 1e-6
        slope = np.sum((frequency.frequency(x + h, 2) - frequency.frequency(x - h, 2)) * d_out)
        assert slope / 2e-6 == pytest.approx(frequency.frequency_gradient(x, 2, d_out)[0, axis])


def test_padding() -> None:
    d = np.array([[0.0, 0.0, 1.0]])
    latents = np.array([[0.3, 0.7]])
    out = frequency.composite([("SphericalHarmonics", sh4(d)), ("Identity", latents)])
    assert out.shape == (1, 32) and out[0, 16:18].tolist() == [0.3, 0.7]
    assert np.all(out[0, 18:] == 1.0)
    assert frequency.pad(np.ones((1, 9)), "SphericalHarmonics", 16)[0, :7].tolist() == [1.0] * 7
    assert frequency.pad(np.ones((1, 12)), "Grid", 16)[0, 12:].tolist() == [0.0] * 4
    assert frequency.composite([("Identity", d)], 8)[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("hidden", [0, 1, 2, 3])
def test_mlp_gradients(hidden: int) -> None:
    shape = mlp.MlpShape(n_in=5, n_out=3, width=16, n_hidden_layers=hidden, alignment=8)
    r = rng(hidden)
    blob = r.normal(size=shape.n_params) * 0.5
    x, d_out = r.normal(size=(6, 8)), r.normal(size=(6, 8))
    weights = mlp.unpack(shape, blob)
    assert np.array_equal(mlp.pack(weights), blob)
    _, inputs = mlp.forward(weights, x)
    d_weights, d_x = mlp.backward(weights, inputs, d_out)

    def value(b: np.ndarray, at: np.ndarray) -> float:
        return float(np.sum(mlp.forward(mlp.unpack(shape, b), at)[0] * d_out))

    gradient = mlp.pack(d_weights)
    for index in r.integers(0, blob.size, size=40):
        h = np.zeros_like(blob)
        h[index] = 1e-6
        slope = (value(blob + h, x) - value(blob - h, x)) / 2e-6
        assert slope == pytest.approx(gradient[index], abs=1e-7)
    for index in np.ndindex(x.shape):
        h = np.zeros_like(x)
        h[index] = 1e-6
        slope = (value(blob, x + h) - value(blob, x - h)) / 2e-6
        assert slope == pytest.approx(d_x[index], abs=1e-7)


def test_mlp_sizes_of_base_configs() -> None:
    density, rgb = mlp.MlpShape(32, 16, 64, 1), mlp.MlpShape(32, 3, 64, 2)
    assert density.n_params + rgb.n_params == 10240
    assert mlp.MlpShape(32, 1, 64, 2).n_params == 7168


# --------------------------------------------------------------------------- losses and compositing


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_loss_gradients(kind: str) -> None:
    """Finite differences with the denominator frozen."""
    p, t = rng(9).uniform(0, 1, 200), rng(10).uniform(0, 1, 200)
    p, t = p[np.abs(p - t) > 1e-3], t[np.abs(p - t) > 1e-3]
    scale, h = losses.denominator(kind, p, t), 1e-7
    slope = losses.numerator(kind, p + h - t) - losses.numerator(kind, p - h - t)
    assert np.allclose(slope / (2 * h) / scale, losses.loss_gradient(kind, p, t), rtol=1e-5, atol=1e-6)


def test_huber_closed_form() -> None:
    value, slope = losses.loss_and_gradient("Huber", np.array([0.05, 0.1, -0.3]), np.zeros(3))
    assert np.allclose(value, [0.0025, 0.01, 0.05]) and np.allclose(slope, [0.1, 0.2, -0.2])


def random_ray(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r = rng(seed)
    return r.normal(size=(n, 3)), r.normal(size=n) + shift, r.uniform(0.01, 0.05, size=n)


@pytest.mark.parametrize("activation", ["Logistic", "Exponential"])
@pytest.mark.parametrize("shift", [0.0, 4.5])
def test_compositing_gradient(activation: str, shift: float) -> None:
    raw_rgb, raw_density, dt = random_ray(40, 11, shift)
    background, g = np.array([0.2, 0.5, 0.9]), np.array([0.7, -1.1, 0.4])
    result = compositing.composite(raw_rgb, raw_density, dt, background, activation)
    assert result.stopped == (shift > 0.0)
    got = compositing.backward(raw_rgb, raw_density, dt, background, g, activation)
    want = compositing.finite_difference(raw_rgb, raw_density, dt, background, g, activation)
    assert np.allclose(got[0], want[0], atol=1e-9) and np.allclose(got[1], want[1], atol=1e-9)
    assert np.all(got[1][result.used :] == 0.0)


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_ray_loss_gradient(kind: str) -> None:
    """Chain of loss and compositing; the losses with a frozen denominator are checked above."""
    raw_rgb, raw_density, dt = random_ray(12, 12)
    background, target = np.array([0.2, 0.5, 0.9]), np.array([0.35, 0.1, 0.65])
    rgb = compositing.composite(raw_rgb, raw_density, dt, background).rgb
    g = losses.loss_gradient(kind, rgb, target)
    _, got = compositing.backward(raw_rgb, raw_density, dt, background, g)
    scale = losses.denominator(kind, rgb, target)
    for i in range(12):
        h = np.zeros(12)
        h[i] = 1e-6
        ends = [compositing.composite(raw_rgb, raw_density + s * h, dt, background).rgb for s in (1, -1)]
        value = [np.sum(losses.numerator(kind, e - target) / scale) for e in ends]
        assert (value[0] - value[1]) / 2e-6 == pytest.approx(got[i], abs=1e-8)


def test_compositing_closed_forms() -> None:
    background = np.array([0.1, 0.2, 0.3])
    empty = compositing.composite(np.zeros((0, 3)), np.zeros(0), np.zeros(0), background)
    assert np.array_equal(empty.rgb, background) and empty.used == 0 and not empty.stopped
    sigma, dt = 3.0, np.full(10, 0.02)
    same = compositing.composite(np.zeros((10, 3)), np.full(10, np.log(sigma)), dt, background)
    t = math.exp(-sigma * 0.2)
    assert np.allclose(same.rgb, 0.5 * (1 - t) + t * background)


def test_depth_gradient() -> None:
    _, raw_density, dt = random_ray(10, 13)
    t = np.cumsum(dt)

    def depth(raw: np.ndarray) -> float:
        r = compositing.composite(np.zeros((10, 3)), raw, dt, np.zeros(3))
        return float(r.weight @ t[: r.used])

    got = compositing.depth_backward(raw_density, dt, t, 1.0)
    for i in range(10):
        h = np.zeros(10)
        h[i] = 1e-6
        slope = (depth(raw_density + h) - depth(raw_density - h)) / 2e-6
        assert slope == pytest.approx(got[i], abs=1e-9)


def test_regularisers_and_target() -> None:
    raw_rgb, raw = np.full((3, 3), 2.0), np.array([-1.0, 1.0, -11.0])
    d_rgb, d_raw = compositing.regulariser_gradient(
        raw_rgb, raw, 3, np.array([0.05, 0.05, 0.05]), "Exponential", 0.1, True
    )
    assert np.allclose(d_rgb, 2e-4) and np.allclose(d_raw, [0.0, 1e-4, -1e-4])
    pixel, bg = np.array([0.1, 0.2, 0.05, 0.5]), np.array([0.3, 0.3, 0.3])
    target, composited = compositing.blend_target(pixel, bg)
    assert np.allclose(color.srgb_to_linear(target), pixel[:3] + 0.5 * bg, atol=1e-4)
    assert np.allclose(composited, color.linear_to_srgb(bg))
    target, _ = compositing.blend_target(pixel, bg, "SRGB")
    straight = color.linear_to_srgb(pixel[:3] / 0.5)
    assert np.allclose(target, 0.5 * straight + 0.5 * color.linear_to_srgb(bg))


# ---------------------------------------------------------------------------------------- optimizer


def test_adam_first_step_and_skip() -> None:
    config = adam.AdamConfig(learning_rate=0.1, l2_reg=1.0)
    state = adam.AdamState(np.array([1.0, 1.0, 1.0]))
    adam.adam_step(state, np.array([0.0, 0.0, -5.0]), 1, config)
    # 0 moves by its L2 term alone, 1 is skipped, 2 moves by the full rate
    assert np.allclose(state.weights, [0.9, 1.0, 1.1]) and state.steps.tolist() == [1, 0, 1]
    adam.adam_step(state, np.array([0.0, 3.0, 0.0]), 1, config)
    assert np.allclose(state.weights[1:], [0.9, 1.1]) and state.steps.tolist() == [2, 1, 1]
    m = (0.9 * 0.1 * 1.0 + 0.1 * 0.9) / (1 - 0.9**2)
    v = (0.99 * 0.01 * 1.0 + 0.01 * 0.81) / (1 - 0.99**2)
    assert state.weights[0] == pytest.approx(0.9 - 0.1 * m / math.sqrt(v))


def test_lr_schedule_and_ema() -> None:
    factors = [adam.lr_factor(s) for s in (0, 19999, 20000, 29999, 30000)]
    assert factors == pytest.approx([1.0, 1.0, 0.33, 0.33, 0.33**2])
    assert adam.lr_factor(10**6, 10000, 5000, 0.33, end=25000) == pytest.approx(0.33**4)
    w, average, plain = rng(14).normal(size=20), np.zeros(1), 0.0
    for n, value in enumerate(w, start=1):
        average = adam.ema_update(average, np.array([value]), n)
        plain = 0.95 * plain + 0.05 * value  # biased average, debiased at the end
        assert average[0] == pytest.approx(plain / (1 - 0.95**n))


def test_pcg32() -> None:
    demo = Pcg32(42, 54)  # first outputs of the reference implementation's demo
    first = [demo.next_uint() for _ in range(6)]
    assert first == [0xA15C02B7, 0x7B47F409, 0xBA1D3330, 0x83D2F293, 0xBFA4784B, 0xCBED606E]
    slow, fast = Pcg32(), ray_generator(0, 3)
    for _ in range(48):
        slow.next_uint()
    assert slow.state == fast.state
    fast.advance(-48)
    assert fast.state == Pcg32().state
    assert 0.0 <= float(fast.next_float()) < 1.0


# ------------------------------------------------------------------------------ marching, occupancy


@pytest.mark.parametrize("cone", [0.0, 1e-5, 1.0 / 256.0, 0.01])
def test_stepping_coordinate(cone: float) -> None:
    t = np.concatenate([[0.0], np.geomspace(1e-4, 5000.0, 500)])
    n = march.to_stepping(t, cone)
    assert np.all(np.diff(n) > 0.0)
    assert np.allclose(march.from_stepping(n, cone), t, rtol=1e-11, atol=1e-12)
    if cone > 1e-5:
        dt = march.step_size(t, cone)
        assert np.all((dt > march.MIN_STEP * (1 - 1e-9)) & (dt < march.MAX_STEP * (1 + 1e-9)))
        lam = math.log1p(cone)
        inside = (t > march.MIN_STEP / lam) & (t * (1 + cone) < march.MAX_STEP / lam)
        assert np.allclose(dt[inside], cone * t[inside], rtol=1e-9)
        for border in (march.MIN_STEP / lam, march.MAX_STEP / lam):  # continuous, smooth slope
            ends = march.to_stepping(np.array([border * (1 - 1e-6), border * (1 + 1e-6)]), cone)
            assert np.diff(ends)[0] == pytest.approx(2e-6 / lam, rel=1e-4)


def test_cascades() -> None:
    p = np.array([[0.5, 0.5, 0.5], [0.99, 0.5, 0.5], [1.01, 0.5, 0.5], [0.5, -0.6, 0.5], [9, 9, 9]])
    # exactly the centre is cascade 1, because frexp(0) has exponent 0
    assert march.cascade_from_position(p, 3).tolist() == [1, 0, 1, 2, 3]
    assert march.cascade_from_position(p, 0).tolist() == [0] * 5
    dt = np.array([1.0 / 512, 1.0 / 256, 1.0 / 100, 1.0, 1.0])
    assert march.cascade_for_training(p[1:2], dt, 7).tolist() == [0, 1, 2, 7, 7]
    for c in range(3):
        centre = occupancy.cell_centre(np.array([[3, 64, 127]]), c)
        cell, inside = occupancy.cell_of(centre, np.array([c]))
        assert inside[0] and cell[0].tolist() == [3, 64, 127]


@pytest.mark.parametrize("cone", [0.0, 1.0 / 256.0])
def test_march_skips_like_single_steps(cone: float) -> None:
    """Jumping over empty cells visits the same stepping lattice as stepping one by one."""
    r = rng(15)
    bits = r.uniform(size=(3, occupancy.N_CELLS)) < 0.02
    box = pose.scene_box(4)
    for _ in range(5):
        origin = r.uniform(-3, 4, size=3)
        d = r.uniform(0, 1, size=3) - origin
        d /= np.linalg.norm(d)
        samples = march.march_ray(origin, d, bits, box, cone, jitter=0.3, training=False)
        entry, leave = march.ray_box(origin[None], d[None], *box)
        t = march.advance(np.maximum(entry, 0.0), 0.3, cone)
        expected = []
        while t[0] < leave[0] and len(expected) < 1024:
            p = origin + t[:, None] * d
            cascade = march.cascade_from_position(p, 2)
            cell, inside = occupancy.cell_of(p, cascade)
            if inside[0] and bits[cascade[0], occupancy.morton(cell)[0]]:
                expected.append((float(t[0]), float(march.step_size(t, cone)[0])))
            t = march.advance(t, 1.0, cone)
        assert len(samples) == len(expected) > 0
        assert np.allclose(samples, expected, rtol=1e-9)


def test_ray_box_and_exit() -> None:
    low, high = np.zeros(3), np.ones(3)
    d = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, -1.0]])
    o = np.array([[-1.0, 0.5, 0.5], [0.5, 0.5, 0.5], [2.0, 0.5, 0.5]])
    near, far = march.ray_box(o, d, low, high)
    assert near[0] == 1.0 and far[0] == 2.0 and near[1] < 0 < far[1] and near[2] > far[2]
    p = np.array([[0.5 + 0.25 / 128, 0.5, 0.5]])
    assert march.voxel_exit(p, d[:1], np.array([0]))[0] == pytest.approx(0.75 / 128)
    assert march.voxel_exit(p, -d[:1], np.array([0]))[0] == pytest.approx(0.25 / 128)
    assert march.voxel_exit(p, d[:1], np.array([2]))[0] == pytest.approx(4 / 128 - 0.25 / 128)


def test_morton_and_threshold() -> None:
    cells = rng(16).integers(0, 128, size=(1000, 3))
    index = occupancy.morton(cells)
    assert np.array_equal(occupancy.morton_inverse(index), cells)
    assert occupancy.morton(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])).tolist() == [1, 2, 4]
    values = np.zeros((2, occupancy.N_CELLS))
    values[0, 8 * 77 + 3] = 1.0  # mean 1 / 128^3 < 0.01 is the threshold
    values[1, 5] = 1e-9
    assert occupancy.threshold(values) == pytest.approx(1.0 / occupancy.N_CELLS)
    bits = occupancy.occupied_cells(values)
    cell = occupancy.morton_inverse(np.array([8 * 77 + 3]))[0]
    assert np.flatnonzero(bits[0]).tolist() == [8 * 77 + 3]
    assert np.flatnonzero(bits[1]).tolist() == [int(occupancy.morton(cell // 2 + 32))]
    centre = occupancy.cell_centre(cell, 0)[None]
    assert np.array_equal(occupancy.cell_of(centre, np.array([1]))[0][0], cell // 2 + 32)
    packed = occupancy.pack_bits(bits)
    assert packed[77] == 8 and packed.size == 2 * occupancy.N_CELLS // 8


def test_density_grid_update() -> None:
    grid_values, new = np.array([-1.0, 1.0, 0.1, 0.0]), np.array([5.0, 0.5, 0.5, 0.0])
    assert np.allclose(occupancy.decay_update(grid_values, new), [-1.0, 0.95, 0.5, 0.0])
    n = occupancy.N_CELLS
    all_cells = occupancy.candidate_cell(np.arange(n), 0, 3, n)
    assert np.unique(all_cells).size == n  # the multiplier is odd: a permutation
    assert [occupancy.update_interval(s) for s in (0, 31, 160, 5000)] == [1, 1, 10, 16]
    assert occupancy.sample_counts(255, 2) == (2 * n, 0)
    assert occupancy.sample_counts(256, 2) == (n // 2, n // 2)
    occupied = np.where(np.arange(n) % 3 == 0, 1.0, 0.0)
    chosen = occupancy.choose_cell(occupied, np.arange(3000), 5, n, 0.01)
    assert np.mean(occupied[chosen] > 0.01) > 1.0 - (2.0 / 3.0) ** 10 - 0.03


# ---------------------------------------------------------------------------- lenses, poses, colour

LENSES = [
    ("Perspective", (0.0, 0.0, 0.0, 0.0)),
    ("OpenCV", (-0.12, 0.03, 0.002, -0.001)),
    ("OpenCVFisheye", (0.02, -0.004, 0.001, -0.0002)),
    ("FTheta", (0.01, 2e-3, -1e-6, 2e-9, 1e-12, 800.0, 600.0)),
    ("LatLong", ()),
    ("Equirectangular", ()),
    ("Orthographic", ()),
]


@pytest.mark.parametrize("mode,params", LENSES)
def test_lens_round_trip(mode: str, params: tuple[float, ...]) -> None:
    uv = rng(17).uniform(0, 1, size=(500, 2))
    camera = {"resolution": (800, 600), "focal": (700.0, 710.0), "centre": (0.48, 0.53)}
    d = lens.ray_direction(uv, mode=mode, params=params, **camera)
    point = lens.ray_origin(uv, mode=mode, **camera) + d * rng(18).uniform(0.1, 5.0, size=(500, 1))
    assert np.allclose(lens.project(point, mode=mode, params=params, **camera), uv, atol=1e-13)
    axis = (0.5, 0.5) if mode in ("LatLong", "Equirectangular") else (0.48, 0.53)
    centre = lens.ray_direction(np.array([axis]), mode=mode, params=params, **camera)
    assert np.allclose(centre, [[0.0, 0.0, 0.0 if mode == "FTheta" else 1.0]], atol=1e-14)


def test_where_no_ray_goes() -> None:
    """FTheta at the principal point and from 90 degrees on; from there, from behind and from beyond the corner."""
    params = (0.0, 4e-3, 0.0, 0.0, 0.0, 800.0, 600.0)
    camera = {"resolution": (800, 600), "focal": (700.0, 700.0), "mode": "FTheta", "params": params}
    n = np.array([0.0, 1.0, 392.0, 393.0])  # 393 * 4e-3 > pi / 2
    d = lens.ray_direction(np.stack([0.5 + n / 800, np.full(4, 0.5)], axis=-1), **camera)
    assert np.linalg.norm(d, axis=-1) == pytest.approx([0.0, 1.0, 1.0, 0.0])
    assert np.isnan(lens.project([[0.0, 0.0, 1.0], [1.0, 0.0, -0.1]], **camera)).all()
    narrow = camera | {"params": (0.0, 1e-3, 0.0, 0.0, 0.0, 800.0, 600.0)}
    assert np.isnan(lens.project([[np.tan(0.51), 0.0, 1.0]], **narrow)).all()


def test_opencv_jacobian() -> None:
    params, xy = (-0.12, 0.03, 0.02, -0.01), rng(19).normal(size=(20, 2)) * 0.5
    jacobian = lens.opencv_offset_jacobian(params, xy)
    for axis in range(2):
        h = np.zeros(2)
        h[axis] = 1e-6
        slope = lens.opencv_offset(params, xy + h) - lens.opencv_offset(params, xy - h)
        assert np.allclose(slope / 2e-6, jacobian[:, :, axis], atol=1e-8)


@pytest.mark.parametrize("mitsuba", [False, True])
def test_pose_round_trip(mitsuba: bool) -> None:
    r = rng(20)
    rotation, _ = np.linalg.qr(r.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    world = np.concatenate([rotation, r.normal(size=(3, 1))], axis=1)
    args = (0.33, np.array([0.5, 0.4, 0.3]), mitsuba)
    ngp = pose.pose_to_ngp(world, *args)
    assert np.allclose(pose.pose_from_ngp(ngp, *args), world, atol=1e-14)
    assert np.linalg.det(ngp[:, :3]) == pytest.approx(1.0)
    assert np.allclose(pose.point_to_ngp(world[:, 3], *args), ngp[:, 3])
    p = r.normal(size=(5, 3))
    assert np.allclose(pose.point_from_ngp(pose.point_to_ngp(p, *args), *args), p)
    assert np.allclose(pose.direction_from_ngp(pose.direction_to_ngp(p, mitsuba), mitsuba), p)
    if not mitsuba:  # a point seen ahead in the world is ahead in NGP space: forward = -z of OpenGL
        ahead = pose.point_to_ngp(world[:, 3] - 2.0 * rotation[:, 2], *args)
        assert np.allclose(ahead - ngp[:, 3], 0.66 * ngp[:, 2])
        assert np.allclose(pose.direction_to_ngp(-rotation[:, 2]), ngp[:, 2])


def test_color() -> None:
    x = np.linspace(0.0, 2.0, 300)
    assert np.allclose(color.srgb_to_linear(color.linear_to_srgb(x)), x, atol=1e-4)
    h = 1e-7
    slope = (color.linear_to_srgb(x[1:] + h) - color.linear_to_srgb(x[1:] - h)) / (2 * h)
    assert np.allclose(slope, color.linear_to_srgb_derivative(x[1:]), rtol=1e-5)
    slope = (color.srgb_to_linear(x[1:] + h) - color.srgb_to_linear(x[1:] - h)) / (2 * h)
    assert np.allclose(slope, color.srgb_to_linear_derivative(x[1:]), rtol=1e-5)
    grey = np.full((1, 3), 0.5)
    assert np.allclose(color.tonemap(grey, "Reinhard"), 1.0 / 3.0)
    assert np.allclose(color.tonemap(np.full((1, 3), 5.6), "Hable"), 1.0)  # twice 5.6 is the white point
    s = 0.6 * 0.5
    aces = (s * (2.51 * s + 0.03)) / (s * (2.43 * s + 0.59) + 0.14)
    assert np.allclose(color.tonemap(grey, "ACES"), aces)
    assert np.all(color.tonemap(-grey, "ACES") == 0.0)
    assert np.all(color.tonemap(-grey, "Identity") == -0.5)
