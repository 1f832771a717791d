"""What the stage tests share: configurations, twins built from them, and rounding-error estimates.

Errors follow the probabilistic model of Higham & Mary (2019), "A New Approach to Probabilistic
Rounding Error Analysis": a dot product of K terms in float32 is off by about sqrt(K) U sum|terms|,
with independent errors of its operands added as variances. Tests allow ``LAMBDA`` times that.

A GPU sees parameters as halves, which hold them exactly if as_halves() made them. Its fused networks also
keep what passes from layer to layer as halves, forward and backward: see stored(). They interpolate tables
in half arithmetic, too: see half_interpolation(). Its general networks compute in float32, like the CPU.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
from conftest import DEVICES
from numpy.typing import NDArray
from pyngp._core import available_isas, base_nerf_config, stages
from reference import frequency, grid, mlp, sh

U = 2.0**-24  # unit roundoff of float32
U_HALF = 2.0**-11
HALF_FLOOR = 2.0**-25  # half the distance of the smallest halves
LOSS_SCALE = 4.0  # of gradients on the GPU (cuda/training.cuh)
LAMBDA = 6.0
ISAS = available_isas()
# Devices by name, the CPU once for each instruction set: ``device`` and ``isa`` as stages.Model takes them.
PLACES = [pytest.param("cpu", isa, id=isa) for isa in ISAS]
PLACES += [pytest.param(name, "", id=name) for name in DEVICES if name != "cpu"]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Json = dict[str, Any]
Sums = Literal["floats", "halves", "fixed"]
GRID_KINDS = {"HashGrid": "Hash", "Grid": "Hash", "DenseGrid": "Dense", "TiledGrid": "Tiled"}


def network(width: int, n_hidden: int, padding: int = 16, activation: str = "ReLU") -> Json:
    otype = {16: "FullyFusedMLP", 8: "CutlassMLP"}[padding]
    return {"otype": otype, "n_neurons": width, "n_hidden_layers": n_hidden, "activation": activation}


def grid_encoding(otype: str = "HashGrid", **changes: object) -> Json:
    """A small grid with a dense first level and, if hashed, hashed ones above it."""
    encoding = {
        "otype": otype,
        "n_levels": 4,
        "n_features_per_level": 2,
        "log2_hashmap_size": 8,
        "base_resolution": 5,
        "per_level_scale": 1.6,
    }
    return encoding | changes


def model_config(**sections: object) -> str:
    """base.json with sections (``encoding``, ``network``, ...) replaced."""
    return json.dumps(json.loads(base_nerf_config()) | copy.deepcopy(sections))


def dot_sd(a: F64, sd_a: F64, b: F64, sd_b: F64) -> F64:
    """Standard deviation of the float32 product of matrices (n, k) and (k, m)."""
    own = a.shape[1] * U**2 * (np.abs(a) @ np.abs(b)) ** 2
    return np.sqrt(sd_a**2 @ b**2 + a**2 @ sd_b**2 + own)


def no_error(a: F64) -> F64:
    return np.zeros_like(a)


def stored(values: F64, sd: F64, halves: bool) -> F64:
    """Standard deviation of values after they were kept: as halves, one more rounding."""
    return np.sqrt(sd**2 + (U_HALF * np.abs(values) + HALF_FLOOR) ** 2) if halves else sd


@dataclass
class MlpTwin:
    """Forward and backward pass of one batch through reference.mlp, with error estimates.

    ``sd_x``: of ``x`` as the first layer reads it. ``halves``: what comes out of layers is kept as halves, forward
    but for the output.
    """

    weights: list[F64]
    x: F64
    sd_x: F64
    relu: bool = True
    halves: bool = False
    output: F64 = field(init=False)
    sd: list[F64] = field(init=False)  # of every layer's input, then of the output
    inputs: list[F64] = field(init=False)
    kink_free: NDArray[np.bool_] = field(init=False)  # rows whose ReLU masks rounding cannot flip

    def __post_init__(self) -> None:
        self.output, self.inputs = mlp.forward(self.weights, self.x, hidden_relu=self.relu)
        self.sd = [self.sd_x]
        self.kink_free = np.ones(len(self.x), dtype=bool)
        # An error of LAMBDA sd is what tests allow; float32's is small enough to keep twice the distance.
        margin = LAMBDA if self.halves else 2 * LAMBDA
        for k, w in enumerate(self.weights):
            self.sd.append(dot_sd(self.inputs[k], self.sd[k], w.T, no_error(w.T)))
            if k + 1 < len(self.weights):
                before = self.inputs[k] @ w.T
                if self.relu:
                    self.kink_free &= np.all(np.abs(before) > margin * self.sd[-1] + HALF_FLOOR, axis=1)
                self.sd[-1] = stored(self.inputs[k + 1], self.sd[-1], self.halves)

    def backward(self, d_out: F64, sd_d: F64) -> tuple[list[F64], list[F64], F64, F64]:
        """Weight gradients, their errors, dL/dx, its error."""
        d_weights, d_x = mlp.backward(self.weights, self.inputs, d_out, hidden_relu=self.relu)
        sd_weights: list[F64] = []
        d, sd_d = d_out, stored(d_out, sd_d, self.halves)
        for k in reversed(range(len(self.weights))):
            sd_weights.insert(0, dot_sd(d.T, sd_d.T, self.inputs[k], self.sd[k]))
            w = self.weights[k]
            d, sd_d = d @ w, dot_sd(d, sd_d, w, no_error(w))
            if k > 0 and self.relu:
                mask = self.inputs[k] > 0.0
                d, sd_d = d * mask, sd_d * mask
            sd_d = stored(d, sd_d, self.halves)
        return d_weights, sd_weights, d_x, sd_d


@dataclass(frozen=True)
class Part:
    """A leaf of a composite: its configuration and columns of inputs and outputs."""

    config: Json
    kind: str  # as in reference.frequency.PADDING
    inputs: slice
    width: int
    levels: list[grid.GridLevel]
    params: slice  # of the encoding's own parameters

    @property
    def n_features(self) -> int:
        return int(self.config.get("n_features_per_level", 2))

    @property
    def interpolation(self) -> str:
        return str(self.config.get("interpolation", "Linear"))

    @property
    def n_frequencies(self) -> int:
        return int(self.config.get("n_frequencies", 12))

    @property
    def n_bins(self) -> int:
        return int(self.config.get("n_bins", 16))

    @property
    def degree(self) -> int:
        return int(self.config.get("degree", 4))


def half_interpolation(part: Part, params: F64, x: F32) -> tuple[F64, F64]:
    """Bounds and standard deviations of the errors that half arithmetic adds to a grid's outputs (N, width).

    A corner's weight is half(half(along x) half(along y and z)), and its product with a feature is added in one
    operation, x fastest. A rounding is off by U_HALF of its result or, below the normal halves, by HALF_FLOOR: so
    three of the weight, and one of each partial sum.
    """
    table = params[part.params].reshape(-1, part.n_features)
    bound, variance = np.zeros((len(x), part.width)), np.zeros((len(x), part.width))
    for number, level in enumerate(part.levels):
        cell, fraction = grid.cell_and_fraction(level, x[:, part.inputs])
        upper, _ = grid.axis_weights(fraction, part.interpolation)
        columns = slice(number * part.n_features, (number + 1) * part.n_features)
        partial = np.zeros((len(x), part.n_features))
        for z, y, along in product((0, 1), repeat=3):
            feature = table[grid.entry_index(level, cell + np.array([along, y, z], dtype=np.uint32))]
            weights = [grid.corner_weights(upper[:, axes], bits) for axes, bits in (([0], (along,)), ([1, 2], (y, z)))]
            wx, wyz = (w[:, None] for w in weights)
            partial += wx * wyz * feature
            roundings = [
                np.abs(feature) * (U_HALF * wx * wyz + HALF_FLOOR * wyz),
                np.abs(feature) * (U_HALF * wx * wyz + HALF_FLOOR * wx),
                np.abs(feature) * (U_HALF * wx * wyz + HALF_FLOOR),
                U_HALF * np.abs(partial) + HALF_FLOOR,
            ]
            bound[:, columns] += sum(roundings)
            variance[:, columns] += sum(r**2 for r in roundings)
    # products of these errors, at most 11 of them in a row
    return bound * (1 + 16 * U_HALF), np.sqrt(variance)


def corner_sums(part: Part, x: F32, d: F64) -> tuple[F64, F64]:
    """Number of terms, and sum of ``d`` (N, outputs) without weights, of every parameter."""
    count = np.zeros((grid.total_entries(part.levels), part.n_features))
    total = np.zeros_like(count)
    for number, level in enumerate(part.levels):
        cell, _ = grid.cell_and_fraction(level, x)
        columns = slice(number * part.n_features, (number + 1) * part.n_features)
        for corner in product((0, 1), repeat=x.shape[1]):
            if part.interpolation == "Nearest" and any(corner):
                continue
            index = grid.entry_index(level, cell + np.array(corner, dtype=np.uint32))
            np.add.at(count, index, 1.0)
            np.add.at(total, index, d[:, columns])
    return count.ravel(), total.ravel()


def half_sums(part: Part) -> NDArray[np.bool_]:
    """Parameters of a part whose gradients a GPU adds up as halves: from the first hashed level on, unless single."""
    hashed = [level.hashed for level in part.levels]
    first = hashed.index(True) if True in hashed and part.n_features > 1 else len(hashed)
    of_level = [np.full(level.entries * part.n_features, i >= first) for i, level in enumerate(part.levels)]
    return np.concatenate(of_level)


def leaves(encoding: Json) -> list[Json]:
    if encoding["otype"] != "Composite":
        return [encoding]
    return [leaf for nested in encoding["nested"] for leaf in leaves(nested)]


class EncodingTwin:
    """reference.grid, .frequency and .sh put together as a JSON encoding says.

    Level scales are taken from the library, bit for bit (they decide cells); test_encoding.py
    compares the level table itself.
    """

    def __init__(self, encoding: Json, aabb_scale: int = 1, alignment: int = 16, n_dims: int = 3) -> None:
        with_grid = any(leaf["otype"] in GRID_KINDS for leaf in leaves(encoding))
        rows = stages.encoding_levels(model_config(encoding=encoding), aabb_scale, n_dims) if with_grid else []
        table = [grid.GridLevel(np.float32(s), r, o, e, h) for s, r, o, e, h in rows]
        self.alignment = alignment
        self.parts: list[Part] = []
        begin = params = 0
        for leaf in leaves(encoding):
            n_in = leaf.get("n_dims_to_encode", 0) or n_dims - begin
            kind = "Grid" if leaf["otype"] in GRID_KINDS else leaf["otype"]
            levels = table[: leaf.get("n_levels", 16)] if kind == "Grid" else []
            table = table[len(levels) :]
            n_params = grid.total_entries(levels) * leaf.get("n_features_per_level", 2)
            width = {
                "Grid": len(levels) * leaf.get("n_features_per_level", 2),
                "Frequency": n_in * 2 * leaf.get("n_frequencies", 12),
                "TriangleWave": n_in * leaf.get("n_frequencies", 12),
                "OneBlob": n_in * leaf.get("n_bins", 16),
                "SphericalHarmonics": leaf.get("degree", 4) ** 2,
                "Identity": n_in,
            }[kind]
            own = slice(params, params + n_params)
            self.parts.append(Part(leaf, kind, slice(begin, begin + n_in), width, levels, own))
            begin, params = begin + n_in, params + n_params
        self.n_params = params
        self.n_out = sum(part.width for part in self.parts)
        self.width = frequency.padded_width(self.n_out, alignment)
        padded_before = frequency.PADDING[self.parts[-1].kind][1]
        last = np.arange(self.n_out) >= self.n_out - self.parts[-1].width
        # column of each output among the padded ones
        self.columns = np.arange(self.n_out) + padded_before * last * (self.width - self.n_out)

    def _values(self, part: Part, params: F64, x: F32) -> tuple[F64, float | F64]:
        """Outputs of a part and a bound of their rounding errors."""
        own = x[:, part.inputs]
        if part.kind == "Grid":
            table = params[part.params].reshape(-1, part.n_features)
            # 8 corners; weights of 3 factors with up to 4 roundings each, products, 7 sums; 16 corners of 4 factors
            bound = (32 if own.shape[1] < 4 else 48) * U * float(np.abs(table).max(initial=0.0))
            return grid.encode(part.levels, table, own, part.interpolation), bound
        if part.kind == "Frequency":
            value = frequency.frequency(own, part.n_frequencies)
            angle = np.pi * 2.0 ** np.arange(part.n_frequencies) * np.abs(own)[:, :, None]
            bound = 3 * U * np.repeat(angle, 2, axis=2).reshape(value.shape) + 2 * U
            return value, bound
        if part.kind == "TriangleWave":
            # a rounded sum of up to 2^(k-1) + k/4, whose error the wave takes fourfold
            size = 2.0 ** np.arange(part.n_frequencies) / 2 + np.arange(part.n_frequencies) / 4
            value = frequency.triangle_wave(own, part.n_frequencies)
            return value, np.tile(4 * U * size + 2 * U, own.shape[1])[None]
        if part.kind == "OneBlob":
            # n x and what is subtracted from it are rounded, and integrals have slopes below 1
            return frequency.one_blob(own, part.n_bins), (4 * part.n_bins + 16) * U
        if part.kind == "SphericalHarmonics":
            d = 2.0 * own.astype(np.float64) - 1.0
            if part.degree <= 4:
                return sh.basis(d, part.degree), 16 * U
            return sh.basis(d, part.degree), 40 * U * sh.magnitude(d, part.degree)
        return frequency.identity(own), 0.0

    def encode(self, params: F64, x: F32) -> tuple[F64, F64]:
        """(N, padded width) outputs of unit positions, and bounds of their errors."""
        values = [self._values(part, params, x) for part in self.parts]
        pairs = [(part.kind, value) for part, (value, _) in zip(self.parts, values, strict=True)]
        bound = np.zeros((len(x), self.width))  # padding is exact
        bound[:, self.columns] = np.concatenate(
            [np.broadcast_to(error, value.shape) for value, error in values], axis=1
        )
        return frequency.composite(pairs, self.alignment), bound

    def params_gradient(self, x: F32, d_out: F64, sd_d: F64, sums: Sums = "floats") -> tuple[F64, F64]:
        """dL/dparams (n_params,) and its error, from dL/d(unpadded outputs).

        ``sums``: how a table's gradients are added up.
        """
        gradient, variance = np.zeros(self.n_params), np.zeros(self.n_params)
        column = 0
        for part in self.parts:
            columns = slice(column, column + part.width)
            column += part.width
            if part.kind != "Grid":
                continue
            args = (part.levels, part.n_features, x[:, part.inputs])
            d = d_out[:, columns]
            gradient[part.params] = grid.params_gradient(*args, d, part.interpolation).ravel()
            size = grid.params_gradient(*args, np.abs(d), part.interpolation).ravel()
            operand = grid.params_gradient(*args, sd_d[:, columns] ** 2, part.interpolation).ravel()
            # a sum of `count` terms, each with 16 roundings of its weight and product; Smoothstep's
            # weights have an absolute error besides, as 1 - w cancels
            count, total = corner_sums(part, args[2], np.abs(d))
            slack = 8 * U * total * (part.interpolation == "Smoothstep")
            variance[part.params] = ((np.sqrt(count) + 16) * U * size + slack) ** 2 + operand
            if sums == "halves":  # terms and partial sums become halves, where entries are hashed
                rounding = (np.sqrt(count) + 1) * U_HALF * size + 2 * count * HALF_FLOOR / LOSS_SCALE
                variance[part.params] += (rounding * half_sums(part)) ** 2
            elif sums == "fixed":  # terms become multiples of 2^-32
                variance[part.params] += (count * 2.0**-33 / LOSS_SCALE) ** 2
        return gradient, np.sqrt(variance)

    def position_gradient(self, params: F64, x: F32, d_out: F64) -> tuple[F64, F64]:
        """dL/dx (N, 3) from dL/d(unpadded outputs), and a bound of its error."""
        gradient, bound = np.zeros(x.shape), np.zeros(x.shape)
        column = 0
        for part in self.parts:
            d, own = d_out[:, column : column + part.width], x[:, part.inputs]
            column += part.width
            if part.kind == "Grid":
                table = params[part.params].reshape(-1, part.n_features)
                gradient[:, part.inputs] = grid.position_gradient(part.levels, table, own, d, part.interpolation)
                scale = np.repeat([float(level.scale) for level in part.levels], part.n_features)
                # slope 1.5 S at most, of 4 differences of 2 values, with some 30 roundings; 8 with 45
                size = 1.5 * (np.abs(d) @ scale)[:, None] * 2 * np.abs(table).max()
                bound[:, part.inputs] = (30 if own.shape[1] < 4 else 45) * U * size
            elif part.kind == "Frequency":
                gradient[:, part.inputs] = frequency.frequency_gradient(own, part.n_frequencies, d)
                slope = np.pi * 2.0 ** np.arange(part.n_frequencies)
                sizes = np.abs(d).reshape(*own.shape, part.n_frequencies, 2).sum(axis=3) * slope
                terms = sizes * (3 * U * slope * np.abs(own)[:, :, None] + 16 * U)
                bound[:, part.inputs] = terms.sum(axis=2)
            elif part.kind == "TriangleWave":
                gradient[:, part.inputs] = frequency.triangle_wave_gradient(own, part.n_frequencies, d)
                k = np.arange(part.n_frequencies)
                sizes = np.abs(d).reshape(*own.shape, part.n_frequencies) * 2.0 ** (k + 1)
                # slopes are exact, but their sign on either side of a kink: v is off by U of up to 2^(k-1) + k/4
                v = own.astype(np.float64)[:, :, None] * 2.0 ** (k - 1) + k / 4
                from_kink = np.abs(2 * v - np.round(2 * v)) / 2
                terms = sizes * (16 * U + 2.0 * (from_kink <= U * (2.0 ** (k - 1) + k / 4)))
                bound[:, part.inputs] = terms.sum(axis=2)
            elif part.kind == "OneBlob":
                gradient[:, part.inputs] = frequency.one_blob_gradient(own, part.n_bins, d)
                # kernels have slopes below 1.5, and values below 1
                sizes = np.abs(d).reshape(*own.shape, part.n_bins).sum(axis=2)
                bound[:, part.inputs] = sizes * part.n_bins * (12 * part.n_bins + 32) * U
            elif part.kind == "SphericalHarmonics":
                direction = 2.0 * own.astype(np.float64) - 1.0
                jacobian = 2.0 * sh.jacobian(direction, part.degree)
                gradient[:, part.inputs] = np.einsum("nk,nkd->nd", d, jacobian)
                if part.degree <= 4:
                    bound[:, part.inputs] = 64 * U * np.abs(d).sum(axis=1, keepdims=True)
                else:
                    size = 2.0 * sh.jacobian_magnitude(direction, part.degree)
                    bound[:, part.inputs] = (40 + part.width) * U * np.einsum("nk,nkd->nd", np.abs(d), size)
            else:
                gradient[:, part.inputs] = d
        return gradient, bound


def concatenated(blocks: Sequence[F64]) -> F64:
    return np.concatenate([block.ravel() for block in blocks])


def unit_directions(n: int, seed: int) -> F32:
    d = np.random.default_rng(seed).normal(size=(n, 3))
    return (d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float32)


def as_halves(params: F32) -> F32:
    """Values that half precision holds exactly: what a GPU's networks and tables see of them."""
    return params.astype(np.float16).astype(np.float32)


def assert_within(got: NDArray[Any], wanted: F64, bound: F64 | float, what: str = "") -> None:
    """|got - wanted| <= bound everywhere; names the worst element."""
    assert got.shape == wanted.shape, what
    excess = np.abs(np.asarray(got, dtype=np.float64) - wanted) - bound
    if excess.size and not np.all(excess <= 0.0):
        worst = np.unravel_index(np.nanargmax(np.where(np.isnan(excess), np.inf, excess)), got.shape)
        limit = np.broadcast_to(bound, got.shape)[worst]
        count = int(np.count_nonzero(~(excess <= 0.0)))
        raise AssertionError(
            f"{what}: {count} of {got.size} beyond the bound; at {worst}: got {got[worst]}, "
            f"wanted {wanted[worst]}, bound {limit}"
        )
