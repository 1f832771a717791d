"""Training with importance sampling by error maps: schedule, reported loss, exact resuming, other numbers of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from fields.tiny_scene import INTRINSICS, TinyScene
from pyngp import Testbed
from reference import error_map
from reference.snapshot import decompress

IMAGE, PIXEL = "sample_image_proportional_to_error", "sample_focal_plane_proportional_to_error"
FIRST_INTERVAL = 128  # steps
BATCH = 512

# device scene config out steps [resume]
TRAIN = """
import json, sys
from pyngp import Testbed
device, scene, config, out, steps, *resume = sys.argv[1:]
testbed = Testbed(data=scene, config=json.load(open(config)), device=device, deterministic=True)
testbed.nerf.training.sample_image_proportional_to_error = True
testbed.nerf.training.sample_focal_plane_proportional_to_error = True
testbed.nerf.training.include_sharpness_in_error = True
if resume:
    testbed.load_snapshot(resume[0])
testbed.fit(int(steps), batch_size=512)
testbed.save_snapshot(out, include_optimizer_state=True, compress=False)
"""


def make(tiny: TinyScene, config: dict[str, Any], device: str, *options: str) -> Testbed:
    testbed = Testbed(data=tiny.train, config=config, device=device, deterministic=True)
    for option in options:
        setattr(testbed.nerf.training, option, True)
    return testbed


def state_of(testbed: Testbed, folder: Path) -> dict[str, Any]:
    """The error maps in a snapshot, as arrays (n_images, height, width)."""
    path = folder / "state.ingp"
    testbed.save_snapshot(path, include_optimizer_state=True, compress=False)
    document = msgpack.unpackb(decompress(path.read_bytes()), strict_map_key=False)
    state = document["snapshot"]["pyngp"]["train_state"]["error_map"]
    for name, size in (("errors", "size"), ("drawn", "drawn_size")):
        width, height = state[size]
        values = np.frombuffer(state[f"{name}_binary"], np.float32)
        state[name] = values.reshape(values.size // max(1, height * width), height, width)
    return state


def test_maps_hold_the_losses(tiny, small_config, tmp_path, device):
    """Before anything is drawn by error, all cells add up to the steps' losses, times the rays; a step later begins
    the next interval, half as long again, with maps that suit it."""
    testbed = make(tiny, small_config, device, IMAGE, PIXEL)
    totals: list[float] = []
    rays = []

    def note(t: Testbed) -> None:
        rays.append(t.stats()["rays_per_step"])
        totals.append(t.loss * rays[-1])

    testbed.fit(FIRST_INTERVAL, batch_size=BATCH, callback=note)
    state = state_of(testbed, tmp_path)
    assert state["interval"] == FIRST_INTERVAL == state["steps"] and state["n_images"] == 20
    assert state["errors"].sum(dtype=np.float64) == pytest.approx(sum(totals), rel=1e-5)
    first = state["errors"]
    testbed.fit(1, batch_size=BATCH)
    state = state_of(testbed, tmp_path)
    assert state["interval"] == 192 and state["steps"] == 1
    assert np.array_equal(state["drawn"], first)
    side = error_map.map_side(192 * testbed.stats()["rays_per_step"] / 20, 48)
    assert abs(state["errors"].shape[1] - side) <= 1  # fewer rays may have been traced than were planned
    testbed.fit(192, batch_size=BATCH)
    assert state_of(testbed, tmp_path)["interval"] == 288


@pytest.mark.parametrize("options", [(IMAGE,), (PIXEL,), (IMAGE, PIXEL)])
def test_the_reported_loss_stays_that_of_all_pixels(options, tiny, small_config, device):
    """A model that does not change has the same loss, whichever way its rays are drawn."""
    testbed = make(tiny, small_config, device)
    testbed.fit(150, batch_size=2048)
    testbed.shall_train_encoding = testbed.shall_train_network = False
    for option in options:
        setattr(testbed.nerf.training, option, True)
    losses: list[float] = []
    testbed.fit(FIRST_INTERVAL + 190, batch_size=2048, callback=lambda t: losses.append(t.loss))
    uniform, drawn = np.array(losses[:FIRST_INTERVAL]), np.array(losses[FIRST_INTERVAL:])
    error = np.hypot(uniform.std() / np.sqrt(uniform.size), drawn.std() / np.sqrt(drawn.size))
    print(f"{uniform.mean():.5f} and {drawn.mean():.5f} +- {error:.5f}")
    assert abs(uniform.mean() - drawn.mean()) <= 4 * error


def test_rays_go_where_errors_are(tiny, small_config, tmp_path, device):
    """One image is noise, which no field explains: with sampling by image, its map gets more of the rays' errors than
    uniform rays would see, and those are counted by the inverse of their density: the sums agree."""
    images = tiny.images.copy()
    images[3] = np.random.default_rng(0).integers(0, 256, size=images[3].shape, dtype=np.uint8)
    shares = []
    for options in ((IMAGE,), (IMAGE, PIXEL)):
        testbed = Testbed(config=small_config, device=device, deterministic=True)
        testbed.set_images(images, tiny.poses, INTRINSICS)
        for option in options:
            setattr(testbed.nerf.training, option, True)
        testbed.fit(FIRST_INTERVAL + 1, batch_size=2048)
        drawn = state_of(testbed, tmp_path)["drawn"].sum((1, 2))
        assert drawn.argmax() == 3
        testbed.fit(180, batch_size=2048)
        errors = state_of(testbed, tmp_path)["errors"].sum((1, 2))
        assert errors.argmax() == 3
        shares.append(errors[3] / errors.sum())
    assert shares[0] == pytest.approx(shares[1], rel=0.3)


def test_same_bytes_for_any_number_of_threads_and_after_resuming(tiny, small_config, tmp_path, python, device):
    """Over a change of intervals, with all three options."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small_config))
    steps = FIRST_INTERVAL + 12
    out = {}
    for threads in ("1", "3"):
        out[threads] = tmp_path / f"{threads}.ingp"
        python(TRAIN, device, tiny.train, config, out[threads], steps, env={"PYNGP_NUM_THREADS": threads})
    assert out["1"].read_bytes() == out["3"].read_bytes()
    half, whole = tmp_path / "half.ingp", tmp_path / "whole.ingp"
    for broken_at in (40, FIRST_INTERVAL + 5):
        python(TRAIN, device, tiny.train, config, half, broken_at)
        python(TRAIN, device, tiny.train, config, whole, steps - broken_at, half)
        assert whole.read_bytes() == out["1"].read_bytes(), broken_at


def test_another_number_of_images_starts_over(tiny, small_config, tmp_path, device):
    testbed = make(tiny, small_config, device, IMAGE, PIXEL)
    testbed.fit(FIRST_INTERVAL + 3, batch_size=BATCH)
    testbed.nerf.training.n_images_for_training = 7
    testbed.fit(2, batch_size=BATCH)
    state = state_of(testbed, tmp_path)
    assert state["n_images"] == 7 and state["interval"] == FIRST_INTERVAL and state["steps"] == 2
    assert state["drawn"].size == 0
    testbed.nerf.training.n_images_for_training = 20
    testbed.fit(1, batch_size=BATCH)
    assert state_of(testbed, tmp_path)["n_images"] == 20
    for option in (IMAGE, PIXEL):
        setattr(testbed.nerf.training, option, False)
    testbed.fit(1, batch_size=BATCH)
    assert state_of(testbed, tmp_path)["n_images"] == 0


def test_only_the_first_images_are_used(tiny, small_config, device):
    """n_images_for_training while training: pictures beyond the first n have no influence on any byte."""
    other = tiny.images.copy()
    other[5:] = 255 - other[5:]
    ends = []
    for images in (tiny.images, other):
        testbed = Testbed(config=small_config, device=device, deterministic=True)
        testbed.set_images(images, tiny.poses, INTRINSICS)
        testbed.nerf.training.n_images_for_training = 5
        testbed.fit(20, batch_size=BATCH)
        ends.append(testbed.params())
        testbed.nerf.training.n_images_for_training = 20
        testbed.fit(20, batch_size=BATCH)
        assert not np.array_equal(testbed.params(), ends[-1])
        ends.append(testbed.params())
    assert np.array_equal(ends[0], ends[2]) and not np.array_equal(ends[1], ends[3])
