"""One step from the same state on the CPU and on a GPU: with each option, what it adds up or learns is the same.

The state is a trained model whose parameters are halves, with no cell empty: rounding decides of no sample. Both
devices then draw the same rays, all of which are used.
General networks compute in float32 on both; what is added up there differs by float32's rounding of terms that cancel,
and by what rounding changes of a few samples' cells and masks (stages/test_camera_gradients.py: TOLERANCE_OF_FLIPS of
the largest gradient). Fused networks keep activations and gradients as halves: some ten roundings of 2^-11 on the way,
of sums whose terms cancel to a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from fields.test_devices import GENERAL
from fields.tiny_scene import INTRINSICS, TinyScene
from pyngp import Testbed, TrainMode
from stages.test_camera_gradients import TOLERANCE_OF_FLIPS

N_RAYS, BATCH, N_VIEWS = 64, 65536, 20
TOLERANCES = {"general": TOLERANCE_OF_FLIPS, "fused": 10 * 10**0.5 * 2.0**-11}
# Columns of a view's gradients; those of all views follow.
OF_VIEW = {"position": slice(0, 3), "rotation": slice(3, 6), "exposure": slice(6, 9)}

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tiny: TinyScene, small_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(device, kind, prepare, latents): the snapshot, as Python has it, after the step; `prepare` sets options."""
    folder = tmp_path_factory.mktemp("learning")

    def testbed(device: str, kind: str, latents: int) -> Testbed:
        config = small_config | GENERAL if kind == "general" else small_config
        t = Testbed(device=device, config=config, deterministic=True)
        t.set_images(tiny.images, tiny.poses, INTRINSICS, n_extra_learnable_dims=latents)
        return t

    @cache
    def start(kind: str, latents: int) -> Path:
        trained = testbed("cpu", kind, latents)
        trained.fit(120, batch_size=4096)
        path = folder / f"{kind}{latents}.msgpack"  # not compressed
        trained.save_snapshot(path, compress=False)
        document = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
        document["snapshot"]["nerf"]["rgb"]["rays_per_batch"] = N_RAYS
        document["snapshot"]["pyngp"]["settings"]["batch_size"] = BATCH  # the rays are of such a batch
        document["snapshot"]["density_grid_binary"] = np.ones(128**3, np.float16).tobytes()
        path.write_bytes(msgpack.packb(document))
        return path

    def after(device: str, kind: str, prepare: Callable[[Testbed], None], latents: int = 0) -> dict[str, Any]:
        t = testbed(device, kind, latents)
        t.load_snapshot(start(kind, latents))
        prepare(t)
        t.fit(1, batch_size=BATCH)
        assert t.stats()["rays_per_step"] == N_RAYS
        path = folder / f"{device}.msgpack"
        t.save_snapshot(path, include_optimizer_state=True, compress=False)
        return msgpack.unpackb(path.read_bytes(), strict_map_key=False)["snapshot"] | {"loss_of_step": t.loss}

    return after


def learn_cameras(mode: TrainMode, random_levels: bool = False) -> Callable[[Testbed], None]:
    def prepare(testbed: Testbed) -> None:
        for name in ("extrinsics", "exposure", "distortion", "focal_length"):
            setattr(testbed.nerf.training, f"optimize_{name}", True)
        testbed.nerf.training.train_mode = mode
        testbed.max_level_rand_training = random_levels

    return prepare


def camera_sums(snapshot: dict[str, Any]) -> dict[str, np.ndarray]:
    ours = snapshot["pyngp"]["cameras"]
    assert ours["gradient_steps"] == 1
    sums = np.frombuffer(ours["gradient_binary"], np.float64)
    of_views, others = sums[: 9 * N_VIEWS].reshape(N_VIEWS, 9), sums[9 * N_VIEWS :]
    named = {name: of_views[:, columns] for name, columns in OF_VIEW.items()}
    return named | {"focal length": others[:2], "distortion": others[2:]}


@pytest.mark.parametrize(("mode", "random_levels"), [
    *((mode, False) for mode in TrainMode.__members__.values()), (TrainMode.Nerf, True),
])  # fmt: skip
@pytest.mark.parametrize("kind", TOLERANCES)
def test_cameras(kind, mode, random_levels, cuda, run):
    wanted, got = (camera_sums(run(d, kind, learn_cameras(mode, random_levels))) for d in ("cpu", cuda))
    for name, values in wanted.items():
        assert np.abs(values).max() > 0, name
        off = np.abs(got[name] - values).max() / np.abs(values).max()
        print(f"{name}: off by {off:.1e} of the largest")
        assert off <= TOLERANCES[kind], name


@pytest.mark.parametrize("kind", TOLERANCES)
def test_error_maps(kind, cuda, run):
    def prepare(testbed: Testbed) -> None:
        testbed.nerf.training.sample_image_proportional_to_error = True
        testbed.nerf.training.sample_focal_plane_proportional_to_error = True

    maps = []
    for device in ("cpu", cuda):
        snapshot = run(device, kind, prepare)
        state = snapshot["pyngp"]["train_state"]["error_map"]
        assert (state["steps"], state["n_images"]) == (1, N_VIEWS)
        maps.append(np.frombuffer(state["errors_binary"], np.float32))
        assert maps[-1].sum(dtype=np.float64) == pytest.approx(snapshot["loss_of_step"] * N_RAYS, rel=1e-5)
    assert np.count_nonzero(maps[0]) > N_RAYS / 4
    assert np.abs(maps[0] - maps[1]).max() <= TOLERANCES[kind] * maps[0].max()


@pytest.mark.parametrize("kind", TOLERANCES)
def test_random_levels(kind, cuda, run):
    losses = {}
    for on in (False, True):

        def prepare(testbed: Testbed, on: bool = on) -> None:
            testbed.max_level_rand_training = on

        losses[on] = [run(device, kind, prepare)["loss_of_step"] for device in ("cpu", cuda)]
        assert losses[on][1] == pytest.approx(losses[on][0], rel=TOLERANCES[kind])
    assert losses[True][0] > losses[False][0]  # the model never lacked levels: it minds


def test_latents(cuda, run):
    """Their first step's moment is a tenth of the gradient."""
    moments = []
    for device in ("cpu", cuda):
        latents = run(device, "general", lambda t: None, 4)["nerf"]["extra_dims_opt"]
        assert len(latents) == N_VIEWS
        moments.append(np.array([latent["first_moment"] for latent in latents]))
        assert all(latent["iter"] == 121 for latent in latents)
    # The moment of the step before is the same on both, and larger.
    assert np.abs(moments[0]).max() > 0
    assert np.abs(moments[0] - moments[1]).max() <= TOLERANCES["general"] * np.abs(moments[0]).max()


def test_lights(cuda, tiny, small_config):
    """Light directions are read on both alike, and stay as they are."""
    lights = np.random.default_rng(0).normal(size=(N_VIEWS, 3))
    losses = []
    for device in ("cpu", cuda):
        testbed = Testbed(device=device, config=small_config | GENERAL, deterministic=True)
        testbed.set_images(tiny.images, tiny.poses, INTRINSICS, light_directions=lights)
        before = [testbed.nerf.training.get_extra_dims(i) for i in range(N_VIEWS)]
        kept: list[float] = []
        testbed.fit(60, batch_size=4096, callback=lambda t, kept=kept: kept.append(t.loss))
        assert before == [testbed.nerf.training.get_extra_dims(i) for i in range(N_VIEWS)]
        losses.append(np.array(kept))
    assert losses[1][0] == pytest.approx(losses[0][0], rel=TOLERANCES["general"])
    assert losses[1][-20:].mean() < 0.5 * losses[1][0] and losses[0][-20:].mean() < 0.5 * losses[0][0]
