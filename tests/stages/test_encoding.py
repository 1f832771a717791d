"""Input encodings against the twins: level tables, outputs, position gradients."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from pyngp._core import stages
from reference import grid
from stages.helpers import (
    GRID_KINDS,
    ISAS,
    LAMBDA,
    EncodingTwin,
    Json,
    as_halves,
    assert_within,
    grid_encoding,
    half_interpolation,
    model_config,
    network,
)

SIZES = [0, 1, 63, 64, 65, 200]
# D.4: total entries of base.json by aabb_scale
TOTALS = {1: 2920448, 2: 3165232, 4: 3213824, 8: 3235008, 16: 3260416, 32: 3298704, 64: 3344936}
TOTALS[128] = 3411968


def positions(n: int, seed: int = 0, n_dims: int = 3) -> np.ndarray:
    """Unit positions that include exactly 0, exactly 1, and cell borders."""
    x = np.random.default_rng(seed).uniform(size=(n, n_dims)).astype(np.float32)
    special = [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0.5, 0], [1 - 2**-24, 2**-24, 0.125, 1]]
    n_special = max(0, min(n - 1, len(special)))
    x[1 : 1 + n_special] = np.array(special)[:n_special, :n_dims]
    return x


def twin_table(encoding: Json, aabb_scale: int, n_dims: int = 3) -> list[grid.GridLevel]:
    log2_size = encoding.get("log2_hashmap_size", 19)
    n_levels, base = encoding.get("n_levels", 16), encoding.get("base_resolution", 2 ** (log2_size // n_dims))
    growth = encoding.get("per_level_scale", 0.0)
    if growth <= 0.0:
        growth = grid.default_per_level_scale(2048, base, n_levels, aabb_scale)
    return grid.level_table(n_levels, base, growth, log2_size, n_dims, GRID_KINDS[encoding["otype"]])


def check_table(encoding: Json, aabb_scale: int = 1, n_dims: int = 3) -> None:
    rows = stages.encoding_levels(model_config(encoding=encoding), aabb_scale, n_dims)
    wanted = twin_table(encoding, aabb_scale, n_dims)
    assert len(rows) == len(wanted)
    for (scale, resolution, offset, entries, hashed), level in zip(rows, wanted, strict=True):
        # the twin rounds exp2, log2, exp and log correctly, a C library may err by one unit
        assert scale == pytest.approx(float(level.scale), rel=3e-7, abs=0)
        assert (resolution, offset, entries) == (level.resolution, level.offset, level.entries)
        assert bool(hashed) == level.hashed


@pytest.mark.parametrize("aabb_scale", TOTALS)
def test_base_levels(aabb_scale: int) -> None:
    """Totals of D.4 for base.json, and its resolutions at scales 1 and 4."""
    encoding = json.loads(model_config())["encoding"]
    check_table(encoding, aabb_scale)
    rows = stages.encoding_levels(model_config(), aabb_scale)
    assert rows[-1][2] + rows[-1][3] == TOTALS[aabb_scale]
    if aabb_scale == 4:
        assert [row[1] for row in rows] == [16, 40, 96, 232, 566, 1379, 3361, 8193]


@pytest.mark.parametrize("otype", ["HashGrid", "Grid", "DenseGrid", "TiledGrid"])
@pytest.mark.parametrize("n_levels,base,growth,log2_size", [
    (1, 16, 0.0, 14), (5, 16, 0.0, 12), (16, 16, 0.0, 19), (8, 3, 1.5, 8), (6, 5, 1.0, 5),
    (4, 1, 2.0, 3), (12, 16, 1.38, 15), (3, 64, 1.3, 24),
])  # fmt: skip
def test_levels(otype: str, n_levels: int, base: int, growth: float, log2_size: int) -> None:
    encoding = grid_encoding(
        otype,
        n_levels=n_levels,
        base_resolution=base,
        per_level_scale=growth,
        log2_hashmap_size=log2_size,
    )
    if otype == "DenseGrid" and growth == 0.0 and n_levels > 1:
        encoding["per_level_scale"] = 1.2  # 2048^3 entries do not fit
    check_table(encoding)
    check_table(encoding, 4)


@pytest.mark.parametrize("n_dims", [2, 3, 4])
@pytest.mark.parametrize("otype", ["HashGrid", "DenseGrid", "TiledGrid"])
@pytest.mark.parametrize("n_levels,base,growth,log2_size", [
    (5, 16, 1.3, 12), (6, 5, 1.0, 5), (4, 1, 2.0, 3), (3, 9, 1.3, 24), (12, 16, 1.1, 15), (2, 11, 1.5, 10),
])  # fmt: skip
def test_levels_of_other_dimensions(
    otype: str, n_levels: int, base: int, growth: float, log2_size: int, n_dims: int
) -> None:
    sizes = {"n_levels": n_levels, "base_resolution": base, "log2_hashmap_size": log2_size}
    check_table(grid_encoding(otype, per_level_scale=growth, **sizes), n_dims=n_dims)


def test_finest_levels_overflow_32_bits() -> None:
    """What res^D exceeds is hashed: 2D beyond 65535, 4D beyond 255."""
    for n_dims, growth in ((2, 3.0), (4, 1.8)):
        encoding = grid_encoding(n_levels=10, per_level_scale=growth, base_resolution=16, log2_hashmap_size=14)
        check_table(encoding, n_dims=n_dims)
        rows = stages.encoding_levels(model_config(encoding=encoding), 1, n_dims)
        assert rows[-1][1] ** n_dims > 2**32 and rows[-1][4]


@pytest.mark.parametrize("n_dims,resolution", [(2, 64), (3, 16), (4, 8)])
def test_default_base_resolution(n_dims: int, resolution: int) -> None:
    """Without base_resolution: 2^(log2T / D)."""
    encoding = grid_encoding(log2_hashmap_size=13)
    del encoding["base_resolution"]
    rows = stages.encoding_levels(model_config(encoding=encoding), 1, n_dims)
    assert rows[0][1] == resolution
    check_table(encoding, n_dims=n_dims)


def check_encoding(encoding: Json, isa: str, padding: int = 16, sizes: list[int] = SIZES, n_dims: int = 3) -> None:
    """Outputs and both gradients."""
    config = model_config(encoding=encoding, network=network(16, 1, padding))
    twin = EncodingTwin(encoding, alignment=padding, n_dims=n_dims)
    r = np.random.default_rng(1)
    params = r.uniform(-1, 1, size=twin.n_params).astype(np.float32)
    for n in sizes:
        x = positions(n, n_dims=n_dims)
        got = stages.encode(config, 1, params, x, isa)
        assert_within(got, *twin.encode(params.astype(np.float64), x), f"outputs, n={n}")
        d_out = r.normal(size=(n, twin.width)).astype(np.float32)
        d_in = stages.encoding_position_gradient(config, 1, params, x, d_out, isa)
        used = d_out[:, twin.columns].astype(np.float64)
        wanted = twin.position_gradient(params.astype(np.float64), x, used)
        assert_within(d_in, *wanted, f"position gradient, n={n}")
        d_params = stages.encoding_params_gradient(config, 1, x, d_out, isa)
        wanted_table, sd = twin.params_gradient(x, used, np.zeros(used.shape))
        assert_within(d_params, wanted_table, LAMBDA * sd, f"table gradient, n={n}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "otype,interpolation",
    list(product(["HashGrid", "DenseGrid", "TiledGrid"], ["Linear", "Smoothstep"])),
)
def test_grid(otype: str, interpolation: str, n_features: int, isa: str) -> None:
    """Outputs and position gradients at odd sizes, at 0 and at 1."""
    changes = {"interpolation": interpolation, "n_features_per_level": n_features}
    check_encoding(grid_encoding(otype, **changes), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("otype", ["HashGrid", "DenseGrid", "TiledGrid"])
@pytest.mark.parametrize("interpolation", ["Linear", "Smoothstep", "Nearest"])
@pytest.mark.parametrize("n_dims", [2, 3, 4])
def test_grids_of_other_dimensions(n_dims: int, interpolation: str, otype: str, n_features: int, isa: str) -> None:
    if n_dims == 3 and interpolation != "Nearest":
        return  # test_grid
    changes = {"interpolation": interpolation, "n_features_per_level": n_features}
    check_encoding(grid_encoding(otype, **changes), isa, sizes=[0, 1, 65], n_dims=n_dims)


@pytest.mark.parametrize("interpolation", ["Linear", "Smoothstep", "Nearest"])
@pytest.mark.parametrize("n_dims", [2, 3, 4])
def test_gradients_by_differences(n_dims: int, interpolation: str) -> None:
    """Without the twin: outputs are linear in the table, and differences along the axes have the gradient's slope."""
    encoding = grid_encoding(interpolation=interpolation, n_levels=2, log2_hashmap_size=10)
    config = model_config(encoding=encoding)
    n_params = EncodingTwin(encoding, n_dims=n_dims).n_params
    r = np.random.default_rng(5)
    # away from the borders of cells
    levels = stages.encoding_levels(config, 1, n_dims)
    x = r.uniform(0.02, 0.98, size=(600, n_dims)).astype(np.float32)
    away = [np.abs(x * row[0] + 0.5 - np.round(x * row[0] + 0.5)) > 0.04 for row in levels]
    x = x[np.all(away, axis=(0, 2))]
    assert len(x) > 50
    params = r.uniform(-1, 1, size=n_params).astype(np.float32)
    change = r.uniform(-1, 1, size=n_params).astype(np.float32)
    d_out = r.normal(size=(len(x), 16)).astype(np.float32)

    def value(p: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.sum(stages.encode(config, 1, p, at).astype(np.float64) * d_out, axis=1)

    d_params = stages.encoding_params_gradient(config, 1, x, d_out).astype(np.float64)
    assert d_params @ change == pytest.approx(np.sum(value(change, x)), abs=1e-4)
    assert abs(d_params @ change) > 0.1
    d_x = stages.encoding_position_gradient(config, 1, params, x, d_out)
    h = np.float32(2**-10)
    for axis in range(n_dims):
        up, down = x.copy(), x.copy()
        up[:, axis] += h
        down[:, axis] -= h
        slope = (value(params, up) - value(params, down)) / (up[:, axis].astype(np.float64) - down[:, axis])
        # rounding: 1e-6 over 2^-9; Smoothstep's third derivative, 12 S^3, times h^2 / 6 and a few units of d_out
        assert np.allclose(d_x[:, axis], slope, atol=5e-3)
        assert np.any(d_x[:, axis] != 0) == (interpolation != "Nearest")


def test_nearest_takes_one_entry() -> None:
    """Of each level, the cell's: gradients go nowhere else."""
    encoding = grid_encoding(interpolation="Nearest", n_levels=3)
    x = np.array([[0.3, 0.6, 0.9]], np.float32)
    gradient = stages.encoding_params_gradient(model_config(encoding=encoding), 1, x, np.ones((1, 16), np.float32))
    assert np.count_nonzero(gradient) == 3 * 2 and np.all(gradient[gradient != 0] == 1.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "changes",
    [
        {"n_levels": 1, "n_features_per_level": 1},  # 15 columns of padding
        {"n_levels": 3, "n_features_per_level": 8, "base_resolution": 16, "per_level_scale": 2.0},
        {"n_levels": 5, "base_resolution": 1, "per_level_scale": 2.0},
        {
            "n_levels": 16,
            "per_level_scale": 1.9,
            "log2_hashmap_size": 12,
        },  # to resolution 5 * 1.9^15
    ],
)
@pytest.mark.parametrize("padding", [8, 16])
def test_grid_shapes(changes: Json, padding: int, isa: str) -> None:
    check_encoding(grid_encoding(**changes), isa, padding, [65])


IDENTITY, FREQUENCY = {"otype": "Identity"}, {"otype": "Frequency", "n_frequencies": 5}
TRIANGLE, BLOB = {"otype": "TriangleWave", "n_frequencies": 4}, {"otype": "OneBlob", "n_bins": 5}
COMPOSITES = {
    "identity": IDENTITY,
    "frequency": FREQUENCY,
    "frequency 12": {"otype": "Frequency"},
    "triangle wave": TRIANGLE,
    "triangle wave 12": {"otype": "TriangleWave"},
    "one-blob": BLOB,
    "one-blob 16": {"otype": "OneBlob"},
    "one-blob 1": {"otype": "OneBlob", "n_bins": 1},
    "one-blob 128": {"otype": "OneBlob", "n_bins": 128},
    "one-blob, triangle wave": {"otype": "Composite", "nested": [BLOB | {"n_dims_to_encode": 2}, TRIANGLE]},
    "2D grid, one-blob": {"otype": "Composite", "nested": [grid_encoding(n_dims_to_encode=2), BLOB]},
    "identity, 2D grid": {
        "otype": "Composite",
        "nested": [IDENTITY | {"n_dims_to_encode": 1}, grid_encoding(n_features_per_level=4)],
    },
    "grid in a composite": {"otype": "Composite", "nested": [grid_encoding(n_dims_to_encode=3)]},
    "identity, frequency": {
        "otype": "Composite",
        "nested": [IDENTITY | {"n_dims_to_encode": 1}, FREQUENCY],
    },
    "frequency, identity": {
        "otype": "Composite",
        "nested": [FREQUENCY | {"n_dims_to_encode": 2}, IDENTITY],
    },
    "nested": {
        "otype": "Composite",
        "nested": [
            {"otype": "Composite", "nested": [FREQUENCY | {"n_dims_to_encode": 1}]},
            {"otype": "Composite", "nested": [IDENTITY | {"n_dims_to_encode": 1}, FREQUENCY]},
        ],
    },
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("padding", [8, 16])
@pytest.mark.parametrize("name", COMPOSITES)
def test_composite(name: str, padding: int, isa: str) -> None:
    """Order of parts, and padding with the last part's value."""
    check_encoding(COMPOSITES[name], isa, padding, [0, 1, 65])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("nested", [
    [{"n_dims_to_encode": 1, **IDENTITY}, grid_encoding()],  # a 3D grid that is not on the first axes
    [grid_encoding(n_dims_to_encode=2), grid_encoding("DenseGrid", n_features_per_level=4)],
    [grid_encoding(n_dims_to_encode=3), TRIANGLE],
])  # fmt: skip
def test_composites_of_four_dimensions(nested: list[Json], isa: str) -> None:
    check_encoding({"otype": "Composite", "nested": nested}, isa, sizes=[0, 1, 65], n_dims=4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_dims", [1, 2, 4])
@pytest.mark.parametrize("name", ["identity", "frequency", "triangle wave", "one-blob"])
def test_coordinate_encodings_of_other_dimensions(name: str, n_dims: int, isa: str) -> None:
    check_encoding(COMPOSITES[name], isa, sizes=[0, 1, 65], n_dims=n_dims)


@pytest.mark.parametrize("encoding,n_dims,complaint", [
    (grid_encoding(), 1, "grids take 2 to 4 input dimensions, not 1"),
    (grid_encoding(), 5, "an input of 5 dimensions; 1 to 4 are supported"),
    (grid_encoding(n_dims_to_encode=4), 3, "the parts read 4 dimensions, but the input has 3"),
    ({"otype": "SphericalHarmonics"}, 2, "SphericalHarmonics takes 3 dimensions, not 2"),
    ({"otype": "OneBlob", "n_bins": 171}, 3, "528 outputs; at most 512"),
    (grid_encoding("DenseGrid", base_resolution=300), 4, "more than 2\\^31 parameters"),
])  # fmt: skip
def test_limits(encoding: Json, n_dims: int, complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        stages.encoding_levels(model_config(encoding=encoding), 1, n_dims)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("degree", range(1, 9))
@pytest.mark.parametrize("padding", [8, 16])
def test_spherical_harmonics_of_positions(degree: int, padding: int, isa: str) -> None:
    """Padding of ones stands before the coefficients."""
    check_encoding({"otype": "SphericalHarmonics", "degree": degree}, isa, padding, [0, 1, 65])


def test_encoding_responds_to_every_parameter() -> None:
    """The comparison can fail: an entry changed by 1e-4 shows wherever it is read."""
    encoding = grid_encoding()
    twin = EncodingTwin(encoding)
    config, x = model_config(encoding=encoding), positions(200)
    params = np.random.default_rng(1).uniform(-1, 1, size=twin.n_params).astype(np.float32)
    touched = twin.params_gradient(x, np.ones((200, twin.n_out)), np.zeros((200, twin.n_out)))[0]
    read = int(np.argmax(touched))
    changed = params.copy()
    changed[read] += 1e-4
    wanted, bound = twin.encode(params.astype(np.float64), x)
    assert_within(stages.encode(config, 1, params, x), wanted, bound)
    with pytest.raises(AssertionError, match="beyond the bound"):
        assert_within(stages.encode(config, 1, changed, x), wanted, bound)


def rounded(x: np.ndarray) -> np.ndarray:
    """To halves, once: the sum of a half and of the product of two is exact in float64, but for the rarest."""
    return x.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("interpolation", ["Linear", "Smoothstep"])
@pytest.mark.parametrize("n_features", [2, 4])
def test_bound_of_half_arithmetic(n_features: int, interpolation: str, scale: float) -> None:
    """What a GPU's fused networks do, with NumPy: within half_interpolation(), and not far below it."""
    encoding = grid_encoding(n_features_per_level=n_features, interpolation=interpolation)
    twin = EncodingTwin(encoding)
    (part,) = twin.parts
    x = positions(3000)
    params = as_halves((scale * np.random.default_rng(1).uniform(-1, 1, size=twin.n_params)).astype(np.float32))
    table = params.astype(np.float64).reshape(-1, n_features)
    got = np.zeros((len(x), part.width))
    for number, level in enumerate(part.levels):
        cell, fraction = grid.cell_and_fraction(level, x)
        upper, _ = grid.axis_weights(fraction, interpolation)
        columns = slice(number * n_features, (number + 1) * n_features)
        for z, y, along in product((0, 1), repeat=3):
            feature = table[grid.entry_index(level, cell + np.array([along, y, z], dtype=np.uint32))]
            wx, wyz = (grid.corner_weights(upper[:, a], b) for a, b in (([0], (along,)), ([1, 2], (y, z))))
            weight = rounded(rounded(wx) * rounded(wyz))[:, None]
            got[:, columns] = rounded(weight * feature + got[:, columns])
    wanted, _ = twin.encode(params.astype(np.float64), x)
    bound, sd = half_interpolation(part, params.astype(np.float64), x)
    error = np.abs(got - wanted[:, twin.columns])
    assert np.all(error <= bound) and np.all(error <= LAMBDA * sd)
    assert np.max(error / bound) > 0.3 and np.sqrt(np.mean((error / sd) ** 2)) > 0.3
