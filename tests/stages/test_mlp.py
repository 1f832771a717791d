"""Multilayer perceptrons, forward and backward, against the twin: every shape that is allowed."""

from __future__ import annotations

import numpy as np
import pytest
from pyngp._core import stages
from reference import mlp
from stages.helpers import ISAS, LAMBDA, MlpTwin, assert_within, concatenated, no_error

# padding: (widths, hidden layers, padded inputs); FullyFusedMLP and CutlassMLP
SHAPES = [(16, width, depth, 32) for width in (16, 32, 64, 128) for depth in (1, 2, 3, 5)]
SHAPES += [(8, width, depth, 24) for width in (24, 40, 256) for depth in (0, 1, 2, 5)]
SHAPES += [(8, 64, 3, 48), (16, 64, 1, 16), (16, 16, 1, 80), (8, 8, 1, 8), (8, 128, 2, 104)]


def inputs(shape: mlp.MlpShape, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 parameters, and ``n`` inputs for which rounding cannot flip a ReLU."""
    r = np.random.default_rng(seed)
    bounds = zip(mlp.init_uniform_bound(shape), shape.matrix_shapes, strict=True)
    blocks = [r.uniform(-b, b, size=rows * columns) for b, (rows, columns) in bounds]
    params = np.concatenate(blocks).astype(np.float32)
    x = r.normal(size=(n + n // 4 + 8, shape.n_in)).astype(np.float32)
    weights = mlp.unpack(shape, params)
    keep = MlpTwin(weights, x.astype(np.float64), np.zeros(x.shape)).kink_free
    assert keep.sum() >= n
    return params, x[keep][:n]


def check(shape: mlp.MlpShape, n: int, isa: str) -> None:
    params, x = inputs(shape, n, n + shape.width)
    args = (shape.n_in, shape.width, shape.n_hidden_layers, shape.n_out, params, x)
    d_out = np.random.default_rng(2).normal(size=(n, shape.padded_out)).astype(np.float32)
    twin = MlpTwin(mlp.unpack(shape, params), x.astype(np.float64), np.zeros(x.shape))

    forward_only = stages.mlp(*args, padding=shape.alignment, isa=isa)
    assert_within(forward_only, twin.output, LAMBDA * twin.sd[-1], "output")
    output, d_params, d_x = stages.mlp(*args, d_out, shape.alignment, isa)
    assert np.array_equal(output, forward_only)
    upstream = d_out.astype(np.float64)
    d_weights, sd_weights, wanted, sd = twin.backward(upstream, no_error(upstream))
    assert_within(d_x, wanted, LAMBDA * sd, "dL/dx")
    assert_within(d_params, mlp.pack(d_weights), LAMBDA * concatenated(sd_weights), "dL/dparams")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("padding,width,n_hidden,n_in", SHAPES)
def test_shapes(padding: int, width: int, n_hidden: int, n_in: int, isa: str) -> None:
    """Three tiles, the last one odd."""
    check(mlp.MlpShape(n_in, 3, width, n_hidden, padding), 141, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [0, 1, 2, 5, 63, 64, 65])
def test_sizes(n: int, isa: str) -> None:
    check(mlp.MlpShape(32, 16, 64, 2), n, isa)
    check(mlp.MlpShape(24, 3, 40, 2, 8), n, isa)


def test_bound_is_tight() -> None:
    """The comparison can fail: weights rounded to half miss the bound by orders of magnitude."""
    shape = mlp.MlpShape(32, 16, 64, 3)
    params, x = inputs(shape, 64, 1)
    twin = MlpTwin(mlp.unpack(shape, params), x.astype(np.float64), np.zeros(x.shape))
    rounded = params.astype(np.float16).astype(np.float32)
    off = np.abs(stages.mlp(32, 64, 3, 16, rounded, x) - twin.output)
    assert np.median(off) > 5 * LAMBDA * np.median(twin.sd[-1])
    exact = np.abs(stages.mlp(32, 64, 3, 16, params, x) - twin.output)
    assert np.median(exact) < LAMBDA / 6 * np.median(twin.sd[-1])
