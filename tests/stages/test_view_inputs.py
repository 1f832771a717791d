"""What the direction encoding reads besides the direction (D.3): layouts, and gradients with respect to it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pyngp import Testbed, _core
from pyngp._core import stages
from stages.helpers import LAMBDA, PLACES, assert_within, grid_encoding, model_config, network
from stages.test_model import ModelTwin, poison, samples

IDENTITY = {"otype": "Identity"}
HARMONICS = {"otype": "SphericalHarmonics", "n_dims_to_encode": 3, "degree": 4}


def direction(*parts: dict) -> dict:
    return {"otype": "Composite", "nested": list(parts)}


def config(dir_encoding: dict | None = None, padding: int = 16) -> str:
    sections = {"network": network(32, 1, padding), "rgb_network": network(32, 2, padding)}
    return model_config(
        encoding=grid_encoding(), dir_encoding=dir_encoding or direction(HARMONICS, IDENTITY), **sections
    )


# Layouts: what is padded is the rgb network's input, by the rule of the composite's last part.
CASES = {
    "16 latents": (config(), 16),
    "5 latents, 11 ones": (config(), 5),
    "lights": (config(), 3),
    "one": (config(), 1),
    "cutlass": (config(padding=8), 3),
    "frequencies of latents": (config(direction(HARMONICS, {"otype": "Frequency", "n_frequencies": 3})), 4),
    "one-blob, identity": (
        config(direction({"otype": "OneBlob", "n_bins": 4, "n_dims_to_encode": 3}, IDENTITY)),
        7,
    ),
    "harmonics last": (config(direction({**IDENTITY, "n_dims_to_encode": 4}, HARMONICS)), 4),
    "many": (config(), 200),
}


def model_of(
    name: str, n: int, device: str = "cpu", isa: str = "", seed: int = 0
) -> tuple[ModelTwin, tuple[np.ndarray, ...], stages.Model]:
    text, n_extra = CASES[name]
    twin = ModelTwin(text, device=device, n_extra=n_extra)
    arrays = samples(twin, n, seed)
    params, positions, directions, d_raw = arrays
    extra = twin.extra_of(directions)
    model = stages.Model(
        text, 1, positions, directions, d_raw, device=device, isa=isa, extra_dims=extra, input_gradients=True
    )
    assert model.params().shape == (twin.n_params,)
    poison(model, twin.n_params, device)
    model.set_params(params)
    return twin, arrays, model


@pytest.mark.parametrize(("device", "isa"), PLACES)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name: str, device: str, isa: str) -> None:
    twin, (params, positions, directions, d_raw), model = model_of(name, 150, device, isa)
    assert not twin.halves
    model.forward()
    wanted, sd = twin.raw(params, positions, directions)
    assert_within(model.raw(), wanted, LAMBDA * sd, "raw")
    model.forward_backward()
    model.scatter()
    wanted, sd = twin.gradient(params, positions, directions, d_raw, "floats" if device == "cpu" else "halves")
    assert_within(model.gradient(), wanted, LAMBDA * sd, "gradient")
    wanted, bound = twin.input_gradients(params, positions, directions, d_raw)
    got = np.concatenate([model.input_gradients(), model.extra_dims_gradient()], axis=1)
    assert_within(got, wanted, bound, "inputs")
    assert np.abs(wanted[:, 6:]).max() > 100 * bound[:, 6:].max()  # the test means something


@pytest.mark.parametrize("name", ["16 latents", "frequencies of latents", "harmonics last"])
def test_finite_differences(name: str) -> None:
    """Every extra dimension of some samples, against central differences of the float64 model."""
    twin, (params, positions, directions, d_raw), model = model_of(name, 40, seed=3)
    model.forward_backward()
    gradient = model.extra_dims_gradient().astype(np.float64)
    bound = twin.input_gradients(params, positions, directions, d_raw)[1][:, 6:]
    x = twin.direction_input(directions).astype(np.float64)
    h = 1e-6  # float64 leaves 1e-15 / 1e-6; curvature h^2

    def value(inputs: np.ndarray) -> np.ndarray:
        twin.direction_input = lambda _: inputs  # type: ignore[method-assign]
        return (d_raw * twin.raw(params, positions, directions)[0]).sum(axis=1)

    for k in range(3, x.shape[1]):
        step = h * np.eye(x.shape[1])[k]
        slope = (value(x + step) - value(x - step)) / (2 * h)
        assert np.all(np.abs(gradient[:, k - 3] - slope) <= bound[:, k - 3] + 1e-7 * (1 + np.abs(slope))), k


@pytest.mark.parametrize("n_extra", [0, 1, 3, 16, 17])
def test_parameter_counts_of_base(n_extra: int, tiny) -> None:
    """D.3 and D.4 for base.json: the rgb network reads 16 + (16 + latents, padded to 16) inputs."""
    read = 16 + (16 + n_extra + 15) // 16 * 16
    expected = (64 * 32 + 16 * 64) + (64 * read + 64 * 64 + 16 * 64) + 4 * 2920448
    testbed = Testbed(device="cpu")
    testbed.set_images(tiny.images[:2], tiny.poses[:2], (50, 50, 24, 24), n_extra_learnable_dims=n_extra)
    assert testbed.n_params() == expected
    assert testbed.n_extra_dims == n_extra and testbed.n_encoding_params() == 4 * 2920448


def test_latents_that_nothing_reads(tiny) -> None:
    """Without an Identity at its end, the direction encoding would leave latents out."""
    base = json.loads(_core.base_nerf_config())
    testbed = Testbed(device="cpu", config=base | {"dir_encoding": HARMONICS})
    with pytest.raises(RuntimeError, match=r"dir_encoding.*Identity"):
        testbed.set_images(tiny.images[:2], tiny.poses[:2], (50, 50, 24, 24), n_extra_learnable_dims=4)
        testbed.n_params()
    # Left out altogether, it is base.json's.
    del base["dir_encoding"]
    testbed.reload_network_from_json(base)
    assert testbed.n_params() == (64 * 32 + 16 * 64) + (64 * 48 + 64 * 64 + 16 * 64) + 4 * 2920448
