"""What learning cameras must achieve (slow); benchmarks/learned_cameras.py prints figures with more pictures."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from fields import tiny_scene
from pyngp import Testbed

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import learned_cameras as bench

pytestmark = pytest.mark.slow
RUN = Namespace(config="base_14", steps=2000, batch_size=8192)


@pytest.fixture(scope="module")
def pictures(monkeypatch_module) -> bench.Data:
    """50 of the tiny scene, 64 pixels wide."""
    for name in ("SIZE", "FOCAL", "INTRINSICS"):
        monkeypatch_module.setattr(tiny_scene, name, getattr(tiny_scene, name))  # restored afterwards
    return bench.tiny_data()


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_exposures(pictures, device):
    """From -1 to 1 stop: PSNR within 1 dB of the unexposed set, at the usual interval between updates."""
    run = Namespace(**vars(RUN) | {"steps": 3000, "device": device})
    stops = np.random.default_rng(0).permutation(np.linspace(-1, 1, len(pictures.images)))
    _, images = bench.exposed(pictures.images, stops)

    def options(t: Testbed) -> None:
        t.nerf.training.optimize_exposure = True

    plain = pictures.quality(pictures.train(run, 0, {}, lambda t: None))
    learned = pictures.train(run, 0, {"images": images}, options)
    assert np.median(np.abs(learned.image_exposures() + stops[:, None])) < 0.1
    assert pictures.quality(learned) > plain - 1


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_focal_length(monkeypatch, factor, device):
    """Off by 2%, with cameras that aim at different points: within 0.5% after training."""
    for name in ("SIZE", "FOCAL", "INTRINSICS"):
        monkeypatch.setattr(tiny_scene, name, getattr(tiny_scene, name))  # restored afterwards
    d = bench.tiny_data(spread=bench.FOCAL_SPREAD)

    def options(t: Testbed) -> None:
        t.nerf.training.optimize_focal_length = True

    given = (d.intrinsics[0] * factor, d.intrinsics[1] * factor, *d.intrinsics[2:])
    t = d.train(Namespace(**vars(RUN) | {"steps": 3000, "device": device}), 0, {"intrinsics": given}, options)
    np.testing.assert_allclose(t.camera_intrinsics()[0, :2] / d.intrinsics[:2], 1, atol=0.005)
