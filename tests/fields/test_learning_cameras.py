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
    """From -1 to 1 stop: PSNR within 1 dB of the unexposed set."""
    run = Namespace(**vars(RUN) | {"steps": 1000, "device": device})
    stops = np.random.default_rng(0).permutation(np.linspace(-1, 1, len(pictures.images)))
    _, images = bench.exposed(pictures.images, stops)

    def options(t: Testbed) -> None:
        t.nerf.training.optimize_exposure = True
        t.nerf.training.n_steps_between_cam_updates = 1  # a hundredth of a stop an update

    plain = pictures.quality(pictures.train(run, 0, {}, lambda t: None))
    learned = pictures.train(run, 0, {"images": images}, options)
    assert np.median(np.abs(learned.image_exposures() + stops[:, None])) < 0.1
    assert pictures.quality(learned) > plain - 1
