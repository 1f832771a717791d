"""Gradients of the field with respect to positions and directions, from which cameras are learned (E.5).

On a GPU, weights' gradients must be the same bytes whether these are wanted or not: fused networks have a kernel each.
"""

from __future__ import annotations

import numpy as np
import pytest
from pyngp._core import stages
from stages.helpers import PLACES, assert_within, model_config, network
from stages.test_model import COLUMNS, ModelTwin, samples, small_config

WITH_INPUT_GRADIENTS = [
    "base", "smoothstep", "F1", "F8 tiled", "cutlass", "linear", "composite", "no ReLU", "40 columns", "SH 2", "SH 8",
    "direction identity, cutlass", "direction frequency", "direction one-blob", "nearest", "2D grid, frequency",
]  # fmt: skip


def check_input_gradients(config: str, n: int, device: str, isa: str = "", aabb_scale: int = 1) -> None:
    twin = ModelTwin(config, aabb_scale, device)
    params, positions, directions, d_raw = samples(twin, n)
    model = stages.Model(config, aabb_scale, positions, directions, d_raw, isa=isa, device=device, input_gradients=True)
    model.set_params(params)
    model.forward_backward()
    got = model.input_gradients()
    wanted, bound = twin.input_gradients(params, positions, directions, d_raw, model.encoded() if twin.halves else None)
    for what, columns in (("position", slice(0, 3)), ("direction", slice(3, 6))):
        assert_within(got[:, columns], wanted[:, columns], bound[:, columns], what)
        of = bound[:, columns].mean() / max(np.abs(wanted[:, columns]).mean(), 1e-9)
        assert of < (0.02 if twin.halves else 1e-3) or not wanted[:, columns].any(), f"{what}: the bound says nothing"
    without = stages.Model(config, aabb_scale, positions, directions, d_raw, isa=isa, device=device)
    without.set_params(params)
    for m in (model, without):
        m.forward_backward()
        m.scatter()
    if device == "cpu":
        return  # where two passes added up weights' gradients
    networks = slice(0, twin.grid_begin)  # the table's are added up in any order
    assert np.array_equal(model.gradient()[networks], without.gradient()[networks])


@pytest.mark.parametrize(("device", "isa"), PLACES)
@pytest.mark.parametrize("name", WITH_INPUT_GRADIENTS)
def test_input_gradients(name: str, device: str, isa: str) -> None:
    """What poses are learned from: slopes with respect to positions and directions."""
    check_input_gradients(small_config(name), 130, device, isa)


@pytest.mark.parametrize("n_hidden", [1, 2])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_input_gradients_of_fused_networks(width: int, n_hidden: int, device: str) -> None:
    config = model_config(
        encoding=COLUMNS["32 columns, F4"]["encoding"], network=network(width, 1), rgb_network=network(width, n_hidden)
    )
    check_input_gradients(config, 190, device, aabb_scale=4)
