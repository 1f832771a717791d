"""The whole radiance field: raw outputs and the gradient of all parameters (D.3, E.1)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from pyngp._core import stages
from reference import mlp
from stages.helpers import (
    LAMBDA,
    PLACES,
    U_HALF,
    EncodingTwin,
    Json,
    MlpTwin,
    U,
    as_halves,
    assert_near,
    assert_within,
    concatenated,
    grid_encoding,
    model_config,
    network,
    no_error,
    unit_directions,
)

DENSITY_OUTPUTS = 16


@dataclass
class ModelTwin:
    """Encoding -> density network -> [its outputs | direction encoding] -> rgb network."""

    config: str
    aabb_scale: int = 1

    def __post_init__(self) -> None:
        c: Json = json.loads(self.config)
        nets = [c["network"], c["rgb_network"]]
        pads = [8 if n["otype"] == "CutlassMLP" else 16 for n in nets]
        self.position = EncodingTwin(c["encoding"], self.aabb_scale, pads[0])
        self.direction = EncodingTwin(c["dir_encoding"], 1, pads[1])
        widths = [self.position.width, DENSITY_OUTPUTS + self.direction.width]
        self.density, self.rgb = (
            mlp.MlpShape(w, out, n["n_neurons"], n["n_hidden_layers"], pad)
            for w, out, n, pad in zip(widths, (DENSITY_OUTPUTS, 3), nets, pads, strict=True)
        )
        self.rgb_begin = self.density.n_params
        self.grid_begin = self.rgb_begin + self.rgb.n_params
        self.n_params = self.grid_begin + self.position.n_params

    def blocks(self) -> dict[str, slice]:
        """Where each kind of parameter is."""
        return {
            "density network": slice(0, self.rgb_begin),
            "rgb network": slice(self.rgb_begin, self.grid_begin),
            "grid": slice(self.grid_begin, self.n_params),
        }

    def unit(self, positions: np.ndarray) -> np.ndarray:
        """Float32 positions relative to the scene box, which decide cells; clamped."""
        low, side = np.float32(0.5 - 0.5 * self.aabb_scale), np.float32(self.aabb_scale)
        return np.clip((positions - low) * (np.float32(1.0) / side), 0, 1).astype(np.float32)

    def forward(self, params: np.ndarray, positions: np.ndarray, directions: np.ndarray) -> tuple[MlpTwin, MlpTwin]:
        p = params.astype(np.float64)
        encoded, bound = self.position.encode(p[self.grid_begin :], self.unit(positions))
        first = MlpTwin(mlp.unpack(self.density, p[: self.rgb_begin]), encoded, bound)
        half = ((directions + np.float32(1)) * np.float32(0.5)).astype(np.float32)
        d, d_bound = self.direction.encode(np.zeros(0), half)
        # (d + 1) / 2 is rounded here as in the library; one more rounding comes with 2x - 1
        x = np.concatenate([first.output, d], axis=1)
        sd_x = np.concatenate([first.sd[-1], d_bound], axis=1)
        pad = self.rgb.padded_in - x.shape[1]
        assert pad == 0
        second = MlpTwin(mlp.unpack(self.rgb, p[self.rgb_begin : self.grid_begin]), x, sd_x)
        return first, second

    def raw(self, params: np.ndarray, positions: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(N, 4): raw rgb and raw density."""
        first, second = self.forward(params, positions, directions)
        return np.concatenate([second.output[:, :3], first.output[:, :1]], axis=1)

    def gradient(
        self,
        params: np.ndarray,
        positions: np.ndarray,
        directions: np.ndarray,
        d_raw: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient of sum(d_raw * raw) and its float32 error."""
        first, second = self.forward(params, positions, directions)
        d_rgb = np.zeros(second.output.shape)
        d_rgb[:, :3] = d_raw[:, :3]
        dw_rgb, sd_rgb, d, sd_d = second.backward(d_rgb, no_error(d_rgb))
        d, sd_d = d[:, :DENSITY_OUTPUTS].copy(), sd_d[:, :DENSITY_OUTPUTS]
        d[:, 0] += d_raw[:, 3]
        dw_density, sd_density, d, sd_d = first.backward(d, sd_d + U * np.abs(d))
        used = self.position.columns
        d_grid, sd_grid = self.position.params_gradient(self.unit(positions), d[:, used], sd_d[:, used])
        blocks = [*dw_density, *dw_rgb, d_grid], [*sd_density, *sd_rgb, sd_grid]
        return concatenated(blocks[0]), concatenated(blocks[1])


def samples(twin: ModelTwin, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, and positions, directions and upstream gradients away from ReLU kinks.

    Some positions lie outside the box, on its faces, or share a cell with their neighbours.
    """
    r = np.random.default_rng(seed)
    bounds = [np.sqrt(6 / sum(s)) for net in (twin.density, twin.rgb) for s in net.matrix_shapes]
    sizes = [a * b for net in (twin.density, twin.rgb) for a, b in net.matrix_shapes]
    blocks = [r.uniform(-b, b, size=k) for b, k in zip(bounds, sizes, strict=True)]
    blocks.append(r.uniform(-1, 1, size=twin.position.n_params))
    params = np.concatenate(blocks).astype(np.float32)
    m = 2 * n + 16
    unit = r.uniform(-0.02, 1.02, size=(m, 3))
    unit[: m // 4] = unit[0] + np.arange(m // 4)[:, None] * 1e-3  # along a ray
    unit[-8:] = np.round(unit[-8:])
    positions = (0.5 + twin.aabb_scale * (unit - 0.5)).astype(np.float32)
    directions = unit_directions(m, seed + 1)
    first, second = twin.forward(params, positions, directions)
    keep = np.flatnonzero(first.kink_free & second.kink_free)[:n]
    assert len(keep) == n
    d_raw = r.normal(size=(n, 4)).astype(np.float32)
    return params, positions[keep], directions[keep], d_raw


def half_tolerance(twin: ModelTwin) -> float:
    """Of the norm of a block, on a device with halves: encoding, inputs and gradients of every layer are rounded once
    each on the way there and back, by U_HALF at most and independently. Sums whose terms cancel feel it more: by the
    ratio of the norms of sum|terms| and |sum|, about 2 for terms of random signs.
    """
    roundings = 2 * (1 + twin.density.n_hidden_layers + 1 + twin.rgb.n_hidden_layers + 1)
    return 2 * U_HALF * float(np.sqrt(roundings))


def check_halves(config: str, n: int, device: str, aabb_scale: int = 1) -> None:
    """As check(), on a device that computes with halves."""
    twin = ModelTwin(config, aabb_scale)
    params, positions, directions, d_raw = samples(twin, n)
    params = as_halves(params)
    model = stages.Model(config, aabb_scale, positions, directions, d_raw, device=device)
    model.set_params(params)
    assert np.array_equal(model.params(), params)
    tolerance = half_tolerance(twin)
    model.forward()
    if n > 0:
        assert_near(model.raw(), twin.raw(params, positions, directions), tolerance, "raw")
    model.forward_backward()
    model.scatter()
    gradient = model.gradient()
    wanted, _ = twin.gradient(params, positions, directions, d_raw)
    for name, block in twin.blocks().items():
        assert_near(gradient[block], wanted[block], tolerance, name)
    assert np.all(gradient[wanted == 0.0] == 0.0)  # untouched entries stay untouched


def check(config: str, n: int, device: str, isa: str, aabb_scale: int = 1) -> None:
    if device != "cpu":
        return check_halves(config, n, device, aabb_scale)
    twin = ModelTwin(config, aabb_scale)
    params, positions, directions, d_raw = samples(twin, n)
    model = stages.Model(config, aabb_scale, positions, directions, d_raw, isa=isa)
    assert model.params().shape == (twin.n_params,)
    model.set_params(params)
    first, second = twin.forward(params, positions, directions)
    sd = np.concatenate([second.sd[-1][:, :3], first.sd[-1][:, :1]], axis=1)
    model.forward()
    if n > 0:
        assert_within(model.raw(), twin.raw(params, positions, directions), LAMBDA * sd, "raw")
    model.forward_backward()
    model.scatter()
    gradient = model.gradient()
    wanted, sd = twin.gradient(params, positions, directions, d_raw)
    for name, block in twin.blocks().items():
        assert_within(gradient[block], wanted[block], LAMBDA * sd[block], name)
    assert np.all(gradient[wanted == 0.0] == 0.0)  # untouched entries stay untouched


SH4 = json.loads(model_config())["dir_encoding"]
MODELS: dict[str, Json] = {
    "base": {},
    "smoothstep": {"encoding": grid_encoding(interpolation="Smoothstep")},
    "F1": {"encoding": grid_encoding(n_features_per_level=1)},
    "F4 dense": {"encoding": grid_encoding("DenseGrid", n_features_per_level=4)},
    "F8 tiled": {"encoding": grid_encoding("TiledGrid", n_features_per_level=8)},
    "width 128": {"network": network(128, 3), "rgb_network": network(128, 5)},
    "width 16": {"network": network(16, 2), "rgb_network": network(32, 1)},
    "cutlass": {"network": network(24, 2, 8), "rgb_network": network(40, 3, 8)},
    "cutlass 256": {"network": network(256, 1, 8), "rgb_network": network(64, 1)},
    "linear": {"network": network(64, 0, 8), "rgb_network": network(64, 0, 8)},
    "SH 2": {"dir_encoding": {"otype": "SphericalHarmonics", "degree": 2}},
    "SH 3, cutlass": {
        "dir_encoding": {"otype": "SphericalHarmonics", "degree": 3},
        "rgb_network": network(64, 2, 8),
    },
    "direction identity, cutlass": {
        "dir_encoding": {"otype": "Identity"},
        "rgb_network": network(32, 1, 8),
    },
    "direction frequency": {"dir_encoding": {"otype": "Frequency", "n_frequencies": 3}},
    "position frequency": {"encoding": {"otype": "Frequency", "n_frequencies": 4}},
    "position identity": {"encoding": {"otype": "Identity"}},
}


def small_config(name: str) -> str:
    return model_config(**({"encoding": grid_encoding()} | MODELS[name]))


@pytest.mark.parametrize(("device", "isa"), PLACES)
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, device: str, isa: str) -> None:
    check(small_config(name), 65, device, isa)


@pytest.mark.parametrize(("device", "isa"), PLACES)
@pytest.mark.parametrize("n", [0, 1, 63, 64, 1100])
def test_sizes(n: int, device: str, isa: str) -> None:
    """Empty, partial tiles, and more than one task."""
    check(small_config("base"), n, device, isa)


@pytest.mark.parametrize("aabb_scale", [2, 4, 128])
def test_scene_boxes(aabb_scale: int, device: str) -> None:
    encoding = grid_encoding(n_features_per_level=4, base_resolution=16, log2_hashmap_size=10)
    check(model_config(encoding=encoding | {"per_level_scale": 0.0}), 100, device, "", aabb_scale)


ENCODED = ["base", "smoothstep", "F1", "F8 tiled", "cutlass", "position frequency", "position identity"]


@pytest.mark.parametrize("aabb_scale", [1, 4])
@pytest.mark.parametrize("name", ENCODED)
def test_encoded_and_density_gradient(name: str, aabb_scale: int, device: str) -> None:
    """The position encoding alone, and the slope of the raw density, within the float32 bound or that of halves."""
    config = small_config(name)
    twin = ModelTwin(config, aabb_scale)
    params, positions, directions, d_raw = samples(twin, 200)
    params = as_halves(params)
    model = stages.Model(config, aabb_scale, positions, directions, d_raw, device=device)
    model.set_params(params)
    p, unit = params.astype(np.float64), twin.unit(positions)
    wanted, bound = twin.position.encode(p[twin.grid_begin :], unit)
    model.encode()
    encoded = model.encoded()
    assert_within(encoded, wanted, bound if device == "cpu" else bound + U_HALF * np.abs(wanted), "encoded")

    first, _ = twin.forward(params, positions, directions)
    d_density = np.zeros(first.output.shape)
    d_density[:, 0] = 1.0
    _, _, d, sd_d = first.backward(d_density, no_error(d_density))
    d, sd_d = d[:, twin.position.columns], sd_d[:, twin.position.columns]
    table = p[twin.grid_begin :]
    slope, bound = twin.position.position_gradient(table, unit, d)
    variance = np.zeros(slope.shape)
    for k, one in enumerate(np.eye(d.shape[1])):
        along, _ = twin.position.position_gradient(table, unit, np.tile(one, (len(d), 1)))
        variance += (along * sd_d[:, k : k + 1]) ** 2
    gradient = model.density_gradient()
    if device == "cpu":
        assert_within(gradient, slope / aabb_scale, (bound + LAMBDA * np.sqrt(variance)) / aabb_scale, "gradient")
    else:
        assert_near(gradient, slope / aabb_scale, half_tolerance(twin), "gradient")
    assert np.linalg.norm(slope) > 1  # the test means something


@pytest.mark.parametrize("name", ["base", "smoothstep", "cutlass", "direction frequency"])
def test_finite_differences(name: str) -> None:
    """Along random directions in each block, against central differences of the float64 model."""
    config = small_config(name)
    twin = ModelTwin(config)
    params, positions, directions, d_raw = samples(twin, 130, 3)
    model = stages.Model(config, 1, positions, directions, d_raw)
    model.set_params(params)
    model.forward_backward()
    model.scatter()
    gradient = model.gradient().astype(np.float64)
    _, sd = twin.gradient(params, positions, directions, d_raw)
    r = np.random.default_rng(4)
    ends = [0, twin.rgb_begin, twin.grid_begin, twin.n_params]
    for block, (begin, end) in enumerate(pairwise(ends)):
        for _ in range(4):
            v = np.zeros(twin.n_params)
            v[begin:end] = r.normal(size=end - begin)
            h = 1e-7  # keeps within ReLU kinks' distance; float64 leaves 1e-16 * 1e2 / 1e-7
            p = params.astype(np.float64)
            value = [np.sum(d_raw * twin.raw(p + s * h * v, positions, directions)) for s in (1, -1)]
            slope = (value[0] - value[1]) / (2 * h)
            rounding = LAMBDA * np.sqrt(np.sum((sd * v) ** 2)) + 1e-5
            assert abs(gradient @ v - slope) <= rounding, block
            assert abs(slope) > 20 * rounding  # the test means something


def test_gradients_accumulate(device: str) -> None:
    """Two passes give twice the gradient, until an optimizer step takes it."""
    config = small_config("base")
    twin = ModelTwin(config)
    params, positions, directions, d_raw = samples(twin, 100)
    model = stages.Model(config, 1, positions, directions, d_raw, device=device)
    model.set_params(params)
    passes = []
    for _ in range(2):
        model.forward_backward()
        model.scatter()
        passes.append(model.gradient())
    assert np.allclose(passes[1], 2 * passes[0], rtol=1e-5, atol=1e-6) and np.any(passes[0])
    model.optimize()
    assert np.all(model.gradient() == 0.0)


def test_initial_parameters(device: str) -> None:
    """Uniform within E.1's bounds, reaching close to them, different for every seed."""
    config = model_config(encoding=grid_encoding(log2_hashmap_size=12))
    twin = ModelTwin(config)
    empty = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros((0, 4), np.float32)
    params = stages.Model(config, 1, *empty, seed=1337, device=device).params()
    bounds = []
    for net in (twin.density, twin.rgb):
        for (rows, columns), bound in zip(net.matrix_shapes, mlp.init_uniform_bound(net), strict=True):
            bounds.append(np.full(rows * columns, bound))
    bounds.append(np.full(twin.position.n_params, 1e-4))
    scaled = params / np.concatenate(bounds)
    assert np.abs(scaled).max() <= 1 + 2 * U
    for part in np.split(scaled, np.cumsum([len(b) for b in bounds])[:-1]):
        n = len(part)
        assert part.max() > 1 - 20 / n and part.min() < -1 + 20 / n  # misses: (1 - 10/n)^n = e^-10
        assert abs(part.mean()) < 5 / np.sqrt(3 * n) and abs(part.std() - 3**-0.5) < 3 / np.sqrt(n)
    again = stages.Model(config, 1, *empty, seed=1337, device=device).params()
    other = stages.Model(config, 1, *empty, seed=1338, device=device).params()
    assert np.array_equal(params, again) and not np.any(params[:100] == other[:100])
