"""The whole radiance field: raw outputs and the gradient of all parameters (D.3, E.1).

On a GPU too, whose networks come in two kinds: fused ones, which keep activations as halves, and the general one. The
twin knows which (is_fused) and how far each kind may be off, element by element.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from pyngp._core import stages
from reference import mlp
from stages.helpers import (
    GRID_KINDS,
    LAMBDA,
    PLACES,
    EncodingTwin,
    Json,
    MlpTwin,
    Sums,
    U,
    as_halves,
    assert_within,
    concatenated,
    grid_encoding,
    half_interpolation,
    model_config,
    network,
    no_error,
    stored,
    unit_directions,
)

DENSITY_OUTPUTS = 16


@dataclass
class ModelTwin:
    """Encoding -> density network -> [its outputs | direction encoding] -> rgb network.

    ``n_extra``: dimensions that the direction encoding reads besides the direction. Which values a sample has there is
    a function of its direction, extra_of(), so that samples are positions and directions as without.
    """

    config: str
    aabb_scale: int = 1
    device: str = "cpu"
    n_extra: int = 0

    def __post_init__(self) -> None:
        c: Json = json.loads(self.config)
        nets = [c["network"], c["rgb_network"]]
        pads = [8 if n["otype"] == "CutlassMLP" else 16 for n in nets]
        self.position = EncodingTwin(c["encoding"], self.aabb_scale, pads[0])
        self.direction = EncodingTwin(c["dir_encoding"], 1, pads[1], 3 + self.n_extra)
        widths = [self.position.width, DENSITY_OUTPUTS + self.direction.width]
        self.density, self.rgb = (
            mlp.MlpShape(w, out, n["n_neurons"], n["n_hidden_layers"], pad)
            for w, out, n, pad in zip(widths, (DENSITY_OUTPUTS, 3), nets, pads, strict=True)
        )
        self.rgb_begin = self.density.n_params
        self.grid_begin = self.rgb_begin + self.rgb.n_params
        self.n_params = self.grid_begin + self.position.n_params
        self.relu = [n.get("activation", "ReLU") == "ReLU" for n in nets]
        self.halves = self.device != "cpu" and self.is_fused(nets)

    def is_fused(self, nets: list[Json]) -> bool:
        """Whether a GPU has fused networks for the model."""
        positions, directions = ([p for p in e.parts if p.width] for e in (self.position, self.direction))
        if len(positions) != 1 or len(directions) != 1 or self.position.width > 32:
            return False
        encoding = positions[0].config
        grid = GRID_KINDS.get(encoding["otype"]) in ("Hash", "Dense") and positions[0].n_features in (2, 4)
        of_three = positions[0].inputs == slice(0, 3)
        grid = grid and of_three and positions[0].interpolation != "Nearest"
        harmonics = directions[0].kind == "SphericalHarmonics" and directions[0].config.get("degree", 4) == 4
        widths = {self.density.width, self.rgb.width}
        hidden = self.density.n_hidden_layers == 1 and self.rgb.n_hidden_layers in (1, 2)
        outputs = self.rgb.padded_out == 16 and self.rgb.padded_in == 32
        return (
            grid and harmonics and hidden and outputs and all(self.relu)
            and len(widths) == 1 and widths <= {16, 32, 64, 128}
        )  # fmt: skip

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

    def encode(self, params: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encoded positions (N, padded width) as the density network reads them, bounds and sd of their errors."""
        table, x = params[self.grid_begin :].astype(np.float64), self.unit(positions)
        encoded, bound = self.position.encode(table, x)
        if not self.halves:
            return encoded, bound, bound
        (part,) = (p for p in self.position.parts if p.width)
        of_halves, sd = (np.zeros(encoded.shape) for _ in range(2))
        of_halves[:, self.position.columns], sd[:, self.position.columns] = half_interpolation(part, table, x)
        return encoded, bound + of_halves, np.sqrt(bound**2 + sd**2)

    def forward(
        self,
        params: np.ndarray,
        positions: np.ndarray,
        directions: np.ndarray,
        encoded: np.ndarray | None = None,
    ) -> tuple[MlpTwin, MlpTwin]:
        """Both networks; on the encoded positions that a model kept, if given, which are exact then.

        Those of samples in the same cell have errors in common, which add up in gradients of weights.
        """
        p = params.astype(np.float64)
        if encoded is None:
            encoded, _, sd = self.encode(params, positions)
        else:
            encoded, sd = encoded.astype(np.float64), np.zeros(encoded.shape)
        first = MlpTwin(mlp.unpack(self.density, p[: self.rgb_begin]), encoded, sd, *self.kind(0))
        d, d_bound = self.direction.encode(np.zeros(0), self.direction_input(directions))
        # (d + 1) / 2 is rounded here as in the library; one more rounding comes with 2x - 1
        x = np.concatenate([first.output, d], axis=1)
        sd_x = stored(x, np.concatenate([first.sd[-1], d_bound], axis=1), self.halves)
        pad = self.rgb.padded_in - x.shape[1]
        assert pad == 0
        second = MlpTwin(mlp.unpack(self.rgb, p[self.rgb_begin : self.grid_begin]), x, sd_x, *self.kind(1))
        return first, second

    def extra_of(self, directions: np.ndarray) -> np.ndarray:
        """(N, n_extra) float32 in (-1, 1): latents as they begin."""
        mix = np.random.default_rng(11).normal(size=(3, self.n_extra))
        return np.sin(3.0 * directions.astype(np.float64) @ mix).astype(np.float32)

    def direction_input(self, directions: np.ndarray) -> np.ndarray:
        half = ((directions + np.float32(1)) * np.float32(0.5)).astype(np.float32)
        return np.concatenate([half, self.extra_of(directions)], axis=1) if self.n_extra else half

    def kind(self, net: int) -> tuple[bool, bool]:
        return self.relu[net], self.halves

    def raw(
        self,
        params: np.ndarray,
        positions: np.ndarray,
        directions: np.ndarray,
        encoded: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4), raw rgb and raw density, and its error; ``encoded`` as in forward()."""
        first, second = self.forward(params, positions, directions, encoded)
        value = np.concatenate([second.output[:, :3], first.output[:, :1]], axis=1)
        return value, np.concatenate([second.sd[-1][:, :3], first.sd[-1][:, :1]], axis=1)

    def gradient(
        self,
        params: np.ndarray,
        positions: np.ndarray,
        directions: np.ndarray,
        d_raw: np.ndarray,
        sums: Sums = "floats",
        encoded: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient of sum(d_raw * raw) and its error; ``sums`` as in EncodingTwin.params_gradient."""
        first, second = self.forward(params, positions, directions, encoded)
        d_rgb = np.zeros(second.output.shape)
        d_rgb[:, :3] = d_raw[:, :3]
        dw_rgb, sd_rgb, d, sd_d = second.backward(d_rgb, no_error(d_rgb))
        d, sd_d = d[:, :DENSITY_OUTPUTS].copy(), sd_d[:, :DENSITY_OUTPUTS]
        d[:, 0] += d_raw[:, 3]
        dw_density, sd_density, d, sd_d = first.backward(d, sd_d + U * np.abs(d))
        used = self.position.columns
        d_grid, sd_grid = self.position.params_gradient(self.unit(positions), d[:, used], sd_d[:, used], sums)
        blocks = [*dw_density, *dw_rgb, d_grid], [*sd_density, *sd_rgb, sd_grid]
        return concatenated(blocks[0]), concatenated(blocks[1])

    def input_gradients(
        self,
        params: np.ndarray,
        positions: np.ndarray,
        directions: np.ndarray,
        d_raw: np.ndarray,
        encoded: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of sum(d_raw * raw), with respect to positions, directions and extra dimensions, (N, 6 + n_extra), and
        bounds of the errors."""
        first, second = self.forward(params, positions, directions, encoded)
        d_rgb = np.zeros(second.output.shape)
        d_rgb[:, :3] = d_raw[:, :3]
        _, _, d, sd_d = second.backward(d_rgb, no_error(d_rgb))
        columns = DENSITY_OUTPUTS + self.direction.columns
        x = self.direction_input(directions)
        of_direction = chained(self.direction, np.zeros(0), x, d[:, columns], sd_d[:, columns])
        d, sd_d = d[:, :DENSITY_OUTPUTS].copy(), sd_d[:, :DENSITY_OUTPUTS]
        d[:, 0] += d_raw[:, 3]
        _, _, d, sd_d = first.backward(d, sd_d + U * np.abs(d))
        used, table = self.position.columns, params[self.grid_begin :].astype(np.float64)
        of_position = chained(self.position, table, self.unit(positions), d[:, used], sd_d[:, used])
        factors = np.concatenate([np.full(3, 1 / self.aabb_scale), np.full(3, 0.5), np.ones(self.n_extra)])
        value, bound = (np.concatenate(pair, axis=1) for pair in zip(of_position, of_direction, strict=True))
        return value * factors, bound * factors


def chained(
    encoding: EncodingTwin, params: np.ndarray, x: np.ndarray, d: np.ndarray, sd_d: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient with respect to an encoding's inputs, given that of its outputs with its error; and a bound of it."""
    gradient, bound = encoding.position_gradient(params, x, d)
    variance = np.zeros(gradient.shape)
    for k, one in enumerate(np.eye(d.shape[1])):
        along, _ = encoding.position_gradient(params, x, np.tile(one, (len(d), 1)))
        variance += (along * sd_d[:, k : k + 1]) ** 2
    return gradient, bound + LAMBDA * np.sqrt(variance)


def unit_positions(r: np.random.Generator, n: int, level_scale: float) -> np.ndarray:
    """Corners of the box, borders of a level's cells, a ray, and anywhere, also outside the box."""
    special = np.array([[k >> d & 1 for d in range(3)] for k in range(8)], np.float64)
    borders = (r.integers(1, max(2, int(level_scale)), size=(8, 3)) - 0.5) / max(1.0, level_scale)
    borders[:4, 1:] = r.uniform(size=(4, 2))  # on one face only
    start, step = r.uniform(0.2, 0.8, size=3), unit_directions(1, 5)[0] * 1e-3
    ray = start + np.arange(n // 4)[:, None] * step
    return np.concatenate([r.uniform(size=(1, 3)), special, borders, ray, r.uniform(-0.02, 1.02, size=(n, 3))])


def samples(
    twin: ModelTwin, n: int, seed: int = 0, one_cell: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, and positions, directions and upstream gradients away from ReLU kinks.

    ``one_cell``: all positions in one cell of every level, rather than as unit_positions() has them.
    """
    r = np.random.default_rng(seed)
    bounds = [np.sqrt(6 / sum(s)) for net in (twin.density, twin.rgb) for s in net.matrix_shapes]
    sizes = [a * b for net in (twin.density, twin.rgb) for a, b in net.matrix_shapes]
    blocks = [r.uniform(-b, b, size=k) for b, k in zip(bounds, sizes, strict=True)]
    blocks.append(r.uniform(-1, 1, size=twin.position.n_params))
    params = np.concatenate(blocks).astype(np.float32)
    if twin.device != "cpu":
        params = as_halves(params)
    levels = twin.position.parts[0].levels
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    found = 0
    for round_number in range(200):
        if one_cell:
            unit = 0.43 + 1e-4 * r.uniform(size=(4 * n + 32, 3))
        else:
            unit = unit_positions(r, 2 * n + 16, float(levels[0].scale) if levels else 8.0)
        positions = (0.5 + twin.aabb_scale * (unit - 0.5)).astype(np.float32)
        directions = unit_directions(len(unit), seed + 1 + round_number)
        first, second = twin.forward(params, positions, directions)
        keep = np.flatnonzero(first.kink_free & second.kink_free)[: n - found]
        kept.append((positions[keep], directions[keep]))
        found += len(keep)
        if found == n:
            break
    assert found == n
    d_raw = r.normal(size=(n, 4)).astype(np.float32)
    positions, directions = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
    return params, positions, directions, d_raw


def poison(model: stages.Model, n_params: int, device: str) -> None:
    """Leaves NaN wherever the model's passes write; on the CPU, weight gradients add up, so only raw outputs."""
    model.set_params(np.full(n_params, np.nan, np.float32))
    model.forward()
    if device != "cpu":
        model.forward_backward()
        model.encoded()
        model.density_gradient()


def check(
    config: str,
    n: int,
    device: str,
    isa: str = "",
    aabb_scale: int = 1,
    deterministic: bool = False,
    one_cell: bool = False,
) -> None:
    twin = ModelTwin(config, aabb_scale, device)
    params, positions, directions, d_raw = samples(twin, n, one_cell=one_cell)
    sums: Sums = "floats" if device == "cpu" else "fixed" if deterministic else "halves"
    model = stages.Model(
        config, aabb_scale, positions, directions, d_raw, isa=isa, device=device, deterministic=deterministic
    )
    assert model.params().shape == (twin.n_params,)
    poison(model, twin.n_params, device)
    model.set_params(params)
    assert np.array_equal(model.params(), params)
    model.forward()
    raw = model.raw() if n > 0 else np.zeros((0, 4))
    model.forward_backward()
    model.scatter()
    gradient = model.gradient()
    encoded = None
    if twin.halves and n > 0:
        encoded = model.encoded()
        assert_within(encoded, *twin.encode(params, positions)[:2], "encoded")
    wanted, sd = twin.raw(params, positions, directions, encoded)
    assert_within(raw, wanted, LAMBDA * sd, "raw")
    wanted, sd = twin.gradient(params, positions, directions, d_raw, sums, encoded)
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
    "composite": {
        "encoding": {
            "otype": "Composite",
            "nested": [{"otype": "Frequency", "n_frequencies": 3, "n_dims_to_encode": 2}, {"otype": "Identity"}],
        }
    },
    "position one-blob": {"encoding": {"otype": "OneBlob", "n_bins": 9}},
    "position triangle wave": {"encoding": {"otype": "TriangleWave", "n_frequencies": 4}},
    "nearest": {"encoding": grid_encoding(interpolation="Nearest")},
    "nearest, F1 tiled": {"encoding": grid_encoding("TiledGrid", interpolation="Nearest", n_features_per_level=1)},
    "2D grid": {"encoding": grid_encoding(n_dims_to_encode=2)},
    "2D grid, frequency": {
        "encoding": {
            "otype": "Composite",
            "nested": [grid_encoding(n_dims_to_encode=2), {"otype": "Frequency", "n_frequencies": 3}],
        }
    },
    "identity, 2D grid": {
        "encoding": {
            "otype": "Composite",
            "nested": [
                {"otype": "Identity", "n_dims_to_encode": 1},
                grid_encoding(n_features_per_level=4, interpolation="Smoothstep"),
            ],
        }
    },
    "SH 5": {"dir_encoding": {"otype": "SphericalHarmonics", "degree": 5}},
    "SH 8": {"dir_encoding": {"otype": "SphericalHarmonics", "degree": 8}},
    "direction one-blob": {"dir_encoding": {"otype": "OneBlob", "n_bins": 4}},
    "direction triangle wave": {"dir_encoding": {"otype": "TriangleWave", "n_frequencies": 3}},
    "F2 tiled": {"encoding": grid_encoding("TiledGrid")},
    "F8": {"encoding": grid_encoding(n_features_per_level=8)},
    "40 columns": {"encoding": grid_encoding(n_levels=10, n_features_per_level=4, per_level_scale=1.3)},
    "width 48": {"network": network(48, 1, 8), "rgb_network": network(48, 2, 8)},
    "3 hidden layers": {"network": network(64, 3)},
    "no ReLU": {"network": network(64, 1, activation="None"), "rgb_network": network(64, 2, activation="None")},
}
# What a GPU has fused networks for: any number of columns up to 32, padded to 16 or to 8.
COLUMNS: dict[str, Json] = {
    "8 columns": {"encoding": grid_encoding(), "network": network(64, 1, 8)},
    "16 columns, smoothstep": {
        "encoding": grid_encoding(n_levels=4, n_features_per_level=4, interpolation="Smoothstep")
    },
    "24 columns": {"encoding": grid_encoding(n_levels=12, per_level_scale=1.3)},
    "32 columns, F2": {"encoding": grid_encoding(n_levels=16, per_level_scale=1.25)},
    "32 columns, F4": {"encoding": grid_encoding(n_levels=8, n_features_per_level=4, per_level_scale=1.4)},
    "32 columns, dense": {
        "encoding": grid_encoding("DenseGrid", n_levels=8, n_features_per_level=4, per_level_scale=1.2)
    },
}
WARP_SIZES = [1, 31, 32, 33, 127, 128, 129]


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


@pytest.mark.parametrize("n_hidden", [1, 2])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_fused_networks(width: int, n_hidden: int, device: str) -> None:
    """Every size that a GPU has kernels for; a tile of samples, and a part of one."""
    config = model_config(
        encoding=COLUMNS["32 columns, F4"]["encoding"], network=network(width, 1), rgb_network=network(width, n_hidden)
    )
    assert ModelTwin(config, device="cuda").halves
    check(config, 190, device)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns(name: str, device: str) -> None:
    config = model_config(**COLUMNS[name])
    assert ModelTwin(config, device="cuda").halves
    check(config, 65, device)
    check(config, 65, device, aabb_scale=16)


@pytest.mark.parametrize("name", ["base", "F8"])
@pytest.mark.parametrize("n", WARP_SIZES)
def test_sizes_of_warps(n: int, name: str, device: str) -> None:
    """Around the numbers of samples that a warp and a block of a GPU take at once."""
    check(small_config(name), n, device)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
def test_one_cell(n_features: int, deterministic: bool, device: str) -> None:
    """All samples add to the same entries: the longest sums."""
    encoding = grid_encoding(n_features_per_level=n_features)
    check(model_config(encoding=encoding), 300, device, deterministic=deterministic, one_cell=True)


@pytest.mark.parametrize("name", ["base", "F8 tiled", "cutlass"])
def test_deterministic_gradients(name: str, device: str) -> None:
    """On a GPU sums of integers: the same bytes every time, and closer than sums of halves."""
    config, n = small_config(name), 100 if device == "cpu" else 1000
    check(config, n, device, deterministic=True)
    twin = ModelTwin(config, device=device)
    params, positions, directions, d_raw = samples(twin, n)
    gradients = []
    for _ in range(3):
        model = stages.Model(config, 1, positions, directions, d_raw, device=device, deterministic=True)
        model.set_params(params)
        model.forward_backward()
        model.scatter()
        gradients.append(model.gradient())
    assert np.array_equal(gradients[0], gradients[1]) and np.array_equal(gradients[0], gradients[2])


@pytest.mark.parametrize("aabb_scale", [2, 4, 16, 128])
def test_scene_boxes(aabb_scale: int, device: str) -> None:
    encoding = grid_encoding(n_features_per_level=4, base_resolution=16, log2_hashmap_size=10)
    check(model_config(encoding=encoding | {"per_level_scale": 0.0}), 100, device, aabb_scale=aabb_scale)


ENCODED = [
    "base", "smoothstep", "F1", "F8 tiled", "cutlass", "composite", "no ReLU", "40 columns", "position frequency",
    "position identity", "position one-blob", "position triangle wave", "2D grid, frequency", "identity, 2D grid",
]  # fmt: skip


@pytest.mark.parametrize("aabb_scale", [1, 4])
@pytest.mark.parametrize("name", ENCODED)
def test_encoded_and_density_gradient(name: str, aabb_scale: int, device: str) -> None:
    """The position encoding alone, and the slope of the raw density."""
    config = small_config(name)
    twin = ModelTwin(config, aabb_scale, device)
    params, positions, directions, d_raw = samples(twin, 200)
    model = stages.Model(config, aabb_scale, positions, directions, d_raw, device=device)
    poison(model, twin.n_params, device)
    model.set_params(params)
    p, unit = params.astype(np.float64), twin.unit(positions)
    model.encode()
    assert_within(model.encoded(), *twin.encode(params, positions)[:2], "encoded")

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
    assert_within(gradient, slope / aabb_scale, (bound + LAMBDA * np.sqrt(variance)) / aabb_scale, "gradient")
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
            value = [np.sum(d_raw * twin.raw(p + s * h * v, positions, directions)[0]) for s in (1, -1)]
            slope = (value[0] - value[1]) / (2 * h)
            rounding = LAMBDA * np.sqrt(np.sum((sd * v) ** 2)) + 1e-5
            assert abs(gradient @ v - slope) <= rounding, block
            assert abs(slope) > 20 * rounding  # the test means something


def test_gradients_accumulate(device: str) -> None:
    """Two passes give twice the gradient, until an optimizer step takes it. A GPU's networks replace theirs."""
    config = small_config("base")
    twin = ModelTwin(config, device=device)
    params, positions, directions, d_raw = samples(twin, 100)
    model = stages.Model(config, 1, positions, directions, d_raw, device=device, deterministic=True)
    model.set_params(params)
    passes = []
    for _ in range(2):
        model.forward_backward()
        model.scatter()
        passes.append(model.gradient())
    table, networks = slice(twin.grid_begin, None), slice(0, twin.grid_begin)
    assert np.allclose(passes[1][table], 2 * passes[0][table], rtol=1e-5, atol=1e-6)
    factor = 2 if device == "cpu" else 1
    assert np.allclose(passes[1][networks], factor * passes[0][networks], rtol=1e-5, atol=1e-6)
    assert np.any(passes[0][table]) and np.any(passes[0][networks])
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
